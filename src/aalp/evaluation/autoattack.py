"""AutoAttack standard (arXiv 2003.01690), one part at a time: our fast search, or its authors' package pyautoattack itself.

Ours is in `apgd.py`, `fab.py` and `square.py`: the package's algorithms at its settings, equal to it point by point in
float32. What is counted is always the deployed network in float32.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.errors import OptionError
from aalp.evaluation.apgd import apgd_ce, apgd_targeted
from aalp.evaluation.fab import fab_targeted
from aalp.evaluation.square import square_linf
from aalp.evaluation.targets import MOST_TARGETS
from aalp.evaluation.views import Searched, Views, views
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The parts of the standard version, in its order."""

SEARCHED_ROUGHLY = ("apgd-ce", "apgd-t")
"""The parts that find as much in bfloat16; the others find less, by measurement (docs/evaluation.md)."""

SQUARES = 5
"""How many squares the package's Square in L2 lays on top of one another when it starts."""

CAPACITY = 64
"""How many images at least keep a CPU or GPU busy: targets and queries go through the network together up to that many."""

AttackFunction = Callable[[Classifier, Tensor, Tensor, Threat, int], Tensor]
"""(classifier, images (N, ...) in [0, 1], labels (N,), threat, seed) -> candidates (N, ...); `run_attack` checks them."""


def autoattack_part(part: str, queries: int = 5000, search: Searched = "float32") -> AttackFunction:
    """One part of AutoAttack standard.

    Args:
        queries: of Square, for each image; 5000 is the standard.
        search: precision of the parts that lose nothing by it (`SEARCHED_ROUGHLY`).
    """
    precision = search if part in SEARCHED_ROUGHLY else "float32"

    def function(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        if part == "square" and threat.norm != "Linf":
            return _package_square(classifier, images, labels, threat, seed, queries)
        seen = views(classifier, images, threat if precision == "bf16" else None)
        found = _search(part, seen, images, labels, threat, seed, queries)
        if images.is_cuda:
            # Traced copies refer to themselves, and nothing on a GPU makes Python look for what is free to go.
            del seen
            gc.collect()
        return found

    return function


def check_exact(attacks: Collection[object], threat: Threat, image_shape: Sequence[int], num_classes: int) -> None:
    """Refuse what the package does not do, before other attacks have taken their hours.

    Args:
        attacks: all that are asked for; those that are not the package's do not count.

    Raises:
        OptionError: there are fewer classes than it needs, or its Square in L2 does not run on images of this size.
    """
    if num_classes < 4 and any(name in attacks for name in ("autoattack", *STANDARD)):
        raise OptionError(f"exact AutoAttack needs 4 classes and the model has {num_classes}: leave out exact")
    height, width = image_shape[1:]
    on_squares = threat.norm == "L2" and any(name in attacks for name in ("autoattack", "square"))
    if on_squares and not _squares_fit(height, width):
        raise OptionError(
            f"Square of pyautoattack in L2 does not run on images of {height} x {width}, which its first squares do not fit: "
            "leave out exact, or attack with apgd-ce,apgd-t,fab-t"
        )


def _squares_fit(height: int, width: int) -> bool:
    """Whether the package can lay its first squares: from the same distance off both edges, and none across the other ones."""
    side = height // SQUARES
    off = (height - SQUARES * side) // 2
    # Of squares of one pixel those beyond the edge are empty, which torch lets pass.
    return side == 1 or (side > 1 and all(off + length // side * side <= length for length in (height, width)))


def _search(part: str, seen: Views, images: Tensor, labels: Tensor, threat: Threat, seed: int, queries: int) -> Tensor:
    capacity = max(CAPACITY, len(images))
    if part == "apgd-ce":
        return apgd_ce(seen, images, labels, threat, seed)
    if part == "apgd-t":
        return apgd_targeted(seen, images, labels, threat, seed, capacity)
    if part == "fab-t":
        return fab_targeted(seen, images, labels, threat, capacity)
    # A CPU gains nothing from more at once, and what is asked ahead is lost with every acceptance.
    ahead = CAPACITY if images.device.type == "cpu" else capacity
    return square_linf(seen, images, labels, threat.eps, seed, queries, ahead)


def _package_square(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int, queries: int) -> Tensor:
    """Square in L2, whose every proposal depends on the image: there is nothing to pass over.

    Images that its first squares do not fit in, as of 24 x 24, get rows up to a multiple of 5, which the network is not shown.
    """
    height, width = images.shape[2:]
    added = 0 if _squares_fit(height, width) else -height % SQUARES
    with _apart(classifier, images.device):
        attack = _standard(classifier, threat, seed, images.device)
        attack.square.n_queries = queries
        if added:
            attack.square.predict = lambda points: classifier(points[:, :, :height])
        candidates: Tensor = attack.square.perturb(F.pad(images, (0, 0, 0, added)).contiguous(), labels)
    return candidates.detach()[:, :, :height]


def exact_part(part: str, seed: int) -> AttackFunction:
    """One part as the package runs it: its `run_standard_evaluation` on the classifier as it is, in float32.

    A part at a time on the images that still stand is what that function does itself, with the same seed for each batch.

    Args:
        seed: of every batch; the one that the function is called with is not used.
    """

    def function(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, _seed: int) -> Tensor:
        with _apart(classifier, images.device):
            attack = _standard(classifier, threat, seed, images.device)
            attack.attacks_to_run = [part]
            # Its norms take views of the batch, which only the plain layout has.
            candidates, _ = attack.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
        return Tensor(candidates.detach())

    return function


def _standard(classifier: Classifier, threat: Threat, seed: int, device: torch.device) -> Any:
    from pyautoattack import AutoAttack  # pulls in what only an evaluation needs

    attack = AutoAttack(classifier, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=device)
    # With C classes there are C - 1 others to aim at; the package would index past them.
    targets = min(MOST_TARGETS, classifier.num_classes - 1)
    attack.apgd_targeted.n_target_classes = targets
    attack.fab.n_target_classes = targets
    attack.square.seed = seed
    return attack


@contextmanager
def _apart(classifier: Classifier, device: torch.device) -> Iterator[None]:
    """The package's side effects stay inside the block: on random numbers, on gradients of weights, on a debugger's trace."""
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    trace = sys.gettrace()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            sys.settrace(trace)
            for parameter in trained:
                parameter.requires_grad_(True)
