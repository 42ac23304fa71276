"""One batch: attack, forward, loss, backward, step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from aalp.distributed import ALONE, Ranks, Shard
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objective_base import Objective
from aalp.method.pgd import AttackOptions, evaluating, perturb
from aalp.method.threat import Threat
from aalp.models.buffers import kept_buffers
from aalp.models.classifier import Classifier
from aalp.models.folding_in_place import folded_norms
from aalp.training.sharded_weights import Weights
from aalp.training.sharding import ShardThreat, WholeBatch
from aalp.training.weight_perturbation import perturbed_weights


class OuterLoss(nn.Module):
    """The outer loss as a module, so that whatever wraps a module (precision, data parallelism) sees one forward pass.

    With several ranks the images are this rank's, the labels and what comes back the whole batch's.
    """

    def __init__(self, classifier: Classifier, objective: Objective, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.classifier = classifier
        self.objective = objective
        self.ranks = ranks

    def forward(
        self,
        images: Tensor,
        adversarial: Tensor,
        labels: Tensor,
        progress: float,
        generator: torch.Generator,
        mask: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        several = self.ranks.size > 1
        classifier = WholeBatch(self.classifier, self.ranks, len(labels)) if several else self.classifier
        loss = self.objective(classifier, images, adversarial, labels, progress=progress, generator=generator, mask=mask)
        return loss.total, loss.parts, loss.logits


@dataclass(frozen=True)
class TrainingStep:
    """What stays the same from batch to batch.

    Attributes:
        module: the `OuterLoss` as Fabric set it up; the attack goes past its wrappers, to `classifier`.
        weights: the classifier's parameters, as they lie on the ranks.
        awp, awp_start, clip: as in `TrainingOptions`.
        ranks: the processes that share each batch.
    """

    fabric: Fabric
    module: nn.Module
    classifier: Classifier
    weights: Weights
    objective: Objective
    threat: Threat
    attack: AttackOptions
    optimizer: Any
    awp: float
    awp_start: float
    clip: float | None
    ranks: Ranks = ALONE

    def losses(
        self,
        images: Tensor,
        labels: Tensor,
        progress: float,
        generator: torch.Generator,
        attack: AttackOptions | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Attack, forward and backward: gradients are left on the parameters.

        The attack is each rank's own affair: it goes past whatever shares gradients, and makes none for the weights.

        Args:
            images: this rank's (n, ...) of the batch.
            labels: (N,) of the whole batch.
            attack: how to attack this batch; by default as the options of the run say for this `progress`.

        Returns:
            The loss (scalar), its parts by name, and the logits (N, C) that it was computed from, all detached, of the
            whole batch.
        """
        # Once for all passes of the step: they use the same weights.
        with self.weights.whole():
            found = self._losses(images, labels, progress, generator, attack or self.attack.at(progress))
            self.weights.collect()
        return found

    def _losses(
        self, images: Tensor, labels: Tensor, progress: float, generator: torch.Generator, attack: AttackOptions
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        shard = self.ranks.shard(len(labels))
        mask = self._attack_mask(images, labels, progress, generator)
        own_mask = None if mask is None else mask[shard.rows]
        eps_share = attack.eps_share(progress)
        adversarial = self.perturb(images, labels[shard.rows], generator, attack, eps_share, own_mask, shard)
        arguments = (images, adversarial, labels, progress, generator, mask)
        with self._perturbed(arguments, progress):
            total, parts, logits = self.module(*arguments)
            self.fabric.backward(total)
        return total.detach(), parts, logits

    def perturb(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        attack: AttackOptions,
        eps_share: float = 1.0,
        mask: Tensor | None = None,
        shard: Shard | None = None,
    ) -> Tensor:
        """Adversarial images (N, ...) of the classifier as it stands, in a ball of `eps_share` times the threat's radius.

        Called where the classifier's weights are whole.

        Args:
            shard: the rows of a batch that the images are, whose random starts are then drawn for the whole batch.
        """
        threat = self.threat if eps_share == 1.0 else replace(self.threat, eps=eps_share * self.threat.eps)
        if shard is not None and self.ranks.size > 1:
            threat = ShardThreat(threat.eps, threat, shard)
        with folded_norms(self.classifier), self.fabric.autocast():
            return perturb(
                self.classifier,
                images,
                labels,
                threat,
                attack.steps,
                None if attack.step_size is None else attack.step_size * threat.eps,
                self.objective.inner,
                random_start=attack.random_start,
                project=attack.project,
                mask=mask,
                generator=generator,
            )

    def update(self) -> None:
        """Move the weights along the gradients and clear them."""
        if self.clip is not None:
            self.weights.clip(self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _attack_mask(self, images: Tensor, labels: Tensor, progress: float, generator: torch.Generator) -> Tensor | None:
        """The mask where the adversary, too, goes through Guided Dropout; from clean features, as none else exist yet."""
        objective = self.objective
        if not isinstance(objective, AALP) or not isinstance(objective.dropout, GuidedDropout) or not objective.dropout.attack:
            return None
        with torch.no_grad(), evaluating(self.classifier), self.fabric.autocast():
            features = self.ranks.gather_rows(self.classifier.features(images), len(labels))
        return objective.mask(self.classifier, features, labels, progress, generator)

    def _perturbed(self, arguments: tuple[Any, ...], progress: float) -> Any:
        if self.awp == 0 or progress < self.awp_start:
            return nullcontext()
        parameters = [parameter for parameter in self.classifier.parameters() if parameter.requires_grad]
        # A batch counts once in BatchNorm's statistics, in the pass that follows: the authors look for the direction on a copy.
        with kept_buffers(self.classifier):
            # Past Fabric's wrapper, which takes no gradients but those of its own `backward`.
            with self.fabric.autocast():
                total = OuterLoss(self.classifier, self.objective, self.ranks)(*arguments)[0]
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        self.ranks.average([gradient for gradient in gradients if gradient is not None])
        return perturbed_weights(parameters, gradients, self.awp)
