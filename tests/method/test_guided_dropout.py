"""Guided Dropout: which features it may drop, and what the mask does to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_helpers import seeded

from aalp.errors import OptionError
from aalp.method.contributions import contributions
from aalp.method.guided_dropout import GuidedDropout, guided_set, keep_mask

ROW = [0.5, -3.0, 0.1, 2.0, -0.2]


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        # |c| = 0.5, 3, 0.1, 2, 0.2. The lowest floor(0.4 * 5) = 2: the features 2 and 4.
        (GuidedDropout(fraction=0.4), [2, 4]),
        # floor(0.5 * 5) = 2 still; floor(0.6 * 5) = 3 takes feature 0 as well.
        (GuidedDropout(fraction=0.5), [2, 4]),
        (GuidedDropout(fraction=0.6), [0, 2, 4]),
        (GuidedDropout(fraction=0.0), []),
        (GuidedDropout(fraction=1.0), [0, 1, 2, 3, 4]),
        # Signed: -3 and -0.2 are the lowest, although -3 is the largest in magnitude.
        (GuidedDropout(score="signed", fraction=0.4), [1, 4]),
        (GuidedDropout(score="signed", fraction=0.6), [1, 2, 4]),
        # |c| in order: 3, 2, 0.5, 0.2, 0.1, together 5.8. 0.8 of it is 4.64: 3 + 2 = 5 carries that.
        (GuidedDropout(selection="mass", mass=0.8), [0, 2, 4]),
        # 0.9 of it is 5.22: 3 + 2 + 0.5 = 5.5.
        (GuidedDropout(selection="mass", mass=0.9), [2, 4]),
        # 0.5 of it is 2.9: 3 alone.
        (GuidedDropout(selection="mass", mass=0.5), [0, 2, 3, 4]),
        (GuidedDropout(selection="mass", mass=0.0), [0, 1, 2, 3, 4]),
        (GuidedDropout(selection="mass", mass=1.0), []),
        # Signed, positive: 2, 0.5, 0.1, together 2.6. 0.7 of it is 1.82: 2 alone; 0.9 is 2.34: 2 + 0.5; 1 asks for all three.
        (GuidedDropout(score="signed", selection="mass", mass=0.7), [0, 1, 2, 4]),
        (GuidedDropout(score="signed", selection="mass", mass=0.9), [1, 2, 4]),
        (GuidedDropout(score="signed", selection="mass", mass=1.0), [1, 4]),
    ],
)
def test_the_guided_set_by_hand(options, dropped):
    chosen = guided_set(torch.tensor([ROW]), options)
    assert chosen.dtype == torch.bool
    assert chosen[0].nonzero()[:, 0].tolist() == dropped


def test_each_image_has_its_own_guided_set():
    rows = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [-9.0, 0.0, 1.0]])
    assert guided_set(rows, GuidedDropout(fraction=0.4)).tolist() == [
        [False, False, True],
        [True, False, False],
        [False, True, False],
    ]


@pytest.mark.parametrize(
    ("fraction", "features", "count"),
    # In binary 0.29 * 100 is 28.999999999999996; the fraction that was asked for is 29 of 100.
    [(0.8, 512, 409), (0.8, 200, 160), (0.29, 100, 29), (0.57, 100, 57), (0.1, 9, 0), (0.99, 64, 63), (1.0, 64, 64)],
)
def test_rank_chooses_exactly_the_lowest_floor_of_the_fraction(fraction, features, count):
    rows = torch.randn(4, features, generator=seeded())
    chosen = guided_set(rows, GuidedDropout(fraction=fraction))
    assert chosen.sum(1).tolist() == [count] * 4
    for row, selected in zip(rows.abs(), chosen, strict=True):
        if 0 < count < features:
            assert row[selected].max() < row[~selected].min()


def test_ties_are_settled_by_position():
    # All alike: the last ones may be dropped, the same number in every image.
    chosen = guided_set(torch.ones(2, 5), GuidedDropout(fraction=0.4))
    assert chosen.tolist() == [[False, False, False, True, True]] * 2


@given(mass=st.floats(0.01, 0.99), features=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_mass_leaves_the_fewest_features_that_carry_it(mass, features, seed):
    rows = torch.randn(3, features, generator=seeded(seed))
    chosen = guided_set(rows, GuidedDropout(selection="mass", mass=mass))
    for row, selected in zip(rows.abs().double(), chosen, strict=True):
        kept = row[~selected]
        assert kept.sum() >= mass * row.sum() * (1 - 1e-5)
        # One fewer would not do.
        assert kept.sum() - kept.min() < mass * row.sum()
        if selected.any():
            assert row[selected].max() <= kept.min()


@pytest.mark.parametrize("score", ["magnitude", "signed"])
def test_mass_may_drop_everything_where_nothing_contributes(score):
    rows = torch.zeros(2, 4) if score == "magnitude" else -torch.ones(2, 4)
    options = GuidedDropout(score=score, selection="mass")
    assert guided_set(rows, options).all()
    assert keep_mask(rows, options, generator=seeded()).isfinite().all()


def test_the_mask_leaves_high_contributions_alone_and_drops_or_scales_the_rest():
    rows = torch.tensor([ROW]).expand(500, -1)
    mask = keep_mask(rows, GuidedDropout(fraction=0.4, probability=0.75), generator=seeded())
    # Survivors are scaled by 1 / (1 - 0.75) = 4.
    assert torch.equal(mask[:, [0, 1, 3]], torch.ones(500, 3))
    assert set(mask[:, [2, 4]].flatten().tolist()) == {0.0, 4.0}


@pytest.mark.parametrize("selection", ["rank", "mass"])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_expected_value_of_a_feature_is_preserved(selection, probability):
    count = 20_000
    rows = torch.tensor([ROW]).expand(count, -1)
    options = GuidedDropout(selection=selection, fraction=0.6, mass=0.8, probability=probability)
    mask = keep_mask(rows, options, generator=seeded())
    # A factor of 0 or 1 / (1 - p) has mean 1 and variance p / (1 - p).
    error = (probability / (1 - probability) / count) ** 0.5
    assert (mask.mean(0) - 1).abs().max() < 5 * error
    dropped = (mask == 0).float().mean(0)
    assert dropped[[1, 3]].sum() == 0
    assert (dropped[[0, 2, 4]] - probability).abs().max() < 5 * (probability * (1 - probability) / count) ** 0.5


def test_features_and_images_are_dropped_independently():
    count = 20_000
    mask = keep_mask(torch.zeros(count, 2), GuidedDropout(fraction=1.0, probability=0.5), generator=seeded())
    # Factors are 0 or 2; both together 2 in a quarter of the images, next to each other as well.
    error = 5 * (0.25 * 0.75 / count) ** 0.5
    assert abs((mask[:, 0] * mask[:, 1] / 4).mean() - 0.25) < error
    assert abs((mask[:-1, 0] * mask[1:, 0] / 4).mean() - 0.25) < error


@pytest.mark.parametrize(
    ("ramp", "progress", "probability"),
    # 0.6 times the share of the ramp that is done.
    [(0.3, 0.0, 0.0), (0.3, 0.1, 0.2), (0.3, 0.15, 0.3), (0.3, 0.3, 0.6), (0.3, 1.0, 0.6), (1.0, 0.5, 0.3), (0.0, 0.0, 0.6)],
)
def test_the_probability_ramps_up(ramp, progress, probability):
    options = GuidedDropout(probability=0.6, ramp=ramp)
    assert options.probability_at(progress) == pytest.approx(probability)
    mask = keep_mask(torch.zeros(100, 100), options, progress, seeded())
    # 80 of each 100 features may be dropped.
    assert (mask == 0).float().mean().item() == pytest.approx(0.8 * probability, abs=0.02)
    assert mask.max().item() == pytest.approx(1 / (1 - probability))


@pytest.mark.parametrize(
    ("options", "progress"),
    [
        (GuidedDropout(probability=0.0), 1.0),
        (GuidedDropout(probability=0.9), 0.0),
        (GuidedDropout(probability=0.9, fraction=0.0), 1.0),
    ],
)
def test_a_mask_that_drops_nothing_is_all_ones(options, progress):
    assert torch.equal(keep_mask(torch.randn(3, 7), options, progress, seeded()), torch.ones(3, 7))


def test_a_generator_decides_the_mask_alone():
    rows = torch.randn(4, 50, generator=seeded())
    state = torch.get_rng_state()
    first, again, other = (keep_mask(rows, GuidedDropout(), generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_gradient_flows_through_a_mask():
    rows = torch.randn(4, 50, requires_grad=True)
    mask = keep_mask(rows, GuidedDropout(), generator=seeded())
    assert not mask.requires_grad
    assert (mask == 0).any()


def ignorant_batch(count=4_000, width=64, classes=10):
    """Features that know nothing of their labels, and a head that favours no class."""
    random = seeded()
    features = torch.rand(count, width, generator=random)
    weight = torch.randn(classes, width, generator=random)
    return features, weight - weight.mean(1, keepdim=True), torch.randint(classes, (count,), generator=random)


def masked_logits(features, weight, labels, **options):
    mask = keep_mask(contributions(features, weight, labels), GuidedDropout(**options), generator=seeded(1))
    return (features * mask) @ weight.T


def test_signed_scores_leak_the_label():
    """The documented danger: a signed score drops evidence against the label, and predictions show it."""
    features, weight, labels = ignorant_batch()

    def accuracy(logits):
        return (logits.argmax(1) == labels).float().mean().item()

    plain = accuracy(features @ weight.T)
    signed, magnitude = (
        accuracy(masked_logits(features, weight, labels, score=score, fraction=0.5, probability=0.9))
        for score in ("signed", "magnitude")
    )
    # Chance is 0.1, and five standard errors of it are 0.024. Measured: 0.10 plain, 0.21 signed, 0.03 magnitude.
    assert plain == pytest.approx(0.1, abs=0.024)
    assert signed > 0.15
    assert magnitude < 0.1


@pytest.mark.parametrize("score", ["signed", "magnitude"])
def test_the_leak_is_not_in_the_mean_as_survivors_are_scaled(score):
    """By hand: c = (3, -1, -2) with -1 and -2 dropped at p = 1/2 makes z = 3, 1, -1 or -3, each as often: 0 on average."""
    hand = torch.tensor([[3.0, -1.0, -2.0]]).expand(4_000, -1)
    mask = keep_mask(hand, GuidedDropout(score="signed", fraction=0.7), generator=seeded())
    assert set((hand * mask).sum(1).tolist()) == {3.0, 1.0, -1.0, -3.0}
    # Their variance is (9 + 1 + 1 + 9) / 4 = 5.
    assert abs((hand * mask).sum(1).mean()) < 5 * (5 / 4_000) ** 0.5

    features, weight, labels = ignorant_batch()
    change = masked_logits(features, weight, labels, score=score, fraction=0.5) - features @ weight.T
    evidence = change.gather(1, labels[:, None])[:, 0]
    assert evidence.std() > 0.1
    assert abs(evidence.mean()) < 5 * evidence.std() / 4_000**0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "absolute"}, r"score is 'absolute': choose magnitude or signed"),
        ({"selection": "top"}, r"selection is 'top': choose rank or mass"),
        ({"fraction": 1.2}, r"fraction is 1\.2: it has to lie in \[0, 1\]"),
        ({"mass": -0.1}, r"mass is -0\.1: it has to lie in \[0, 1\]"),
        ({"ramp": float("nan")}, r"ramp is nan: it has to lie in \[0, 1\]"),
        ({"probability": 1.0}, r"probability is 1\.0: it has to lie in \[0, 1\)"),
        ({"probability": -0.5}, r"probability is -0\.5: it has to lie in \[0, 1\)"),
        ({"probability": float("nan")}, r"probability is nan: it has to lie in \[0, 1\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        GuidedDropout(**options)
