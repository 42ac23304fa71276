from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_cli import parsed

from aalp.cli import main
from aalp.commands import audit as command
from aalp.commands.audit_table import report
from aalp.commands.config import ThreatOptions
from aalp.commands.evaluation_record import drop_under_autoattack
from aalp.data.sources import load_source
from aalp.errors import RunError
from aalp.evaluation import audit as evaluation_audit
from aalp.evaluation.autoattack_gap import DropUnderAutoAttack
from aalp.evaluation.bench import Effort
from aalp.evaluation.gates import GATES
from aalp.method.threat import L2
from aalp.store.checkpoint import write_tensors
from aalp.store.records import write_record
from aalp.store.run import RunDirectory

SMALL = Effort(steps=3, restarts=1, restart_steps=2, adaptive_steps=2, noises=2, queries=3, stand_in_steps=2)


@pytest.fixture(autouse=True)
def small_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own path at a hundredth of its cost; what gates come out as is tested in tests/evaluation."""
    monkeypatch.setattr(evaluation_audit, "QUICK", SMALL)
    monkeypatch.setattr(evaluation_audit, "THOROUGH", SMALL)
    monkeypatch.setattr(evaluation_audit, "FEWEST_RIGHT", 1)


def records(run: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "audits").iterdir())}


def test_a_record_has_the_verdict_and_every_gate_with_its_texts(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["audit", str(copied_run), "--quiet"])
    out, err = capsys.readouterr()
    assert err == ""
    ((name, record),) = records(copied_run).items()
    assert name == "best-001"
    assert record["kind"] == "audit"
    assert record["weights"] == str(copied_run / "weights" / "best.safetensors")
    assert record["threat"] == {"norm": "Linf", "eps": 0.1}
    assert (record["images"], record["thorough"], record["seed"]) == (18, False, 0)
    assert record["model"]["objective"] == "aalp"
    assert record["data"]["split"] == "test"
    assert [gate["name"] for gate in record["gates"]] == [gate.name for gate in GATES]
    for gate in record["gates"]:
        assert all(gate[text] for text in ("source", "rule", "meaning", "remedy", "detail"))
        assert gate["passed"] in (True, False, None)
        assert gate["seconds"] >= 0
        assert any(line.startswith(gate["name"]) for line in out.splitlines())
    decided = [gate["passed"] for gate in record["gates"] if not gate["optional"]]
    verdict = "fail" if False in decided else "inconclusive" if None in decided else "pass"
    assert record["verdict"] == verdict
    assert code == {"pass": 0, "fail": 3, "inconclusive": 4}[verdict]
    assert out.splitlines()[-1] == record["line"]
    assert 0 <= record["robust"] <= record["clean"] <= 1


def test_records_are_numbered_and_options_are_taken(copied_run: Path, tmp_path: Path) -> None:
    words = ["--quiet", "--images", "7", "--seed", "3"]
    main(["audit", str(copied_run), "--weights", "last", "--thorough", *words])
    main(["audit", str(copied_run), "--weights", "last", "--norm", "l2", "--eps", "1/2", *words])
    main(["audit", str(copied_run), "--out", str(tmp_path / "elsewhere"), *words])
    found = records(copied_run)
    assert list(found) == ["last-001", "last-002"]
    assert (found["last-001"]["thorough"], found["last-001"]["seed"], found["last-001"]["images"]) == (True, 3, 7)
    assert found["last-002"]["threat"] == {"norm": "L2", "eps": 0.5}
    assert (tmp_path / "elsewhere" / "best-001.json").is_file()


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 3), (None, 4)])
def test_exit_codes_follow_the_verdict(
    passed: bool | None, code: int, copied_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = evaluation_audit.g.GATES[:2]
    results = [
        evaluation_audit.GateResult(gates[0], evaluation_audit.Finding(0.0, True, "seen")),
        evaluation_audit.GateResult(gates[1], evaluation_audit.Finding(0.5, passed, "what was seen")),
    ]
    monkeypatch.setattr(command, "run_audit", lambda *given, **more: evaluation_audit.Audit(results, 18, 1.0, 0.5, 0.1, 2.0))
    assert main(["audit", str(copied_run), "--quiet"]) == code
    out = capsys.readouterr().out
    assert (f"means: {gates[1].meaning[:40]}" in out) is (passed is False)
    assert ("what was seen" in out) is (passed is not True)
    assert out.splitlines()[-1].startswith(("PASS", "FAIL", "INCONCLUSIVE"))


def test_a_reference_needs_evaluations_of_both_and_decides_the_gap(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = Path(shutil.copytree(copied_run, tmp_path / "reference"))
    words = ["audit", str(copied_run), "--reference", str(reference), "--quiet"]
    assert main(words) == 2
    told = f"aalp evaluate {copied_run} --weights best --norm linf --eps 0.1 --attacks pgd-20,autoattack"
    assert told in capsys.readouterr().err
    for run in (copied_run, reference):
        assert main(["evaluate", str(run), "--images", "4", "--attacks", "pgd-20,autoattack", "--quiet"]) == 0
    elsewhere = json.loads((reference / "evaluations" / "best-001.json").read_text())
    elsewhere["data"]["digest"] = "of other data"
    (reference / "evaluations" / "best-002.json").write_text(json.dumps({**elsewhere, "attacks": []}))
    (reference / "evaluations" / "best-001.json").write_text(json.dumps(elsewhere))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert f"'{reference}' has no evaluation of its best weights with pgd-20 and autoattack on npz:" in err
    shutil.copy(copied_run / "evaluations" / "best-001.json", reference / "evaluations" / "best-001.json")
    main(words)
    record = records(copied_run)["best-001"]
    gate = record["gates"][-1]
    assert record["reference"] == str(reference)
    assert gate["name"] == "PGD to AutoAttack gap"
    assert gate["passed"] is not None  # the same model twice: the gap is the reference's own
    assert gate["measured"] <= 1


def test_the_command_that_is_told_makes_the_evaluation_that_was_missing(tiny_npz: Path, tmp_path: Path) -> None:
    source, threat = load_source(f"npz:{tiny_npz}"), L2(128 / 255)
    (tmp_path / "config.yaml").write_text("data: digits\n")

    def evaluated(name: str, options: dict[str, Any], split: str) -> None:
        asked = ThreatOptions(options["norm"], options["eps"]).build()
        attacks = [{"name": "pgd-20", "accuracy": 0.5}, {"name": "autoattack", "accuracy": 0.4}]
        content = {"threat": {"norm": asked.norm, "eps": asked.eps}, "data": {"digest": source.digest, "split": split}}
        content |= {"weights": "weights/best.safetensors", "images": 10, "attacks": attacks}
        write_record(tmp_path / "evaluations" / f"{name}.json", "evaluation", content)

    with pytest.raises(RunError) as error:
        drop_under_autoattack(tmp_path, "best", threat, source)
    options = parsed(*shlex.split(str(error.value).split("`")[1])[1:])
    evaluated("best-001", options, "validation")
    with pytest.raises(RunError, match="has no evaluation"):
        drop_under_autoattack(tmp_path, "best", threat, source)
    evaluated("best-002", options, options["split"])
    assert drop_under_autoattack(tmp_path, "best", threat, source) == DropUnderAutoAttack(0.5, 0.4, 10)


def test_an_evaluation_from_before_training_went_on_decides_no_gap(tiny_npz: Path, tmp_path: Path) -> None:
    """Of a run, and so of a reference: its newest record may be of weights that are no more."""
    source, threat = load_source(f"npz:{tiny_npz}"), L2(0.5)
    (tmp_path / "config.yaml").write_text("data: digits\n")
    weights = RunDirectory(tmp_path).weights("last")
    content = {"threat": {"norm": "L2", "eps": 0.5}, "data": {"digest": source.digest, "split": "test"}}
    content |= {"weights": str(weights), "images": 10, "model": {"epoch": 3}}
    content |= {"attacks": [{"name": "pgd-20", "accuracy": 0.5}, {"name": "autoattack", "accuracy": 0.4}]}
    write_record(tmp_path / "evaluations" / "last-001.json", "evaluation", content)

    def found() -> DropUnderAutoAttack:
        return drop_under_autoattack(tmp_path, "last", threat, source)

    assert found() == DropUnderAutoAttack(0.5, 0.4, 10)  # without the weights nothing tells against it
    write_tensors(weights, {}, {"epoch": 3})
    assert found() == DropUnderAutoAttack(0.5, 0.4, 10)
    write_tensors(weights, {}, {"epoch": 9})
    with pytest.raises(RunError, match="has no evaluation of its last weights"):
        found()


def test_the_newest_evaluation_decides_the_gap_in_a_copy_of_a_run_too(tiny_npz: Path, tmp_path: Path) -> None:
    source, threat, folder = load_source(f"npz:{tiny_npz}"), L2(0.5), tmp_path / "evaluations"
    (tmp_path / "config.yaml").write_text("data: digits\n")
    for name, accuracy, created in (("best-001", 0.4, "2026-01-01"), ("best-002", 0.3, "2026-01-02")):
        content = {"threat": {"norm": "L2", "eps": 0.5}, "data": {"digest": source.digest, "split": "test"}}
        content |= {"weights": "weights/best.safetensors", "images": 10, "created": created}
        content |= {"attacks": [{"name": "pgd-20", "accuracy": 0.5}, {"name": "autoattack", "accuracy": accuracy}]}
        write_record(folder / f"{name}.json", "evaluation", content)
    os.utime(folder / "best-002.json", (0, 0))  # `cp -r` gives new times, in any order
    assert drop_under_autoattack(tmp_path, "best", threat, source) == DropUnderAutoAttack(0.5, 0.3, 10)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--images", "0"], "images is 0"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--eps", "0"], "eps is 0"),
        (["--reference", "nowhere"], "nowhere"),
        (["--thoroug"], "did you mean --thorough?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str], line: str, copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (copied_run / "evaluations").glob("*"):
        file.unlink()
    assert main(["audit", str(copied_run), "--quiet", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert line in err or "has no evaluation" in err
    assert not (copied_run / "audits").exists()


def test_the_verdict_stands_last_and_what_was_not_run_is_not_repeated() -> None:
    gate = {"name": "g", "unit": "points", "limit": 1, "rule": "r", "meaning": "m", "remedy": "do", "seconds": 0.0}
    record = {
        "images": 5,
        "data": {"name": "d"},
        "threat": {"norm": "Linf", "eps": 0.1},
        "weights": "w",
        "path": "p",
        "line": "FAIL: g",
        "gates": [
            {**gate, "passed": False, "measured": 12.345, "detail": "seen this", "optional": False},
            {**gate, "name": "h", "passed": None, "measured": None, "detail": "not run: because", "optional": False},
            {**gate, "name": "i", "passed": None, "measured": None, "detail": "not run: no reference", "optional": True},
        ],
    }
    text = report(record)
    assert "12.3 points" in text
    assert text.count("seen this") == 1
    assert "because" not in text
    assert text.splitlines()[-1] == "FAIL: g"


def test_compare_audits_each_cell_once_and_shows_the_verdicts(
    tmp_path: Path, train_words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = ["compare", *train_words[1:], "--run", str(run), "--objectives", "at,aalp", "--seeds", "0"]
    words += ["--evaluation.attacks", "fgsm", "--training.epochs", "1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count("1 run: cheap gates pass") == 2
    assert main([*words, "--audit"]) == 0
    out = capsys.readouterr().out
    comparison = json.loads((run / "comparison.json").read_text())
    assert "audit |" in (run / "comparison.md").read_text().splitlines()[2]
    for cell in comparison["cells"]:
        path = run / f"{cell['objective']}-seed0" / "audits" / "test-001.json"
        assert cell["audit"] == json.loads(path.read_text())["verdict"] in ("pass", "fail", "inconclusive")
        assert f"1 {cell['audit']}" in out
        assert comparison["audits"][cell["objective"]] == [cell["audit"]]

    def never(*given: Any, **more: Any) -> None:
        raise AssertionError("audited again")

    monkeypatch.setattr(command, "run_audit", never)
    assert main([*words, "--audit"]) == 0
    # What an audit found stays in the table of a later comparison that does not ask for it.
    assert main(words) == 0
    assert json.loads((run / "comparison.json").read_text())["audits"] == comparison["audits"]


@pytest.mark.parametrize(("split", "compares"), [("test", True), ("validation", False)])
def test_compare_audits_beside_the_at_row_where_both_were_evaluated_on_test_images(
    split: str, compares: bool, tmp_path: Path, train_words: list[str]
) -> None:
    """Figures of validation images are of others than the audit's: the gate is not run, and the comparison comes to its end."""
    words = ["compare", *train_words[1:], "--run", str(tmp_path / "run"), "--objectives", "at", "--seeds", "0", "--audit"]
    words += ["--evaluation.attacks", "pgd-20,autoattack", "--evaluation.images", "4", "--training.epochs", "1"]
    assert main([*words, "--evaluation.split", split]) == 0
    record = json.loads((tmp_path / "run" / "at-seed0" / "audits" / "test-001.json").read_text())
    assert (record["reference"] is not None) is compares
    assert record["gates"][-1]["detail"].startswith("not run: it needs a reference") is not compares
