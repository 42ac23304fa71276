"""Robust accuracy: run attacks, take the worst case per image, keep what each attack did to each image."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from aalp.data.arrays import as_tensors
from aalp.data.loaders import Tick, read_rows
from aalp.data.split import ResidentSplit, Split
from aalp.distributed import ALONE, Ranks
from aalp.errors import OptionError
from aalp.evaluation.attacks import Attack, attack_by_function, attack_by_name, check_any_number, run_attack
from aalp.evaluation.autoattack import STANDARD, check_exact
from aalp.evaluation.dealing import attacked_batches, deal_batches
from aalp.evaluation.foreign_attacks import OwnAttack
from aalp.evaluation.journal import AttackedBatch, Journal
from aalp.evaluation.outcome import AttackResult, Evaluation
from aalp.evaluation.views import Searched, SearchPrecision, search_precision
from aalp.method.contributions import concentration_n, contributions
from aalp.method.losses import logit_pairing
from aalp.method.pgd import evaluating
from aalp.method.precision import full_precision
from aalp.method.sample_weights import conflict_cosine
from aalp.method.threat import Threat, check_threat
from aalp.models.classifier import Classifier, check_classifier
from aalp.seeding import derive_seed, seed_global_generators

DEFAULT_ATTACKS = ("fgsm", "pgd-20", "cw-40", "autoattack")


@torch.inference_mode(False)
@torch.no_grad()
def evaluate(
    classifier: Classifier,
    images: Tensor | Split,
    labels: Tensor | None = None,
    threat: Threat | None = None,
    attacks: str | OwnAttack | Sequence[str | OwnAttack] = DEFAULT_ATTACKS,
    *,
    batch_size: int = 250,
    seed: int = 0,
    tick: Tick = lambda attack, done, total: None,
    journal: Journal | None = None,
    ranks: Ranks = ALONE,
    search: SearchPrecision = "auto",
    exact: bool = False,
) -> Evaluation:
    """Clean accuracy and accuracy under each attack, in float32 and evaluation mode.

    Each attack is run on the images that are classified right clean; inside AutoAttack each part on those that
    withstood the parts before it, as in the original. The worst case is taken over all of them, image by image.
    No gate runs here: whether the network answers the same twice, without which figures are too high, `audit` says.

    Args:
        classifier: on the device to evaluate on.
        images: (N, channels, height, width) uint8 or in [0, 1], or a split, which brings its labels.
        labels: (N,) integers; only with image tensors.
        threat: the ball, such as `Linf(8 / 255)`.
        attacks: names (see `evaluation/attacks.py`), also as one text with commas, or a function or several
            (model, images, labels) -> adversarial images, which are given the ball as `threat` if they have a parameter of
            that name; `clean` is always measured.
        batch_size: images attacked together.
        seed: of the attacks' random starts.
        tick: called before and after each batch.
        journal: where to keep the batches that are done, and to find those that were done before.
        ranks: processes that share the batches, each of which calls this alike. Batches go to them whole, with the seeds
            that they have in one process, so the verdict on each image is the same. All get the whole evaluation.
        search: precision in which AutoAttack's parts that lose nothing by it look for images; what counts is float32.
        exact: AutoAttack by its authors' package pyautoattack, unchanged.

    Raises:
        OptionError: unknown attack, threat or labels are missing, batch_size is below 1, or `exact` cannot be.
        ModelError: the classifier is none, or its network does not take any number of images.
        DataError: images or labels are not what they have to be.
    """
    threat = check_threat(threat)
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}: it has to be at least 1")
    check_classifier(classifier)
    split = _as_split(images, labels, classifier.num_classes)
    wanted = _wanted(attacks)
    if exact:
        check_exact(wanted, threat, split.image_shape, classifier.num_classes)
    device = classifier.head_weight.device
    with evaluating(classifier), full_precision():
        if wanted:
            check_any_number(classifier, read_rows(split, torch.arange(min(2, len(split))), device)[0])
        searched_in = ranks.from_main(lambda: _searched_in(search, classifier, split, threat, wanted))
        by_name = partial(attack_by_name, search=searched_in, exact_seed=seed if exact else None)
        single = {
            name: by_name(name) if isinstance(name, str) else attack_by_function(name)
            for name in wanted
            if name != "autoattack"
        }
        run = _Run(classifier, split, threat, batch_size, seed, device, tick, journal, ranks)
        evaluation = run.clean()
        for name in wanted:
            if name == "autoattack":
                run.autoattack(evaluation, [by_name(part) for part in STANDARD])
            else:
                run.single(evaluation, single[name])
        if evaluation.measured_on is None:
            evaluation.measures |= dict.fromkeys(ADVERSARIAL_MEASURES, torch.full((len(split),), math.nan))
    return evaluation


def _as_split(images: Tensor | Split, labels: Tensor | None, num_classes: int) -> Split:
    if hasattr(images, "read"):
        return cast(Split, images)
    if labels is None:
        raise OptionError("labels are missing: give one integer for each image")
    images, labels = as_tensors(images, labels, num_classes, "the evaluation")
    return ResidentSplit(images.cpu(), labels.cpu())


def _wanted(attacks: str | OwnAttack | Sequence[str | OwnAttack]) -> list[str | OwnAttack]:
    """Each attack that was asked for, once; not `clean`, which is measured in any case."""
    if isinstance(attacks, str):
        attacks = [name.strip() for name in attacks.split(",")]
    elif callable(attacks):
        attacks = [attacks]
    return [name for name in dict.fromkeys(attacks) if name != "clean"]


def _searched_in(
    search: SearchPrecision, classifier: Classifier, split: Split, threat: Threat, wanted: Sequence[str | OwnAttack]
) -> Searched:
    """The precision of AutoAttack's search; float32 where none of it is asked for."""
    if not {"autoattack", *STANDARD}.intersection(wanted):
        return "float32"
    images, _ = read_rows(split, torch.arange(min(32, len(split))), classifier.head_weight.device)
    return search_precision(search, classifier, images, threat)


NO_CLASS = -1
"""The prediction of logits that are not finite: it is no image's label."""

OUTSIDE = "outside"
"""Name, among a batch's measurements, of which images an attack left the ball on."""

ADVERSARIAL_MEASURES = ("n90_adversarial", "conflict_cosine", "pairing_distance")


@dataclass
class _Run:
    """One evaluation under way."""

    classifier: Classifier
    split: Split
    threat: Threat
    batch_size: int
    seed: int
    device: torch.device
    tick: Tick
    journal: Journal | None
    ranks: Ranks

    def clean(self) -> Evaluation:
        labels = self.split.labels
        predictions, n90 = torch.empty_like(labels), torch.empty(len(labels))

        def work(_number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            images, _ = read_rows(self.split, rows, self.device)
            logits = self.classifier(images)  # as deployed: a subclass or a hook may do more than the network
            features = self.classifier.checked_features(images)
            predicted = logits.argmax(1)
            n90 = concentration_n(contributions(features, self.classifier.head_weight, predicted))
            return torch.where(logits.isfinite().all(1), predicted, NO_CLASS).cpu(), n90.cpu()

        for rows, (predicted, measured) in deal_batches(
            torch.arange(len(labels)), self.batch_size, "clean", self.tick, work, ranks=self.ranks
        ):
            predictions[rows], n90[rows] = predicted, measured
        evaluation = Evaluation(torch.arange(len(labels)), labels, predictions, self.threat, self.seed)
        evaluation.broken_by = (predictions != labels).long()
        evaluation.measures["n90"] = n90
        return evaluation

    def single(self, evaluation: Evaluation, attack: Attack) -> None:
        standing = evaluation.predictions == evaluation.labels
        # One attack of ours moves every image, fooled or not: its images are those that pairs are measured on.
        measuring = evaluation.measured_on is None and attack.name.startswith("pgd-")
        on = torch.ones_like(standing) if measuring else standing
        result = self._attack(evaluation, attack, standing, on, measuring)
        if measuring:
            evaluation.measured_on = attack.name
        evaluation.results.append(result)
        self._blame(evaluation, attack.name, result.standing)

    def autoattack(self, evaluation: Evaluation, parts: Sequence[Attack]) -> None:
        standing = evaluation.predictions == evaluation.labels
        for part in parts:
            result = self._attack(evaluation, part, standing, standing)
            standing = result.standing
            evaluation.parts.append(result)
            self._blame(evaluation, f"autoattack/{part.name}", standing)
        evaluation.results.append(
            AttackResult(
                "autoattack",
                standing,
                evaluation.parts[0].attacked,
                sum(part.seconds for part in evaluation.parts),
                {name: value for name, value in parts[0].settings.items() if name != "search"},
            )
        )

    def _attack(
        self, evaluation: Evaluation, attack: Attack, standing: Tensor, on: Tensor, measuring: bool = False
    ) -> AttackResult:
        """Attack the images `on` (N, bool), of which `standing` may fall; with `measuring` the evaluation gets the measures."""
        after = standing.clone()
        rows_to_attack = on.nonzero()[:, 0]
        columns = {name: torch.full((len(standing),), math.nan) for name in ADVERSARIAL_MEASURES}
        seconds, outside = 0.0, 0
        # The same attack may run twice, alone and as a part of AutoAttack.
        stage = f"{len(evaluation.names):02d}-{attack.name.replace(':', '-')}"
        for rows, batch in attacked_batches(
            *(rows_to_attack, self.batch_size, attack.name, self.tick),
            lambda number, rows: self._attack_batch(attack, number, rows, measuring),
            *(stage, self.journal, self.ranks),
        ):
            after[rows] &= ~batch.fooled
            for name, values in batch.measures.items():
                if name == OUTSIDE:
                    outside += int(values.sum())
                else:
                    columns[name][rows] = values
            seconds += batch.seconds
        if measuring:
            evaluation.measures |= columns
        return AttackResult(attack.name, after, len(rows_to_attack), seconds, dict(attack.settings), outside)

    def _attack_batch(self, attack: Attack, number: int, rows: Tensor, measure: bool) -> AttackedBatch:
        started = time.perf_counter()
        images, labels = read_rows(self.split, rows, self.device)
        seed = derive_seed("attack", attack.name, self.seed, number)
        if self.journal or self.ranks.size > 1:
            # A network that draws random numbers must draw the same ones whatever was done before, not the attack's.
            seed_global_generators(derive_seed("network", seed))
        left: dict[str, Tensor] = {}
        note = partial(left.__setitem__, OUTSIDE)
        adversarial, fooled = run_attack(attack, self.classifier, images, labels, self.threat, seed, note)
        measures = left | (self._measure(images, adversarial, labels) if measure else {})
        on_cpu = {name: values.cpu() for name, values in measures.items()}
        return AttackedBatch(rows, fooled.cpu(), on_cpu, time.perf_counter() - started)

    def _measure(self, images: Tensor, adversarial: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Observations 1 and 2 on pairs: contributions to the predicted class, conflict of the losses, pairing distance."""
        clean_logits = self.classifier(images)
        features = self.classifier.features(adversarial)
        logits = self.classifier.head(features)
        shares = contributions(features, self.classifier.head_weight, logits.argmax(1))
        return {
            "n90_adversarial": concentration_n(shares),
            "conflict_cosine": conflict_cosine(clean_logits, logits, labels),
            "pairing_distance": logit_pairing(clean_logits, logits),
        }

    @staticmethod
    def _blame(evaluation: Evaluation, name: str, standing: Tensor) -> None:
        evaluation.names.append(name)
        newly = (evaluation.broken_by == 0) & ~standing
        evaluation.broken_by[newly] = len(evaluation.names) - 1


Z = 1.959964
"""The normal law's 97.5 % point."""


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): sound near 0 and 1, where robust accuracies like to be.

    Raises:
        ValueError: count is 0.
    """
    if count == 0:
        raise ValueError("no interval without images")
    share, spread = successes / count, Z * Z / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)
