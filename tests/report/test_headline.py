"""What the headline says of the highest figure: nothing that the figures do not carry."""

from __future__ import annotations

from functools import partial

from report_helpers import groups_of, make_run, write_evaluation

from aalp.report.headline import cautions, differing, lead
from aalp.report.telling import FEWEST_OTHERS, no_better_than_one_answer


def runs_of(folder, name: str, *robust: float) -> list:
    """Runs of an objective that differ in the seed, with these robust accuracies."""
    return [make_run(folder / f"{name}-seed{at}", name, at, value, analysis=False) for at, value in enumerate(robust)]


def test_a_lead_over_overlapping_intervals_is_not_called_one(tmp_path):
    paths = [make_run(tmp_path / name, name, robust=robust, analysis=False) for name, robust in (("at", 0.5), ("aalp", 0.6))]
    words = " ".join(lead(groups_of(*paths)))
    assert "that of aalp, 60.0" in words
    assert "overlaps that of at: by these intervals they are not shown to differ" in words
    far = make_run(tmp_path / "standard", "standard", robust=0.0, analysis=False)
    assert "overlaps" not in " ".join(lead(groups_of(paths[1], far)))


def test_a_lead_of_several_seeds_over_overlapping_seeds_is_not_called_one(tmp_path):
    runs = partial(runs_of, tmp_path)
    at, aalp, far = runs("at", 0.5, 0.625), runs("aalp", 0.6, 0.7), runs("standard", 0.1, 0.2)
    words = " ".join(lead(groups_of(*at, *aalp, *far)))
    assert "that of aalp, 65.0" in words
    assert "Its seeds overlap those" not in words
    assert "Its seeds overlap that of at: whether a mean is higher by more than chance, aalp compare tells." in words
    assert "overlap" not in " ".join(lead(groups_of(*aalp, *far)))


def test_a_lead_of_or_over_one_run_among_models_of_several_seeds_is_not_called_one(tmp_path):
    """By the one run's interval (15 points to either side here), not by its figure alone, which nothing would overlap."""
    runs = partial(runs_of, tmp_path)
    one, two, far = runs("alp", 0.5), runs("at", 0.475, 0.45), runs("standard", 0.1, 0.125)
    words = " ".join(lead(groups_of(*one, *two, *far)))
    assert "that of alp, 50.0" in words
    assert "It does not stand clear of at, by the seeds' figures and one seed's interval:" in words
    assert "One training seed of alp: how much another seed would change is not measured" in words
    ahead = runs("aalp", 0.6, 0.625)
    assert "It does not stand clear of alp, by the seeds' figures" in " ".join(lead(groups_of(*one, *ahead, *far)))
    clear = " ".join(lead(groups_of(*one, *far)))
    assert "clear" not in clear
    assert "One training seed of alp:" in clear
    # The interval is told where only models of one run are level.
    other = runs("clp", 0.475)
    assert "Its interval overlaps that of clp:" in " ".join(lead(groups_of(*one, *other, *far)))


def test_a_model_whose_audit_fails_is_called_so_where_it_is_called_the_highest(tmp_path):
    runs = [make_run(tmp_path / "alp", "alp", robust=0.9, audit="fail"), make_run(tmp_path / "at", "at", robust=0.5)]
    assert "that of alp, 90.0\u00a0%, which fails gates of the audit." in lead(groups_of(*runs))[0]
    told = "Gates of the audit fail for alp: what stands under attack there may be masked gradients, not robustness."
    assert told in cautions(groups_of(*runs))
    # Without an audit the evaluation's own gates speak.
    unaudited = make_run(tmp_path / "gates" / "alp", "alp", robust=0.9, audit=None)
    write_evaluation(unaudited, "test", 0.9, gates=[{"name": "gradient exists", "passed": False}])
    assert told in cautions(groups_of(unaudited))
    passing = make_run(tmp_path / "pass" / "alp", "alp", robust=0.9)
    write_evaluation(passing, "test", 0.9, gates=[{"name": "gradient exists", "passed": None}])
    assert cautions(groups_of(passing)) == []


def test_a_network_no_better_than_one_answer_for_all_images_is_named(tmp_path):
    runs = [make_run(tmp_path / name, name, audit=None, analysis=False) for name in ("mart", "at", "alp")]
    write_evaluation(runs[0], "test", 0.1, clean=0.1, majority=0.1)
    write_evaluation(runs[1], "test", 0.1, clean=0.9, majority=0.1)
    write_evaluation(runs[2], "test", 0.1, clean=0.8, majority=0.8)  # of 40, 8 are of other classes: too few to tell
    told = "No better than one answer for all images, which no attack can change: mart."
    assert [line for line in cautions(groups_of(*runs)) if "one answer" in line] == [told]


def test_ten_images_of_other_classes_are_enough_to_tell_one_answer_however_the_share_is_rounded():
    for images in range(2 * FEWEST_OTHERS, 200):
        for others, told in ((FEWEST_OTHERS, True), (FEWEST_OTHERS - 1, False)):
            share = (images - others) / images
            assert no_better_than_one_answer({"images": images, "clean": share, "majority": share}) is told


def test_validation_images_of_two_seeds_are_not_the_same_data(tmp_path):
    def data(digest: str) -> dict[str, str]:
        return {"name": "folder:pets", "split": "validation", "digest": "d" * 64, "validation_digest": digest}

    paths = [make_run(tmp_path / name, name, analysis=False) for name in ("at", "aalp")]
    for path, digest in zip(paths, "vv", strict=True):
        write_evaluation(path, "test", 0.5, data=data(digest))
    assert differing(groups_of(*paths)) == []
    write_evaluation(paths[1], "test", 0.5, data=data("w"))
    assert differing(groups_of(*paths)) == ["data"]
