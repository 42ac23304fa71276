"""What the card of an exported model says, and what it does not claim."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from aalp.cli import main
from aalp.export.card import card
from aalp.export.robustbench import model_info
from aalp.export.subject import Subject, compare
from aalp.store.run import RunDirectory

EVALUATION: dict[str, Any] = {
    "weights": "run/weights/best.safetensors",
    "created": "2026-01-02T03:04:05+00:00",
    "command": "aalp evaluate run",
    "images": 10,
    "seed": 0,
    "clean": 0.9,
    "robust": 0.4,
    "intervals": {"clean": [0.6, 0.98], "robust": [0.17, 0.69]},
    "attacks": [{"name": "pgd-20", "accuracy": 0.5}, {"name": "autoattack", "accuracy": 0.4}],
    "threat": {"norm": "Linf", "eps": 0.1},
    "data": {"name": "npz:tiny.npz", "split": "test", "split_images": 18},
    "model": {"epoch": 2},
}
AUDIT: dict[str, Any] = {
    "verdict": "fail",
    "weights": "run/weights/best.safetensors",
    "created": "2026-01-02T03:04:05+00:00",
    "images": 10,
    "threat": {"norm": "Linf", "eps": 0.1},
    "data": {"name": "npz:tiny.npz", "split": "test"},
    "gates": [
        {"name": "black-box", "passed": False, "detail": "Square does better by 9 %"},
        {"name": "finite", "passed": True, "detail": "all finite"},
    ],
}


def test_the_card_tells_figures_verdict_and_limits(subject: Subject) -> None:
    checked = compare(subject, subject.classifier, 1e-5)
    bare = card(subject, "onnx", ["model.onnx"], checked)
    assert "robustness is unknown. `aalp evaluate" in bare
    assert "Not audited for masked gradients" in bare
    assert "Its numbers: adversary cross-entropy, clean_share 1.0, " in bare
    assert ", dropout.fraction 0.8, " in bare
    assert "has not come to its end" not in bare
    early = dataclasses.replace(subject, metadata={**subject.metadata, "unfinished": "3 of 9 epochs"})
    assert "The training has not come to its end: 3 of 9 epochs." in card(early, "onnx", ["model.onnx"], checked)
    whole = card(dataclasses.replace(subject, evaluation=EVALUATION, audit=AUDIT), "onnx", ["model.onnx"], checked)
    assert "| clean | 90.0% | 60.0% to 98.0% |" in whole
    assert "| autoattack | 40.0% |  |" in whole
    assert "On 10 of 18 test images of npz:tiny.npz, Linf eps 0.1" in whole
    assert "FAILED: the robust accuracy above may be an artefact" in whole
    assert "failed: black-box (Square does better by 9 %)" in whole
    assert "finite" not in whole.partition("## Audit")[2].partition("## Limits")[0].replace("infinite", "")
    assert "AutoAttack has not run" not in whole
    weaker = {**EVALUATION, "attacks": EVALUATION["attacks"][:1], "threat": {"norm": "Linf", "eps": 0.05}}
    weak = card(dataclasses.replace(subject, evaluation=weaker), "onnx", ["model.onnx"], checked)
    assert "AutoAttack has not run: the figures are optimistic" in weak
    assert "of another threat than the training's" in weak
    assert "of another threat" not in whole


def test_text_of_a_stranger_s_file_makes_no_lines_of_its_own_in_the_card(subject: Subject) -> None:
    evil = "a\n# robust\n|b"
    about = {**subject.metadata, "seed": evil, "epoch": evil, "objective": evil, "threat": {"norm": evil, "eps": 0.1}}
    threat, gate = {"norm": evil, "eps": 0.1}, {"name": evil, "passed": False, "detail": evil}
    measured = {**EVALUATION, "threat": threat, "created": evil, "command": evil, "data": {**EVALUATION["data"], "split": evil}}
    audited = {**AUDIT, "verdict": evil, "created": evil, "threat": threat, "gates": [gate]}
    checked = compare(subject, subject.classifier, 1e-5)
    for changes in ({"audit": audited}, {"audit": None, "evaluation": {**measured, "gates": [gate]}}):
        told = dataclasses.replace(subject, metadata=about, **{"evaluation": measured, **changes})
        assert "\n# robust" not in card(told, "onnx", ["model.onnx"], checked)


def test_figures_of_another_norm_are_called_so(subject: Subject) -> None:
    other = dataclasses.replace(subject, evaluation={**EVALUATION, "threat": {"norm": "L2", "eps": 0.1}})
    assert "of another threat than the training's" in card(other, "onnx", [], compare(subject, subject.classifier, 1e-5))


def test_the_card_of_a_file_tells_which_weights_it_is_where_its_name_does(copied_run: Path, tmp_path: Path) -> None:
    file = copied_run / "weights" / "last.safetensors"
    (tmp_path / "mine.safetensors").write_bytes(file.read_bytes())
    texts = []
    for at in (file, tmp_path / "mine.safetensors"):
        out = tmp_path / f"of {at.stem}"
        assert main(["export", str(at), "--to", "safetensors", "--out", str(out)]) == 0
        texts.append((out / "README.md").read_text())
    assert "(last)." in texts[0]
    assert f"`aalp evaluate {file} --weights last` measures it" in texts[0]
    assert "best" not in texts[0].partition("## Load it")[0] + texts[1]
    assert "--weights" not in texts[1]
    assert f"`aalp evaluate {tmp_path / 'mine.safetensors'}` measures it" in texts[1]


def test_the_card_of_a_model_that_nothing_attacked_claims_no_robustness(copied_run: Path) -> None:
    for attacks in ("clean", "fgsm"):
        assert main(["evaluate", str(copied_run), "--attacks", attacks, "--quiet"]) == 0
        assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert main(["evaluate", str(copied_run), "--attacks", "clean", "--quiet"]) == 0
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    first, *others = ((copied_run / "exports" / f"safetensors-{number:03d}" / "README.md").read_text() for number in (1, 2, 3))
    assert "Nothing was attacked: this model's robustness is unknown." in first
    assert "worst case" not in first
    assert all("| all of them (worst case) |" in text for text in others)


def test_the_card_speaks_of_the_data_that_the_model_was_trained_on(copied_run: Path, tiny_npz: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(tiny_npz))
    np.savez(tmp_path / "rotated.npz", **{n: np.rot90(a, axes=(1, 2)) if n.startswith("x_") else a for n, a in arrays.items()})
    other = ["--data", f"npz:{tmp_path / 'rotated.npz'}", "--quiet"]
    (tmp_path / "same.npz").write_bytes(tiny_npz.read_bytes())
    cards = []
    for words in (
        ["evaluate", *other, "--attacks", "fgsm,pgd-2"],
        ["audit", *other, "--images", "4"],
        ["evaluate", "--data", f"npz:{tmp_path / 'same.npz'}", "--attacks", "fgsm", "--quiet"],
    ):
        main([words[0], str(copied_run), *words[1:]])
        assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
        cards.append(sorted(copied_run.glob("exports/*/README.md"))[-1].read_text())
    elsewhere, audited, own = cards
    assert f"figures are of npz:{tmp_path / 'rotated.npz'}; the model was trained on npz:{tiny_npz}" in elsewhere
    assert f"images of npz:{tmp_path / 'rotated.npz'}" in audited.partition("## Audit")[2]
    assert "| pgd-2 |" not in own
    assert f"npz:{tmp_path / 'same.npz'}" in own
    assert "the model was trained on" not in own
    assert "Not audited" in own


def test_an_audit_speaks_on_the_card_of_a_run_that_was_not_evaluated(copied_run: Path) -> None:
    main(["audit", str(copied_run), "--images", "4", "--quiet"])
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    card_of_run = (copied_run / "exports" / "safetensors-001" / "README.md").read_text()
    assert "Not measured: this model's robustness is unknown" in card_of_run
    assert "Not audited" not in card_of_run


def test_the_records_of_other_weights_are_not_the_cards(copied_run: Path) -> None:
    words = ["evaluate", str(copied_run), "--attacks", "fgsm", "--quiet"]
    assert main([*words, "--weights", "last"]) == 0
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert "robustness is unknown" in (copied_run / "exports" / "safetensors-001" / "README.md").read_text()
    assert main(words) == 0
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert "| fgsm |" in (copied_run / "exports" / "safetensors-002" / "README.md").read_text()
    (record,) = RunDirectory(copied_run).evaluations.glob("best-*.json")
    content = json.loads(record.read_text())
    content["model"]["epoch"] = 99  # of weights that were trained on since
    record.write_text(json.dumps(content))
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert "robustness is unknown" in (copied_run / "exports" / "safetensors-003" / "README.md").read_text()


def test_model_info_has_robustbench_s_fields_and_only_measured_figures(subject: Subject) -> None:
    cifar = {**subject.metadata, "data": {"name": "torchvision:CIFAR10"}, "threat": {"norm": "linf", "eps": 8 / 255}}
    weaker = {**EVALUATION, "data": {**EVALUATION["data"], "name": "torchvision:CIFAR10"}}
    evaluation = {**weaker, "threat": {"norm": "Linf", "eps": 8 / 255}}
    info = model_info(dataclasses.replace(subject, metadata=cifar, evaluation=evaluation, audit=AUDIT))
    fields = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported"
    assert list(info) == [*fields.split(), "autoattack_acc", "unreliable", "footnote"]
    assert (info["dataset"], info["eps"], info["architecture"]) == ("cifar10", "8/255", "SmallCNN")
    assert (info["clean_acc"], info["autoattack_acc"], info["unreliable"]) == ("90.00", "40.00", True)
    other_threat = model_info(dataclasses.replace(subject, metadata=cifar, evaluation=weaker))
    assert (other_threat["clean_acc"], other_threat["autoattack_acc"], other_threat["reported"]) == ("90.00", None, None)
    elsewhere = model_info(dataclasses.replace(subject, metadata=cifar, evaluation=EVALUATION))
    for bare in (model_info(subject), elsewhere):
        assert (bare["clean_acc"], bare["autoattack_acc"], bare["unreliable"]) == (None, None, False)
