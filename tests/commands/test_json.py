"""--json: one document on stdout whatever happens, with what docs/cli.md promises for each verb."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path
from typing import IO, Any

import pytest

from aalp.cli import VERBS, main
from aalp.commands import console
from aalp.commands.console import json_document, print_out
from aalp.errors import AalpError
from aalp.manual.page import RESULTS
from aalp.parsing import parse


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    """What a command prints as JSON, seen to be all that it prints on stdout."""
    assert main([*words, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(found) == ["schema", "verb", "command", "exit_code", "error", "result"]
    assert (found["schema"], found["verb"], found["exit_code"]) == (1, words[0], code)
    assert found["command"] == shlex.join(["aalp", *words, "--json"])
    assert (found["error"] is None) == (code in (0, 3, 4))
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, train_words: list[str]) -> Path:
    return tmp_path_factory.mktemp("json") / "compared"


def test_training_and_comparing(
    compared: Path, train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shortest = ["--training.epochs", "1", "--evaluation.attacks", "fgsm", "--evaluation.images", "4"]
    words = [*train_words, *shortest, "--evaluate", "--run", str(tmp_path / "run")]
    result = document(capsys, *words)["result"]
    assert set(result) == set(RESULTS["train"])
    assert result["run"] == str(tmp_path / "run")
    assert Path(result["weights"]["best"]).is_file()
    assert result["steps"] == 4
    assert result["evaluation"]["images"] == 4
    words = ["compare", *train_words[1:], *shortest, "--objectives", "at", "--seeds", "0", "--run", str(compared)]
    result = document(capsys, *words)["result"]
    assert set(RESULTS["compare"]) <= set(result)
    assert json.loads(Path(result["path"]).read_text())["table"] == result["table"]


def test_printing_options_is_done_and_spoils_nothing_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    document(capsys, "train", "--print_config")
    assert main(["train", "--training.epochs", "3", "--print-config"]) == 0
    assert "epochs: 3\n" in capsys.readouterr().out
    document(capsys, "train", "--print_config", "--training.epochs", "many", code=2)
    with pytest.raises(AalpError, match="'few'"):
        parse("train", ["--training.epochs", "few"])
    assert parse("train", ["--training.epochs", "2"])["training"].epochs == 2


def test_evaluating_analyzing_and_reporting(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = document(capsys, "evaluate", str(copied_run), "--attacks", "fgsm", "--images", "4", "--quiet")["result"]
    assert set(RESULTS["evaluate"]) <= set(result)
    assert json.loads(Path(result["path"]).read_text())["robust"] == result["robust"]
    result = document(capsys, "analyze", str(copied_run), "--images", "4", "--quiet")["result"]
    assert set(RESULTS["analyze"]) <= set(result)
    result = document(capsys, "report", str(copied_run))["result"]
    assert Path(result["path"]).is_file()


def test_checking_data_and_exporting(
    tiny_run: Path, tiny_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = document(capsys, "data", f"npz:{tiny_npz}", "--out", str(tmp_path / "check"))["result"]
    assert set(RESULTS["data"]) <= set(result)
    assert result["splits"] == json.loads(Path(result["path"]).read_text())["splits"]
    assert Path(result["images"]).is_file()
    assert Path(result["contact_sheet"]).is_file()
    words = ["export", str(tiny_run), "--to", "safetensors", "--out", str(tmp_path / "exported")]
    result = document(capsys, *words)["result"]
    assert set(RESULTS["export"]) <= set(result)
    assert all((Path(result["path"]) / name).is_file() for name in result["files"])


def test_searching(train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", *train_words[1:], "--run", str(tmp_path / "search"), "--space", "{method.pairing_weight: [0.25, 0.5]}"]
    result = document(capsys, *words, "--trials", "1", "--training.epochs", "1")["result"]
    assert set(RESULTS["search"]) <= set(result)
    assert result["best"] == result["trials"][0]
    assert Path(result["config"]).is_file()


def test_every_verb_tells_what_its_document_holds() -> None:
    assert list(RESULTS) == list(VERBS)


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 3), ("inconclusive", 4)])
def test_auditing_keeps_its_exit_code(
    verdict: str, code: int, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"verdict": verdict, "line": verdict, "gates": [], "path": "there", "images": 1, "weights": "w"}
    record |= {"data": {"name": "d"}, "threat": {"norm": "linf", "eps": 0.1}}
    monkeypatch.setattr("aalp.commands.audit.audit_model", lambda *_: record)
    result = document(capsys, "audit", str(tiny_run), "--out", str(tmp_path), code=code)["result"]
    assert set(RESULTS["audit"]) <= set(result)
    assert result["verdict"] == verdict


@pytest.mark.parametrize(
    ("words", "kind", "needle"),
    [
        (["evaluate", "nowhere"], "RunError", "'nowhere' does not exist"),
        (["train", "--objektive", "at"], "AalpError", "did you mean --objective?"),
        (["trian"], "OptionError", "did you mean 'train'?"),
    ],
)
def test_an_error_is_a_document_too(words: list[str], kind: str, needle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["exit_code"], found["error"]["kind"]) == (2, kind)
    assert needle in found["error"]["message"]
    assert err == f"aalp: {found['error']['message']}\n"


def test_a_bug_of_ours_still_leaves_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    def halfway() -> None:
        with json_document("train", "aalp train"):
            print_out("halfway", {"run": "there"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        halfway()
    found = json.loads(capsys.readouterr().out)
    assert (found["exit_code"], found["error"]["kind"], found["result"]) == (1, "Exception", {"run": "there"})
    assert console._document is None


def test_a_library_that_prints_is_kept_out(capsys: pytest.CaptureFixture[str]) -> None:
    with json_document("data", "aalp data"):
        print("downloading ...")
        print_out("3 classes", {"classes": 3})
        print_out("7 images", {"images": 7})
    out, err = capsys.readouterr()
    assert json.loads(out)["result"] == {"classes": 3, "images": 7}
    assert err == "downloading ...\n"


def test_without_json_the_text_is_printed_alone(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run}/report.html\n"


def test_a_command_that_is_told_can_be_given_to_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "report", str(tmp_path / "my runs"), code=2)
    assert found["command"] == f"aalp report '{tmp_path / 'my runs'}' --json"


def test_a_reader_of_the_document_that_goes_away_ends_it_quietly(
    unread: IO[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", unread)
    monkeypatch.setattr("sys.stderr", io.StringIO())  # closed, so that Python tells nothing of it at its end
    assert main(["report", str(tmp_path / "nowhere"), "--json"]) == 2
