"""Training steps as others write them, for `train_step.py`: each makes (images, labels) -> one whole step.

Float32 and PyTorch's default layout, since that is what they run in. The classifier has its normalisation inside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[Any, Any], None]


def outer_loss(model: nn.Module, name: str, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """The loss of each objective in the way a script writes it: one forward for each kind of image."""
    if name == "at":
        return F.cross_entropy(model(adversarial), labels)
    clean_logits, logits = model(images), model(adversarial)
    if name == "trades":
        divergence = F.kl_div(F.log_softmax(logits, 1), F.softmax(clean_logits, 1), reduction="batchmean")
        return F.cross_entropy(clean_logits, labels) + 6.0 * divergence
    classification = 0.5 * F.cross_entropy(clean_logits, labels) + 0.5 * F.cross_entropy(logits, labels)
    return classification + 0.5 * F.mse_loss(logits, clean_logits)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, name: str, *batch: Tensor) -> None:
    model.train()
    optimizer.zero_grad()
    outer_loss(model, name, *batch).backward()
    optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def papers_step(model: nn.Module, name: str, eps: float, steps: int) -> Step:
    """The inner loop of the TRADES script, with the cross-entropy in place of KL where the objective has it."""
    optimizer, alpha = sgd(model), 2.5 * eps / steps

    def step(images: Tensor, labels: Tensor) -> None:
        model.eval()
        adversarial = torch.clamp(images + torch.empty_like(images).uniform_(-eps, eps), 0.0, 1.0)
        for _ in range(steps):
            adversarial.requires_grad_()
            with torch.enable_grad():
                if name == "trades":
                    log_p = F.log_softmax(model(adversarial), dim=1)
                    loss = F.kl_div(log_p, F.softmax(model(images), dim=1), reduction="sum")
                else:
                    loss = F.cross_entropy(model(adversarial), labels)
            grad = torch.autograd.grad(loss, [adversarial])[0]
            adversarial = adversarial.detach() + alpha * torch.sign(grad.detach())
            adversarial = torch.min(torch.max(adversarial, images - eps), images + eps)
            adversarial = torch.clamp(adversarial, 0.0, 1.0)
        update(model, optimizer, name, images, adversarial.detach(), labels)

    return step


def torchattacks_step(model: nn.Module, name: str, eps: float, steps: int) -> Step:
    """torchattacks as its README uses it: an attack object, called on each batch."""
    import torchattacks

    optimizer = sgd(model)
    if name == "trades":
        attack = torchattacks.TPGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)
    else:
        attack = torchattacks.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps, random_start=True)

    def step(images: Tensor, labels: Tensor) -> None:
        update(model, optimizer, name, images, attack(images, labels), labels)

    return step


def art_step(model: nn.Module, shape: tuple[int, ...], eps: float, steps: int, batch_size: int) -> Step:
    """ART's trainer after Madry et al., as its notebook builds it: one epoch on one batch, without its progress bars."""
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    classifier = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=sgd(model),
        input_shape=shape,
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if next(model.parameters()).is_cuda else "cpu",
    )
    trainer = AdversarialTrainerMadryPGD(
        classifier, nb_epochs=1, batch_size=batch_size, eps=eps, eps_step=2.5 * eps / steps, max_iter=steps
    )

    def step(images: np.ndarray, labels: np.ndarray) -> None:
        trainer.fit(images, labels)

    return step
