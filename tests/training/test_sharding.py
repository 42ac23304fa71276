"""One batch on two and on three ranks: gradients, losses and logits of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from several_ranks import in_ranks
from torch import Tensor

from aalp.data.augment import augment
from aalp.distributed import ALONE, Ranks
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objectives import ALP, OBJECTIVES
from aalp.method.pgd import AttackOptions
from aalp.method.sample_weights import SampleWeights
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier
from aalp.training import step as step_module
from aalp.training.devices import Strategy, make_fabric, used
from aalp.training.sharded_weights import Weights
from aalp.training.sharding import ShardThreat
from aalp.training.step import TrainingStep

IMAGES = 7  # no equal shares for two ranks, nor for three
TIGHT, OF_FLOAT32 = 1e-12, 1e-6
"""Relative; some statistics of a batch are float32 whatever the model is."""

STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp")

CASES: dict[str, dict[str, Any]] = {
    **{name: {"objective": factory()} for name, (factory, _) in OBJECTIVES.items()},
    "attack through the mask": {"objective": AALP(dropout=GuidedDropout(ramp=0.0, attack=True))},
    "agreement": {"objective": AALP(weights=SampleWeights(rule="agreement", boost=0.5))},
    "weight perturbation": {"objective": ALP(), "awp": 0.01},
    "clipped": {"objective": ALP(), "clip": 0.01},
    "l2": {"objective": ALP(), "threat": L2(0.5)},
    "augmented": {"objective": ALP(), "augment": "crop+flip"},
}


def one_batch(ranks: Ranks, classifier: Classifier, case: dict[str, Any], strategy: Strategy = "ddp") -> dict[str, Tensor]:
    """Gradients, loss, its parts and logits of a step on this batch, in float64."""
    fabric = make_fabric(ranks, "64-true", [], classifier, (1, 8, 8), strategy)
    # Buckets of few numbers, so that there are some.
    weights = Weights(classifier, None, ranks, used(classifier, (1, 8, 8)) if strategy == "fsdp" else (), bucket=500)
    optimizer = torch.optim.SGD(weights.parameters, lr=0.1)
    module, wrapped = fabric.setup(step_module.OuterLoss(classifier, case["objective"], ranks), optimizer)
    attack = AttackOptions(steps=3)
    threat: Threat = case.get("threat", Linf(0.1))
    settings = {"awp": case.get("awp", 0.0), "awp_start": 0.0, "clip": case.get("clip"), "ranks": ranks}
    step = TrainingStep(fabric, module, classifier, weights, case["objective"], threat, attack, wrapped, **settings)
    pixels = torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(IMAGES) % 4
    generator = torch.Generator().manual_seed(2)
    shard = ranks.shard(IMAGES)
    images = augment(pixels[shard.rows], case.get("augment", "none"), generator, shard)
    loss, parts, logits = step.losses(images, labels, 0.9, generator)
    found = {"loss": loss, "logits": logits, **{f"part {name}": value for name, value in parts.items()}}
    found |= {f"gradient {name}": gradient.clone() for name, gradient in weights.joined(lambda each: each.grad).items()}
    step.update()
    with weights.whole():
        return found | {f"after {name}": value.clone() for name, value in classifier.state_dict().items()}


@pytest.fixture(scope="module")
def found(small_classifier: Callable[..., Classifier]) -> dict[int, list[dict[str, Any]]]:
    """By number of processes: what each rank found in each case."""

    def work(ranks: Ranks) -> dict[str, Any]:
        if ranks.rank == 1:
            attack = step_module.perturb

            def twice(classifier: Any, *arguments: Any, **more: Any) -> Tensor:
                """If the attack were anything but each rank's own affair, an attack more on one would disturb the others."""
                attack(classifier, *arguments, **{**more, "generator": torch.Generator()})  # a generator of its own
                adversarial = attack(classifier, *arguments, **more)
                assert all(parameter.grad is None for parameter in classifier.parameters())
                return adversarial

            step_module.perturb = twice
        return {
            (strategy, name): one_batch(ranks, small_classifier(4).double(), case, strategy)
            for strategy in STRATEGIES
            for name, case in CASES.items()
        }

    alone = {name: one_batch(ALONE, small_classifier(4).double(), case) for name, case in CASES.items()}
    return {1: [alone], 2: in_ranks(2, work), 3: in_ranks(3, work)}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_on_several_ranks_gives_the_gradients_of_one(
    strategy: Strategy, name: str, size: int, found: dict[int, Any]
) -> None:
    (alone,) = found[1]
    tolerance = OF_FLOAT32 if isinstance(CASES[name]["objective"], AALP) else TIGHT
    for rank in range(size):
        together = found[size][rank][strategy, name]
        assert together.keys() == alone[name].keys()
        for key, expected in alone[name].items():
            assert together[key].shape == expected.shape, key
            if expected.numel() == 0:  # no normalisation
                continue
            gap = (together[key] - expected).abs().max()
            assert gap <= tolerance * expected.abs().max().clamp_min(1e-3), (key, float(gap))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_end_a_step_with_the_same_bits(strategy: Strategy, name: str, found: dict[int, Any]) -> None:
    first, second = (rank[strategy, name] for rank in found[2])
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
@pytest.mark.parametrize("layout", ["plain", "channels last"])
def test_random_starts_are_those_of_the_whole_batch(threat: Threat, layout: str) -> None:
    images = torch.rand(5, 3, 4, 4)
    if layout == "channels last":
        images = images.to(memory_format=torch.channels_last)
    whole = threat.random_start(images, torch.Generator().manual_seed(0), 0.5)
    parts = []
    for rank in range(3):
        shard = Ranks(rank, 3).shard(5)
        sharded = ShardThreat(threat.eps, threat, shard)
        parts.append(sharded.random_start(images[shard.rows], torch.Generator().manual_seed(0), 0.5))
    assert torch.equal(torch.cat(parts), whole)
    assert sharded.norm == threat.norm
    assert bool(sharded.contains(sharded.project(whole + 1, images), images).all())
