"""A whole training step, ours and without anything of ours, on one model and batch: what the benchmarks time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from baselines import art_step, papers_step, torchattacks_step
from lightning_fabric import Fabric

from aalp.method.aalp import AALP
from aalp.method.losses import cross_entropy
from aalp.method.objectives import OBJECTIVES
from aalp.method.pgd import AttackOptions, evaluating
from aalp.method.sample_weights import classification_boost, sample_weights
from aalp.method.threat import Linf
from aalp.models.catalog import build
from aalp.models.classifier import Classifier
from aalp.training.devices import resolve_precision
from aalp.training.sharded_weights import Weights
from aalp.training.step import OuterLoss, TrainingStep

CASES = {
    "small-cnn": ((1, 28, 28), 0.3, 128),
    "thin-resnet": ((3, 32, 32), 8 / 255, 128),
    "preact-resnet18": ((3, 32, 32), 8 / 255, 16),
    "timm:resnet50": ((3, 224, 224), 4 / 255, 2),
}
"""Image shape, eps, and images a batch on a CPU (on a GPU all take 128)."""

Work = Callable[[], None]


class Bench:
    """A model, a batch, and the contenders' steps on them."""

    def __init__(self, model: str, arguments: argparse.Namespace) -> None:
        self.shape, self.eps, on_cpu = CASES[model]
        self.model, self.steps = model, arguments.steps
        self.fabric = Fabric(accelerator="auto", devices=1, precision=resolve_precision(arguments.precision))
        device = self.fabric.device
        self.batch = arguments.batch_size or (on_cpu if device.type == "cpu" else 128)
        torch.manual_seed(0)
        self.images = torch.rand(self.batch, *self.shape, device=device)
        self.labels = torch.randint(10, (self.batch,), device=device)
        self.ours_model = self.fresh().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.ours_model.parameters(), lr=1e-3, momentum=0.9)

    def fresh(self) -> Classifier:
        grey = ([0.5] * self.shape[0], [0.25] * self.shape[0])
        classifier = build(self.model, 10, self.shape, default_normalisation=grey).to(self.fabric.device)
        classifier.verify(self.images)
        return classifier.train()

    def work(self, contender: str, name: str) -> Work:
        if contender == "torchattacks":
            step = torchattacks_step(self.fresh(), name, self.eps, self.steps)
            return lambda: step(self.images, self.labels)
        if contender == "art":
            fit = art_step(self.fresh(), self.shape, self.eps, self.steps, self.batch)
            return lambda: fit(self.images.cpu().numpy(), self.labels.cpu().numpy())
        made: Work = getattr(self, contender.removeprefix("plain-"))(name)
        return made

    def papers(self, name: str) -> Work:
        step = papers_step(self.fresh(), name, self.eps, self.steps)
        return lambda: step(self.images, self.labels)

    def floor(self, name: str) -> Work:
        classifier, fabric, kinds = self.ours_model, self.fabric, 1 if name == "at" else 2

        def work() -> None:
            images, labels = torch.cat([self.images] * kinds), torch.cat([self.labels] * kinds)
            # One autocast for all passes: the weights are cast once, as none changes in between.
            with evaluating(classifier), fabric.autocast():
                if name == "trades":
                    with torch.no_grad():
                        classifier(self.images)
                for _ in range(self.steps):
                    leaf = self.images.detach().requires_grad_()
                    torch.autograd.grad(cross_entropy(classifier(leaf), self.labels).sum(), leaf)
            with fabric.autocast():
                loss = cross_entropy(classifier(images), labels).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return work

    def ours(self, name: str) -> Work:
        step = training_step(name, self.ours_model, self.fabric, self.eps, self.steps)
        generator = torch.Generator(self.fabric.device).manual_seed(0)

        def work() -> None:
            step.losses(self.images, self.labels, 1.0, generator)
            step.update()

        return work

    def modules(self, name: str) -> Work:
        """Guided Dropout, contributions and sample weights alone."""
        objective, classifier = AALP(), self.ours_model
        weights = objective.weights
        assert weights is not None
        with torch.no_grad():
            features = classifier.features(self.images)
            logits = classifier.head(features)
        shifted = logits + torch.randn_like(logits)
        generator = torch.Generator(self.fabric.device).manual_seed(0)

        def work() -> None:
            mask = objective.mask(classifier, features, self.labels, 1.0, generator)
            classifier.head(features, mask)
            classification_boost(weights, sample_weights(weights, logits, shifted, self.labels))

        return work


def training_step(name: str, classifier: Classifier, fabric: Fabric, eps: float, steps: int) -> TrainingStep:
    """Our step of an objective, with its defaults."""
    objective = OBJECTIVES[name][0]()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-3, momentum=0.9)
    module, wrapped = fabric.setup(OuterLoss(classifier, objective), optimizer)
    return TrainingStep(
        fabric, module, classifier, Weights(classifier), objective, Linf(eps), AttackOptions(steps), wrapped, 0.0, 0.0, None
    )


def seconds(work: Work) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    work()
    return time.process_time() - started


def ratios(some: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(some, others, strict=True)]
