"""--dry-run: the options as they will be used, what it costs, and not a file written."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_cli import parsed
from torch import nn

from aalp.cli import main
from aalp.commands import dry_run, training_cost
from aalp.commands.config import to_plain
from aalp.commands.dry_run import attack_passes, audit_cost, evaluation_cost
from aalp.data.split import ResidentSplit
from aalp.evaluation.bench import QUICK
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier


def files(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def words_for(verb: str, train_words: list[str], run: Path) -> list[str]:
    if verb in ("evaluate", "audit"):
        return [verb, str(run), "--images", "4", "--dry-run"]
    return [verb, *train_words[1:], "--run", "new", "--evaluation.images", "6", "--dry-run"]


@pytest.mark.parametrize("verb", ["train", "compare", "search", "evaluate", "audit"])
def test_nothing_is_written_and_the_cost_is_told(
    verb: str,
    train_words: list[str],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tiny_run)
    of_several = {
        "compare": ["--objectives", "at,trades", "--seeds", "0,1,2"],
        "search": ["--space", "{training.lr: [0.01, 0.1]}", "--trials", "6"],
    }
    more = of_several.get(verb, [])
    assert main([*words_for(verb, train_words, tiny_run), *more]) == 0
    assert (files(tmp_path), files(tiny_run)) == (set(), before)
    out = capsys.readouterr().out
    assert "minutes" in out
    assert "GB at the peak" in out
    config = yaml.safe_load(out)
    if verb == "train":
        assert config == to_plain(
            {key: value for key, value in parsed(*words_for(verb, train_words, tiny_run)).items() if key in config}
        )
        Path("again.yaml").write_text(out)
        assert to_plain(parsed("train", "--config", "again.yaml"))["training"] == config["training"]
    if verb in of_several:
        assert "6 runs (8 steps of" in out
    if verb == "search":
        assert (config["space"], config["trials"]) == ({"training.lr": [0.01, 0.1]}, 6)
        Path("again.yaml").write_text(out)
        assert to_plain(parsed("search", "--config", "again.yaml"))["space"] == config["space"]
    if verb == "compare":
        assert "at most" in out
        assert (config["objectives"], config["seeds"]) == ("at,trades", [0, 1, 2])
        Path("again.yaml").write_text(out)
        assert to_plain(parsed("compare", "--config", "again.yaml"))["training"] == config["training"]


def test_a_search_that_goes_on_costs_the_trials_that_are_left(
    train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", *train_words[1:], "--run", str(tmp_path / "search"), "--space", "{training.lr: [0.01, 0.1]}"]
    assert main([*words, "--trials", "1"]) == 0
    before = files(tmp_path)
    capsys.readouterr()
    assert main([*words, "--trials", "4", "--dry-run"]) == 0
    assert ", 3 runs (" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_as_json(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_run), "--attacks", "fgsm,pgd-5", "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert set(result) == {"config", "cost", "device"}
    assert set(result["cost"]["evaluation"]["attacks"]) == {"fgsm", "pgd-5"}
    assert result["cost"]["evaluation"]["images"] == 18


def test_attacks_that_are_not_ours_are_named_and_not_estimated(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "attacks_of_my_own.py").write_text("def nothing(model, images, labels):\n    return images\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["evaluate", str(tiny_run), "--attacks", "fgsm,attacks_of_my_own:nothing", "--dry-run"]
    assert main(words) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("#   evaluation: "))
    assert line.endswith(" for 18 images (fgsm 0.0); not estimated: attacks_of_my_own:nothing")
    assert main([*words, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["result"]["cost"]["evaluation"]
    assert (list(cost["attacks"]), cost["not_estimated"]) == (["fgsm"], ["attacks_of_my_own:nothing"])


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("verb", ["train", "compare"])
def test_no_validation_images_to_evaluate_on_are_refused_before_anything_is_done(
    verb: str, dry: list[str], train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*train_words[1:], "--run", str(tmp_path / "new"), "--data_options.validation", "0"]
    words += ["--evaluation.split", "validation", *(["--evaluate"] if verb == "train" else []), *dry]
    assert main([verb, *words]) == 2
    out, err = capsys.readouterr()
    assert "has no validation images: hold some out with --data_options.validation" in err
    assert (out, len(err.splitlines()), files(tmp_path)) == ("", 1, set())


def test_a_training_that_is_not_evaluated_costs_no_evaluation(
    train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", str(tmp_path / "new"), "--data_options.validation", "0", "--evaluation.split", "validation"]
    assert main([*train_words, *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#   training: " in out
    assert "#   evaluation: " not in out


def test_what_a_dry_run_refuses_is_what_the_run_would_refuse(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_run), "--attacks", "pdg-5", "--dry-run"]) == 2
    assert "did you mean 'pgd-20'?" in capsys.readouterr().err
    assert main(["train", "--run", str(tiny_run), "--training.lr", "-1", "--dry-run"]) == 2


@pytest.mark.parametrize("words", [["--images", "0"], ["--images", "-3"], ["--batch_size", "0"]])
@pytest.mark.parametrize("verb", ["evaluate", "audit"])
def test_a_dry_run_of_no_images_is_refused_as_the_run_is(
    verb: str, words: list[str], tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(tiny_run), *words, "--dry-run"]) == 2
    assert "both have to be at least 1" in capsys.readouterr().err


def test_a_resumed_run_costs_what_is_left(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tiny_run), "--dry-run"]) == 0
    assert "training: 0.0 minutes (0 steps" in capsys.readouterr().out


def test_steps_and_times_of_training_by_hand(fit_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = fit_plan(options={"epochs": 5, "batch_size": 16})
    clock = iter([100.0, 102.0, 104.0, 106.0, 109.0])  # four ticks, then the epoch's report

    def fit(probe: Any) -> None:
        assert (len(probe.train), len(probe.validation), probe.options.epochs) == (64, 18, 1)
        assert probe.run.path != plan.run.path
        for _ in range(4):
            probe.tick(1, 1, 0.0)
        probe.report({})

    monkeypatch.setattr(training_cost, "fit", fit)
    monkeypatch.setattr(training_cost.time, "perf_counter", lambda: next(clock))
    cost = training_cost.training_cost(plan, done=4)
    assert (cost["steps"], cost["validations"]) == (16, 4)
    assert (cost["step_seconds"], cost["validation_seconds"]) == (2.0, 3.0)
    assert cost["minutes"] == pytest.approx((16 * 2 + 4 * 3) / 60)
    assert cost["memory_gigabytes"] > 0


def test_the_step_of_an_epoch_of_one_step_is_timed_too(fit_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = fit_plan(options={"epochs": 5, "batch_size": 64})
    clock = iter([100.0, 103.0, 110.0, 112.0])  # a step before it, a validation, a step, a validation

    def fit(probe: Any) -> None:
        assert (len(probe.train), probe.options.epochs) == (64, 2)
        for _ in range(2):
            probe.tick(1, 1, 0.0)
            probe.report({})

    monkeypatch.setattr(training_cost, "fit", fit)
    monkeypatch.setattr(training_cost.time, "perf_counter", lambda: next(clock))
    cost = training_cost.training_cost(plan)
    assert (cost["steps"], cost["step_seconds"], cost["validation_seconds"]) == (5, 7.0, 2.0)


def test_steps_wait_for_workers_that_read_slower_than_the_device_trains(fit_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    @dataclass(frozen=True)
    class OnDisk:
        labels: torch.Tensor

        def __len__(self) -> int:
            return len(self.labels)

        def subset(self, indices: torch.Tensor) -> OnDisk:
            return OnDisk(self.labels[indices])

        def read(self, indices: torch.Tensor) -> None:
            now[0] += 0.5 * len(indices)

    def fit(probe: Any) -> None:
        for _ in range(10):
            now[0] += 0.1  # the batches are ready: workers have read them ahead
            probe.tick(1, 1, 0.0)
        probe.report({})

    monkeypatch.setattr(training_cost, "fit", fit)
    monkeypatch.setattr(training_cost.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training_cost.os, "cpu_count", lambda: 4)
    for workers, seconds in ((2, 4.0), (8, 2.0), (0, 0.1)):  # 8 seconds a batch; 8 workers share 4 cores
        plan = replace(fit_plan(options={"batch_size": 16}), train=OnDisk(torch.zeros(160).long()), workers=workers)
        assert training_cost.training_cost(plan)["step_seconds"] == pytest.approx(seconds)


def test_minutes_of_attacks_by_hand(small_classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = small_classifier(3)
    split = ResidentSplit(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    monkeypatch.setattr(dry_run, "_probe", lambda *_: (0.5, 0.25, 0.8, 0.4))
    cost = evaluation_cost(classifier, split, Linf(0.1), ["fgsm", "autoattack"], 10, 2, trained=True)
    expected = {"fgsm": 8 * 0.75, "apgd-ce": 8 * (101 * 0.5 + 0.25), "apgd-t": 4 * 2 * (101 * 0.5 + 0.25)}
    expected |= {"fab-t": 4 * 200 * 0.75, "square": 4 * 5000 * 0.25}
    assert cost["attacks"] == pytest.approx({name: seconds / 60 for name, seconds in expected.items()})
    assert cost["minutes"] == pytest.approx(sum(expected.values()) / 60)
    untrained = evaluation_cost(classifier, split, Linf(0.1), ["square"], 10, 2, trained=False)
    assert (untrained["minutes"], untrained["at_most"]) == (pytest.approx(10 * 5000 * 0.25 / 60), True)
    audited = audit_cost(classifier, split, Linf(0.1), QUICK, 10, 2)
    assert audited["minutes"] == pytest.approx(8 * ((800 + 400 + 280) * 0.5 + (QUICK.noises + 1000) * 0.25) / 60)


def test_a_network_without_a_gradient_costs_something_too() -> None:
    class Steps(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward((images > 0.5).float())

    classifier = Classifier(Steps(nn.Flatten(), nn.Linear(64, 4))).requires_grad_(False).eval()
    split = ResidentSplit(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert audit_cost(classifier, split, Linf(0.1), QUICK, 10, 2)["minutes"] >= 0
    assert evaluation_cost(classifier, split, Linf(0.1), ["square"], 10, 2, trained=True)["minutes"] >= 0


@pytest.mark.parametrize(
    ("name", "passes"), [("pgd-20", (20, 1)), ("cw-7", (7, 1)), ("apgd-t", (909, 9)), ("square", (0, 5000)), ("clean", (0, 1))]
)
def test_passes_of_attacks_with_ten_classes(name: str, passes: tuple[int, int]) -> None:
    assert attack_passes(name, 10) == passes
