"""What the objectives take and what they refuse: their numbers, labels of any integer type, what is no batch."""

from __future__ import annotations

import pytest
import torch
from method_helpers import ADVERSARIAL, ALL, CLEAN, HAND, LABELS, seeded, smooth_classifier
from torch import nn

from aalp.errors import DataError, ModelError, OptionError
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objectives import ALP, CLP, MART, OBJECTIVES, TRADES


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ALP, {"pairing_weight": -0.5}, r"pairing_weight is -0\.5: it has to be a finite number of at least 0"),
        (AALP, {"pairing_weight": float("inf")}, r"pairing_weight is inf: it has to be a finite number"),
        (CLP, {"pairing_weight": float("nan")}, r"pairing_weight is nan: it has to be a finite number"),
        (TRADES, {"beta": -1.0}, r"beta is -1\.0: it has to be a finite number of at least 0"),
        (MART, {"beta": float("nan")}, r"beta is nan: it has to be a finite number"),
        (AALP, {"distance": "k1"}, r"unknown pairing distance 'k1': did you mean 'kl'\?"),
        (AALP, {"adversary": "pair"}, r"unknown adversary 'pair': did you mean 'pairing'\?"),
        (ALP, {"clean_share": 1.5}, r"clean_share is 1\.5: it has to lie in \[0, 1\]"),
        (AALP, {"clean_share": -0.1}, r"clean_share is -0\.1: it has to lie in \[0, 1\]"),
        (AALP, {"final_clean_share": 2.0}, r"final_clean_share is 2\.0: it has to lie in \[0, 1\]"),
        (AALP, {"pairing_ramp": -1.0}, r"pairing_ramp is -1\.0: it has to lie in \[0, 1\]"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, options, message):
    with pytest.raises(OptionError, match=message):
        make(**options)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_named_objective_builds_and_takes_the_numbers_it_lists(name):
    make, numbers = OBJECTIVES[name]
    assert repr(make()) == repr(ALL[name])
    values = {"pairing_weight": 0.25, "clean_share": 0.75, "beta": 2.0, "dropout": GuidedDropout(mass=0.5), "weights": None}
    values |= {"distance": "kl", "adversary": "pairing", "pairing_ramp": 0.5, "final_clean_share": 0.25}
    built = make(**{number: values[number] for number in numbers})
    for number in numbers:
        assert getattr(built, number) == values[number]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_mean_the_same(name, kind):
    # As uint8 labels of as many images as there are classes would be a mask on the head's rows.
    classifier, images, labels = (
        smooth_classifier().float(),
        torch.rand(3, 1, 2, 3, generator=seeded()),
        torch.tensor([0, 1, 1]),
    )
    one, other = (ALL[name](classifier, images, images, given, generator=seeded()) for given in (labels, labels.to(kind)))
    assert one.total.equal(other.total)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (CLEAN, [0, 1], "labels are of type list: give a tensor of integers"),
        (CLEAN, torch.eye(2), r"labels are torch.float32 of shape \(2, 2\): .* labels.argmax"),
        (CLEAN, LABELS[:, None], r"labels are torch.int64 of shape \(2, 1\)"),
        (CLEAN, LABELS > 0, r"labels are torch.bool"),
        (CLEAN.byte(), LABELS, r"images are torch.uint8: .*images.float\(\) / 255"),
        (CLEAN.numpy(), LABELS, "images are of type ndarray: give a tensor"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_what_is_no_batch_is_refused_by_every_objective(name, images, labels, message):
    with pytest.raises(DataError, match=message):
        ALL[name](HAND, images, ADVERSARIAL, labels)


@pytest.mark.parametrize("progress", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("name", ALL)
def test_progress_that_is_no_share_is_refused(name, progress):
    with pytest.raises(OptionError, match=r"progress is .*: it has to lie in \[0, 1\]"):
        ALL[name](HAND, CLEAN, ADVERSARIAL, LABELS, progress=progress)


@pytest.mark.parametrize("name", ALL)
def test_pairs_of_which_one_side_is_short_are_refused(name):
    with pytest.raises(DataError, match=r"2 images and 1 adversarial ones: give one for each"):
        ALL[name](HAND, CLEAN, ADVERSARIAL[:1], LABELS)


def test_aalp_asks_for_a_classifier_where_it_is_given_a_network():
    with pytest.raises(ModelError, match=r"the classifier is a Linear: .* give it an aalp\.Classifier"):
        AALP()(nn.Linear(2, 2), CLEAN, ADVERSARIAL, LABELS)
