from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
import yaml

from aalp.cli import main
from aalp.commands.beginning import begin_next
from aalp.commands.console import Display
from aalp.commands.loading import load
from aalp.store.checkpoint import read_metadata, read_tensors
from aalp.store.files import claimed
from aalp.store.records import read_record


def test_a_run_directory_holds_what_later_verbs_need(tiny_run: Path) -> None:
    found = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/")}
    assert found - events == {
        "config.yaml",
        "metrics.csv",
        "weights/last.safetensors",
        "weights/best.safetensors",
        "states/step-00000004.safetensors",
        "states/step-00000008.safetensors",
    }
    with (tiny_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8")]
    columns = {"loss", "lr", "train_accuracy", "validation_clean", "validation_robust", "images_per_second", "seconds"}
    assert columns < set(rows[0])


def test_weights_say_how_they_were_made(tiny_run: Path, tiny_npz: Path) -> None:
    about = read_metadata(tiny_run / "weights" / "last.safetensors")
    classifier = load(tiny_run, "last")
    assert about["model"] == "small-cnn"
    assert about["objective"] == "aalp"
    assert about["classes"] == ["0", "1", "2"]
    assert about["image_shape"] == [1, 8, 8]
    assert about["threat"] == {"norm": "linf", "eps": 0.1}
    assert about["data"]["name"] == f"npz:{tiny_npz}"
    assert about["parameters"] == sum(parameter.numel() for parameter in classifier.parameters())
    assert about["epoch"] == 2


def test_the_configuration_of_a_run_fed_back_gives_identical_weights(tiny_run: Path, tmp_path: Path) -> None:
    words = ["train", "--config", str(tiny_run / "config.yaml"), "--run", str(tmp_path / "again"), "--quiet=true"]
    assert main(words) == 0
    for name in ("config.yaml", "weights/last.safetensors", "weights/best.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny_run / name).read_bytes()


def test_another_seed_gives_other_weights_of_the_same_split(tiny_run: Path, tmp_path: Path, train_words: list[str]) -> None:
    assert main([*train_words, "--run", str(tmp_path / "run"), "--seed", "1"]) == 0
    (one, about), (other, other_about) = (
        read_tensors(run / "weights" / "last.safetensors") for run in (tiny_run, tmp_path / "run")
    )
    assert not torch.equal(one["network.logits.weight"], other["network.logits.weight"])
    assert torch.equal(one["mean"], other["mean"])  # of the training images, so the split is the same
    assert about["data"] == other_about["data"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_read_from_disk_trains_as_one_in_memory_does(
    workers: int, image_folder: Path, tmp_path: Path, train_words: list[str]
) -> None:
    weights = []
    for limit in (4, 0):
        run = tmp_path / f"run-{limit}"
        words = ["--data", f"folder:{image_folder}", "--training.augment", "crop+flip", "--run", str(run)]
        words += ["--data_options.memory_limit", str(limit), "--data_options.workers", str(workers)]
        assert main([*train_words, *words]) == 0
        weights.append(read_tensors(run / "weights" / "last.safetensors")[0])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_own_factory_is_trained_and_evaluated(
    tmp_path: Path, train_words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\ndef flat(num_classes, image_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    assert main([*train_words, "--model", "my_nets:flat", "--run", str(run)]) == 0
    capsys.readouterr()
    # The directory may be somebody else's: what its configuration names is run only where the user says so.
    for verb in (["evaluate", str(run), "--attacks", "fgsm"], ["train", "--resume", str(run)]):
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert f"'{run}' asks to run the code 'my_nets:flat'" in error
        assert "--trust-model-code" in error
        for trust in (["--trust-model-code"], ["--trust_model_code=true"], ["--model", "my_nets:flat"]):
            assert main([*verb, *trust, "--quiet"]) == 0
    capsys.readouterr()
    # A lone file of weights must not make aalp import code that its author chose.
    weights = str(run / "weights" / "last.safetensors")
    words = ["evaluate", weights, "--data", read_metadata(Path(weights))["data"]["name"], "--attacks", "fgsm"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "--model my_nets:flat" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "out"), "--model", "my_nets:flat"]) == 0


def test_runs_without_a_name_take_the_next_free_number(
    tmp_path: Path, train_words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in ("001", "002"):
        assert main([*train_words, "--training.epochs", "1"]) == 0
        assert capsys.readouterr().out == f"run: runs/aalp-tiny-{number}\n"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["aalp-tiny-001", "aalp-tiny-002"]


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_is_plain_lines_on_stderr_and_nothing_on_request(
    quiet: bool, tmp_path: Path, train_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in train_words if word != "--quiet=true"] + ([f"--quiet={quiet}".lower()])
    words += ["--training.batch_size", "2", "--training.ema", "0"]  # enough steps to learn, else a warning says that it did not
    assert main([*words, "--run", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert out == f"run: {tmp_path / 'run'}\n"
    lines = err.splitlines()
    if quiet:
        assert lines == []
    else:
        assert len(lines) == 3
        assert "65 training, 7 validation, 18 test images of 1x8x8" in lines[0]
        assert "images in memory, under 1 MB;" in lines[0]
        assert [line[:13] for line in lines[1:]] == ["epoch   1/2  ", "epoch   2/2  "]
        assert all(word in lines[2] for word in ("loss", "train", "clean", "robust", "images/s", "0:00 left"))
        assert "\x1b" not in err


def test_without_validation_images_no_accuracy_on_them_is_told(
    train_words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in train_words if not word.startswith("--quiet")]
    assert main([*words, "--data_options.validation", "0", "--run", str(tmp_path / "run"), "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)["result"]
    assert (result["validation_clean"], result["validation_robust"]) == (None, None)
    assert err.count("  no validation images  ") == 2
    assert "validation" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_evaluate_afterwards_writes_the_record_and_prints_the_table(
    tmp_path: Path, train_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--evaluate=true", "--evaluation.attacks", "fgsm,pgd-3", "--evaluation.images", "10", "--run", str(run)]
    assert main([*train_words, *words]) == 0
    record = read_record(run / "evaluations" / "test.json", "evaluation")
    assert [result["name"] for result in record["attacks"]] == ["fgsm", "pgd-3"]
    assert record["images"] == 10
    assert record["weights"] == str(run / "weights" / "best.safetensors")
    assert (run / "evaluations" / "test.parquet").is_file()
    out = capsys.readouterr().out
    assert "10 test images" in out
    assert all(name in out for name in ("clean", "fgsm", "pgd-3", "worst case"))
    assert out.endswith(f"run: {run}\n")


def test_ctrl_c_on_the_command_line_saves_and_the_resumed_run_ends_as_an_undisturbed_one(
    tiny_run: Path,
    tmp_path: Path,
    train_words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"

    def press(self: Display, step: int, total: int, loss: float) -> None:
        if step == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Display, "training_step", press)
        assert main([*train_words, "--run", str(run)]) == 130
    assert capsys.readouterr() == ("", f"aalp: stopped, and saved: continue with `aalp train --resume {run}`\n")
    assert main(["train", "--resume", str(run), "--quiet=true"]) == 0
    for name in ("weights/last.safetensors", "weights/best.safetensors", "config.yaml"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes()


def test_a_run_whose_last_weights_are_damaged_goes_on_from_its_states(copied_run: Path) -> None:
    """What data they were trained on cannot be read from them: that stops nothing."""
    weights = copied_run / "weights" / "last.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["train", "--resume", str(copied_run), "--quiet"]) == 0


def test_a_diverged_training_gives_exit_code_1_and_one_line(
    tmp_path: Path, train_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--objective", "standard", "--training.lr", "1e30", "--training.schedule", "step"]
    assert main([*train_words, *words, "--run", str(tmp_path / "run")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("aalp: the loss is ")
    assert err.count("\n") == 1
    assert (tmp_path / "run" / "states").is_dir()


def test_resuming_a_finished_run_leaves_its_weights(copied_run: Path, tiny_run: Path) -> None:
    assert main(["train", "--resume", str(copied_run), "--quiet=true"]) == 0
    for path in tiny_run.rglob("*.safetensors"):
        assert (copied_run / path.relative_to(tiny_run)).read_bytes() == path.read_bytes()


def test_the_configuration_is_plain_yaml_of_all_options(tiny_run: Path) -> None:
    options: dict[str, Any] = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert set(options) == {
        *("data", "model", "objective", "seed", "threat", "attack", "method", "training", "checkpoint"),
        *("data_options", "model_options", "evaluation", "tracker"),
    }
    assert options["training"]["epochs"] == 2
    assert options["threat"]["eps"] == 0.1
    assert options["method"]["dropout"]["probability"] == 0.5


@pytest.mark.parametrize("objective", ["standard", "trades", "aalp-no-weights"])
def test_the_name_of_the_objective_reaches_the_training(
    objective: str, tiny_run: Path, tmp_path: Path, train_words: list[str], write_images: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    assert main([*train_words, "--objective", objective, "--run", str(run)]) == 0
    assert read_metadata(run / "weights" / "last.safetensors")["objective"] == objective
    one, other = (read_tensors(path / "weights" / "last.safetensors")[0] for path in (run, tiny_run))
    assert not torch.equal(one["network.logits.weight"], other["network.logits.weight"])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks of this kind: nobody is kept out")
def test_a_run_that_another_process_is_at_is_left_alone(copied_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--resume", str(copied_run), "--quiet"]
    before = {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")}
    with claimed(copied_run / "config.yaml"):
        assert main(words) == 2
    said = capfd.readouterr().err
    assert said == f"aalp: another process is at work on '{copied_run}': wait until it is done, or stop it\n"
    assert {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")} == before
    assert main(words) == 0


def test_runs_that_begin_at_the_same_moment_get_a_number_each(tmp_path: Path) -> None:
    together = Barrier(8)

    def start(_: int) -> Path:
        together.wait()
        return begin_next(tmp_path / "runs", "at-digits", {"seed": 0}).path

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            assert len(set(pool.map(start, range(8)))) == 8
    assert len(list((tmp_path / "runs").iterdir())) == 80


@pytest.mark.parametrize(("lr", "told"), [("1e-9", True), ("0.05", False)])
def test_a_training_that_learned_nothing_says_so(
    lr: str,
    told: bool,
    tmp_path: Path,
    train_words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nets_of_one_answer.py").write_text(
        "from torch import nn\n\n\ndef flat(num_classes, image_shape):\n"
        "    linear = nn.Linear(image_shape[1] * image_shape[2], num_classes)\n"
        "    nn.init.zeros_(linear.weight)\n"
        "    linear.bias.data[0] = 0.1\n"
        "    return nn.Sequential(nn.Flatten(), linear)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--model", "nets_of_one_answer:flat", "--training.lr", lr, "--run", str(tmp_path / "run")]
    assert main([*train_words, *words]) == 0
    error = capsys.readouterr().err
    assert ("no epoch did better than one answer for all" in error) is told
    assert ("lower --training.lr or set --training.clip 1" in error) is told
    assert main(["evaluate", str(tmp_path / "run"), "--attacks", "fgsm", "--trust-model-code"]) == 0
    assert ("no better than one answer for all images, 33.3%, which no attack" in capsys.readouterr().out) is told
