"""What is read from runs, which record speaks for a run, and which runs are one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from report_helpers import groups_of, make_run, write_analysis, write_audit, write_evaluation

from aalp.errors import RunError
from aalp.report.collect import read_run
from aalp.store.checkpoint import write_tensors


def read(path: Path):
    return read_run(path, yaml.safe_load((path / "config.yaml").read_text()))


def test_a_run_with_nothing_in_it_has_nothing(tmp_path):
    (tmp_path / "config.yaml").write_text("objective: at\n")
    run = read(tmp_path)
    assert (run.evaluation, run.audit, run.analysis, run.gallery) == (None, None, None, None)
    assert run.metrics == {}
    assert run.objective == "at"


def test_cells_that_are_empty_or_not_finite_are_none(tmp_path):
    metrics = read(make_run(tmp_path / "run")).metrics
    assert metrics["epoch"] == [1, 2, 3, 4, 5]
    assert metrics["loss"][0] == 2.3
    assert metrics["conflict_rate"][0] is None
    assert metrics["validation_robust"][0] is None


def test_the_evaluation_in_front_is_chosen_without_looking_at_accuracy(tmp_path):
    path = make_run(tmp_path / "run", robust=0.2)
    # All of these flatter, and each lacks something: AutoAttack, the trained threat, the best weights, test images, images.
    pgd = [{"name": "pgd-20", "accuracy": 0.9, "attacked": 1, "seconds": 0.0, "settings": {}, "parts": []}]
    write_evaluation(path, "weak", 0.9, attacks=pgd, images=80)
    write_evaluation(path, "small-eps", 0.9, threat={"norm": "Linf", "eps": 1 / 255})
    write_evaluation(path, "other-norm", 0.9, threat={"norm": "L2", "eps": 8 / 255})
    write_evaluation(path, "last", 0.9, weights="run/weights/last.safetensors")
    write_evaluation(path, "few", 0.9, images=20)
    held_out = {"name": "folder:pets", "split": "validation", "digest": "d"}
    write_evaluation(path, "validation", 0.9, data=held_out, images=80)
    run = read(path)
    assert len(run.evaluations) == 7
    assert run.evaluation["path"].name == "test.json"


@pytest.mark.parametrize(
    ("changes", "vouches"),
    [
        ({}, True),
        ({"threat": {"norm": "linf", "eps": 8 / 255}}, True),
        ({"weights": "elsewhere/best.safetensors"}, True),
        ({"weights": "run/weights/last.safetensors"}, False),
        ({"threat": {"norm": "Linf", "eps": 4 / 255}}, False),
        ({"threat": {"norm": "L2", "eps": 8 / 255}}, False),
        ({"data": {"name": "folder:dogs", "split": "test", "digest": "e" * 64}}, False),
        ({"data": {"name": "folder:/home/pets", "split": "test", "digest": "d" * 64}}, True),
        ({"model": {"epoch": 5}}, True),
        ({"model": {"epoch": 3}}, False),  # training went on since, and wrote other weights under the same name
    ],
)
def test_an_audit_vouches_for_its_own_weights_data_and_threat_alone(tmp_path, changes, vouches):
    path = make_run(tmp_path / "run", audit=None)
    write_audit(path, "pass", **changes)
    run = read(path)
    assert len(run.audits) == 1
    assert (run.audit is not None) is vouches


def test_an_evaluation_from_before_training_went_on_does_not_speak(tmp_path):
    """Of more images, and under the same name: but those weights are no more."""
    path = make_run(tmp_path / "run")
    about = {"model": "small-cnn", "objective": "aalp", "seed": 0, "parameters": 1}
    for name, created, epoch, images in (("early", "2020", 2, 400), ("test", "2021", 5, 40), ("last", "2022", 9, 40)):
        file = "last" if name == "last" else "best"
        model = {**about, "epoch": epoch}
        write_evaluation(path, name, 0.5, model=model, images=images, weights=f"{path}/weights/{file}.safetensors")
        record = path / "evaluations" / f"{name}.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "created": created}))
    assert [record["path"].stem for record in read(path).evaluations] == ["test", "last", "early"]


def test_the_newest_audit_and_analysis_speak(tmp_path):
    path = make_run(tmp_path / "run", audit="pass")
    write_audit(path, "fail", number=2)
    write_analysis(path, 0.3, ["a", "b"], number=2)
    for file, created in (("audits/best-001.json", "2020"), ("analyses/best-001/analysis.json", "2020")):
        record = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({**record, "created": created}))
    run = read(path)
    assert run.audit["verdict"] == "fail"
    assert run.analysis["classes"] == ["a", "b"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluations/test.json", "{", "is not a readable record"),
        ("audits/best-001.json", '{"schema": 1, "kind": "audit", "gates": []}', "has no verdict"),
        ("metrics.csv", "epoch,loss\n1,high\n", "is not a readable table of metrics"),
        ("analyses/best-001/gallery.safetensors", "?", "is not a readable safetensors file"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    path = make_run(tmp_path / "run")
    (path / file).write_text(content)
    with pytest.raises(RunError, match=message) as error:
        read(path)
    assert str(path / file) in str(error.value)


def test_runs_that_differ_in_seed_alone_are_one_model(tmp_path):
    paths = [
        make_run(tmp_path / f"{name}-seed{seed}", name, seed, analysis=False) for seed in (0, 1) for name in ("at", "aalp")
    ]
    groups = groups_of(*paths)
    assert [(group.name, [run.seed for run in group.runs]) for group in groups] == [("at", [0, 1]), ("aalp", [0, 1])]
    assert groups[0].look != groups[1].look


def test_models_are_named_by_what_tells_them_apart(tmp_path):
    one = make_run(tmp_path / "one-seed0", "aalp", analysis=False)
    two = make_run(tmp_path / "two-seed0", "aalp", analysis=False, method={"pairing_weight": 1})
    same_name = make_run(tmp_path / "other" / "one-seed0", "aalp", analysis=False, method={"pairing_weight": 2})
    assert [group.name for group in groups_of(one, two)] == ["one", "two"]
    assert [group.name for group in groups_of(one, same_name)] == [str(one), str(same_name)]


def test_the_same_options_and_seed_twice_are_two_models(tmp_path):
    paths = [make_run(tmp_path / name, "aalp", 0, analysis=False) for name in ("first", "second")]
    assert [len(group.runs) for group in groups_of(*paths)] == [1, 1]


def attacks(*names, accuracy=0.9):
    return [{"name": name, "accuracy": accuracy, "attacked": 1, "seconds": 0.0, "settings": {}, "parts": []} for name in names]


@pytest.mark.parametrize(
    ("weaker", "stronger"),
    [
        ((), ("fgsm",)),
        (("fgsm",), ("pgd-20", "cw-40")),
        (("pgd-20",), ("fgsm", "pgd-20")),
        (("pgd-5", "cw-5"), ("pgd-100",)),
        (("pgd-20",), ("apgd-ce",)),
        (("pgd-1000",), ("autoattack",)),
    ],
)
def test_stronger_attacks_speak_before_more_images_and_any_attack_before_none(tmp_path, weaker, stronger):
    path = make_run(tmp_path / "run")
    write_evaluation(path, "newer", 0.9, attacks=attacks(*weaker), images=80)
    write_evaluation(path, "test", 0.2, attacks=attacks(*stronger), images=20)
    assert read(path).evaluation["path"].name == "test.json"


def test_attacks_on_other_weights_or_a_validation_split_speak_before_no_attack(tmp_path):
    path = make_run(tmp_path / "run")
    held_out = {"name": "folder:pets", "split": "validation", "digest": "d"}
    write_evaluation(path, "test", 0.2, data=held_out, weights="run/weights/last.safetensors")
    write_evaluation(path, "clean", 0.9, attacks=[])
    run = read(path)
    assert run.evaluation["path"].name == "test.json"
    # Earlier versions wrote the clean accuracy as the robust one of such a record.
    assert run.evaluations[1]["robust"] is None


def test_the_number_of_other_attacks_does_not_outweigh_the_images_of_autoattack(tmp_path):
    path = make_run(tmp_path / "run")
    write_evaluation(path, "few", 0.9, attacks=attacks("pgd-20", "cw-40", "autoattack"), images=10)
    write_evaluation(path, "test", 0.2, attacks=attacks("autoattack"))
    assert read(path).evaluation["path"].name == "test.json"


ELSEWHERE = {"name": "npz:rot.npz", "split": "test", "digest": "e" * 64, "split_images": 80}


def test_the_data_that_a_run_was_trained_on_speaks_whatever_attacked_other_data(tmp_path):
    path = make_run(tmp_path / "run")
    write_evaluation(path, "test", 0.2, attacks=attacks("fgsm"), images=10)
    write_evaluation(path, "other", 0.9, data=ELSEWHERE)
    run = read(path)
    assert (run.evaluation["path"].name, run.data) == ("test.json", "folder:pets")
    assert [run.of_trained_data(record) for record in run.evaluations] == [True, False]


def test_the_same_data_under_another_name_is_known_by_what_the_weights_say(tmp_path):
    path = make_run(tmp_path / "run")
    write_evaluation(path, "test", 0.2, data={**ELSEWHERE, "name": "folder:/home/pets", "digest": "d" * 64})
    assert not read(path).of_trained_data(read(path).evaluation)
    about = {"kind": "weights", "data": {"name": "folder:pets", "digest": "d" * 64}}
    write_tensors(path / "weights" / "best.safetensors", {"a": torch.zeros(1)}, about)
    assert read(path).of_trained_data(read(path).evaluation)


def test_a_newer_analysis_of_fewer_images_does_not_speak(tmp_path):
    path = make_run(tmp_path / "run")
    write_analysis(path, 0.3, ["a", "b"], number=2)
    file = path / "analyses" / "best-002" / "analysis.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "created": "3000", "images": 1}))
    assert read(path).analysis["images"] == 40
