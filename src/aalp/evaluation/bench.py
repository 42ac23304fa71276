"""The attacks of an audit, and how hard they are: each runs once, and the gates read what stood."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from aalp.data.loaders import Tick
from aalp.distributed import ALONE, Ranks
from aalp.evaluation.adaptive import adaptive_attack
from aalp.evaluation.attacks import Attack, run_attack
from aalp.evaluation.autoattack import AttackFunction, autoattack_part
from aalp.evaluation.black_box import random_noise, train_stand_in, transfer
from aalp.evaluation.dealing import attacked_batches
from aalp.evaluation.journal import AttackedBatch, Journal
from aalp.evaluation.model_gates import WithGradient
from aalp.method.losses import cross_entropy, misclassified
from aalp.method.pgd import PerImageLoss, equal_step, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.seeding import derive_seed, seed_global_generators

INNER_SHARE = 0.9
"""Of eps: the radius of balls within the ball, around points at random up to the rest of eps from the images."""

LOGIT_SPREAD = 10.0
"""Largest minus smallest of the rescaled logits."""

ADAPTIVE = (("pairing", False), ("pairing", True), ("features", False), ("features", True))
"""Kinds of adaptive attack, each without and through a Guided Dropout mask."""


@dataclass(frozen=True)
class Effort:
    """How hard the audit attacks.

    Attributes:
        steps: of the base PGD and of its variants.
        step_size: in units of eps; by default 2.5 / steps, with the steps that an attack makes.
        restart_steps, adaptive_steps: of each restart, and of the adaptive, the transferred and the unbounded attacks.
        noises: random points for each image.
        queries: of Square, for each image.
        stand_in_steps: of training the stand-in whose images are transferred.
    """

    steps: int = 100
    step_size: float | None = None
    restarts: int = 20
    restart_steps: int = 20
    adaptive_steps: int = 40
    noises: int = 100
    queries: int = 1000
    stand_in_steps: int = 200

    def step_of(self, steps: int) -> float:
        """The size in units of eps of each of so many steps: equal, as steps that fall converge whatever the loss does."""
        return equal_step(steps) if self.step_size is None else self.step_size


QUICK = Effort()
THOROUGH = Effort(steps=200, restart_steps=100, adaptive_steps=200, noises=1000, queries=5000, stand_in_steps=1000)


@dataclass
class Path:
    """The loss (steps + 1, n) along PGD and where the image was misclassified (steps + 1, n), for n attacked images."""

    losses: Tensor
    fooled: Tensor

    def by_image(self) -> dict[str, Tensor]:
        """As per-image rows (n, steps + 1) on the CPU, which is how a journal keeps them."""
        return {"path_losses": self.losses.T.contiguous().cpu(), "path_fooled": self.fooled.T.contiguous().cpu()}

    @staticmethod
    def of_images(measures: Mapping[str, Tensor], device: torch.device) -> Path:
        """What `by_image` was made of."""
        return Path(measures["path_losses"].T.to(device), measures["path_fooled"].T.to(device))


@dataclass
class Bench:
    """The attacks of one audit, each on the images it is told to, and what stood under them.

    Attributes:
        classifier: in evaluation mode, on the images' device.
        right: (N,) bool: classified right clean; nothing else is attacked.
        journal: where to keep the batches that are done, and to find those that were done before.
        ranks: processes that share the batches; each has a bench of its own, and all see the same.
        standing: which images (N, bool) stood under each attack, by name.
        stages: attacks so far.
        earlier_seconds: what the batches that were found in the journal had taken.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor
    threat: Threat
    right: Tensor
    effort: Effort
    seed: int
    batch_size: int
    tick: Tick
    journal: Journal | None = None
    ranks: Ranks = ALONE
    standing: dict[str, Tensor] = field(default_factory=dict)
    stages: int = 0
    earlier_seconds: float = 0.0

    def run(
        self,
        name: str,
        function: AttackFunction,
        on: Tensor,
        start: str = "",
        threat: Threat | None = None,
        paths: list[Path] | None = None,
    ) -> Tensor:
        """Attack the images `on` (N, bool) and keep which of them stand.

        Args:
            function: (classifier, images, labels, threat, seed) -> candidates.
            start: attacks that share this word share their random starts.
            paths: where `function` adds the path of each batch that it attacks; all batches' paths come there, in order.
        """
        after = on.clone()
        attack = Attack(name, function, {})

        def work(number: int, chunk: Tensor) -> AttackedBatch:
            started = time.perf_counter()
            seed = derive_seed("audit", start or name, self.seed, number)
            if self.journal or self.ranks.size > 1:
                # A network that draws random numbers must draw the same ones whatever was done before, not the attack's.
                seed_global_generators(derive_seed("network", seed))
            batch = self.images[chunk], self.labels[chunk]
            _, fooled = run_attack(attack, self.classifier, *batch, threat or self.threat, seed)
            measures = {} if paths is None else paths.pop().by_image()
            return AttackedBatch(chunk, fooled.cpu(), measures, time.perf_counter() - started)

        self.stages += 1
        stage = f"{self.stages:02d}-{name.replace(' ', '-')}"
        for chunk, done in attacked_batches(
            *(on.nonzero()[:, 0].cpu(), self.batch_size, name, self.tick, work, stage, self.journal, self.ranks)
        ):
            after[chunk] &= ~done.fooled.to(after.device)
            if done.earlier:
                self.earlier_seconds += done.seconds
            if paths is not None:
                paths.append(Path.of_images(done.measures, after.device))
        self.standing[name] = after
        return after

    def worst(self) -> Tensor:
        """Images (N, bool) that stand under everything that ran inside the threat so far."""
        return torch.stack([self.right, *self.standing.values()]).all(0)

    def pgd(self, loss: PerImageLoss, steps: int | None = None, paths: list[Path] | None = None) -> AttackFunction:
        """The base PGD on a loss; with `paths` each batch's path is added there."""
        steps = steps or self.effort.steps
        size = self.effort.step_of(steps)

        def function(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
            generator = torch.Generator(images.device).manual_seed(seed)
            outputs: list[Tensor] = []
            candidates = perturb(
                *(WithGradient(classifier), images, labels, threat, steps, size * threat.eps, loss),
                generator=generator,
                observe=None if paths is None else lambda _images, logits: outputs.append(logits),
            )
            if paths is not None:
                outputs.append(classifier(candidates))
                losses = torch.stack([loss(logits, labels) for logits in outputs])
                paths.append(Path(losses, torch.stack([misclassified(logits, labels) for logits in outputs])))
            return candidates

        return function

    def fgsm(self, classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, _seed: int) -> Tensor:
        return perturb(WithGradient(classifier), images, labels, threat, 1, threat.eps, random_start=0.0)

    def inside(self, classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        """PGD in smaller balls within the ball: no candidate lies on its corners or its surface, where all others end."""
        generator = torch.Generator(images.device).manual_seed(derive_seed("inside", seed))
        moved = threat.project(threat.random_start(images, generator, 1 - INNER_SHARE), images)
        attack = self.pgd(cross_entropy)
        return attack(classifier, moved, labels, replace(threat, eps=INNER_SHARE * threat.eps), seed)

    def rescaled(self, classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        """The base PGD on logits that are divided by their clean spread, image by image."""
        logits = classifier(images)
        spread = (logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)).clamp_min(1e-30)
        attack = self.pgd(lambda logits, labels: cross_entropy(logits / spread * LOGIT_SPREAD, labels))
        return attack(classifier, images, labels, threat, seed)

    def restarts(self, standing: Tensor) -> Tensor:
        """What still stands after the restarts, each run on what stood under those before it."""
        for number in range(self.effort.restarts):
            standing = self.run(f"restart {number + 1}", self.pgd(cross_entropy, self.effort.restart_steps), standing)
        return standing

    def adaptive(self, standing: Tensor) -> dict[str, Tensor]:
        """Each adaptive attack on the images `standing`: what stands under it alone."""
        size = self.effort.step_of(self.effort.adaptive_steps)
        found = {}
        for kind, masked in ADAPTIVE:
            name = f"adaptive {kind}" + (" through the mask" if masked else "")

            def attack(
                classifier: Classifier,
                images: Tensor,
                labels: Tensor,
                threat: Threat,
                seed: int,
                kind: str = kind,
                masked: bool = masked,
            ) -> Tensor:
                step_size = size * threat.eps
                return adaptive_attack(
                    kind, masked, classifier, images, labels, threat, self.effort.adaptive_steps, seed, step_size
                )

            found[name] = self.run(name, attack, standing)
        return found

    def noise(self, standing: Tensor) -> Tensor:
        """What stands under random noise."""

        def attack(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
            return random_noise(classifier, images, labels, threat, seed, self.effort.noises)

        return self.run("random noise", attack, standing)

    def transferred(self, standing: Tensor) -> Tensor:
        """What stands under images made on a stand-in."""

        @cache  # not even once if all batches are done
        def stand_in() -> Classifier:
            seed = derive_seed("audit", "stand-in", self.seed)
            return train_stand_in(self.classifier, self.images, self.threat, seed, self.effort.stand_in_steps)

        def attack(_classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
            return transfer(stand_in(), images, labels, threat, seed, self.effort.adaptive_steps)

        return self.run("transfer", attack, standing)

    def square(self, standing: Tensor) -> Tensor:
        """What stands under Square."""
        return self.run("square", autoattack_part("square", self.effort.queries), standing)

    def at_eps(self, eps: float, loss: PerImageLoss, name: str, on: Tensor, steps: int | None = None) -> Tensor:
        """What stands under PGD with another radius; kept out of the worst case, which is of the threat."""
        standing = self.run(name, self.pgd(loss, steps), on, threat=replace(self.threat, eps=eps))
        del self.standing[name]
        return standing

    def whole_range(self) -> float:
        """The radius of a ball that holds all images."""
        return 1.0 if self.threat.norm == "Linf" else math.sqrt(self.images[0].numel())
