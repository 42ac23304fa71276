"""What an interrupted attack's journal is of: batches of another model are never taken for its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aalp.cli import main
from aalp.commands import evaluate as evaluate_command
from aalp.commands.loading import LoadedModel
from aalp.commands.opening import check_same_training
from aalp.commands.resuming import journal_of
from aalp.data.sources import DataOptions, Source, load_source
from aalp.errors import RunError
from aalp.models.classifier import Classifier
from aalp.store.checkpoint import read_tensors, write_tensors
from aalp.store.run import RunDirectory


def network(middle: nn.Module) -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), middle, nn.Linear(8, 10))).eval()


def folder_of(classifier: Classifier, source: Source, *about: object) -> Path:
    return journal_of(Path("evaluations"), LoadedModel(classifier, {"model": "code:factory"}), source, *about).folder


def test_the_journal_knows_weights_code_and_settings() -> None:
    source = load_source("digits")
    first = folder_of(network(nn.ReLU()), source, {"seed": 0})
    assert folder_of(network(nn.ReLU()), source, {"seed": 0}) == first
    others = [
        folder_of(network(nn.ReLU()), source, {"seed": 1}),
        folder_of(network(nn.Sigmoid()), source, {"seed": 0}),  # the same weights
        folder_of(network(nn.ReLU()).requires_grad_(False), load_source("digits"), {"seed": 0, "exact": True}),
    ]
    assert first not in others
    assert len(set(others)) == 3
    moved = network(nn.ReLU())
    moved.linear.bias.data[3] += 1e-6  # far below what an answer in a few digits shows
    assert folder_of(moved, source, {"seed": 0}) != first


def test_the_journal_of_validation_images_knows_which_were_held_out(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def noted(*about: Any) -> Any:
        names.append(journal_of(*about).folder.name)
        return journal_of(*about)

    monkeypatch.setattr(evaluate_command, "journal_of", noted)
    for split in ("validation", "test"):
        for seed in ("0", "1", "0"):
            words = ["--split", split, "--attacks", "clean", "--data_options.split_seed", seed, "--quiet"]
            assert main(["evaluate", str(copied_run), *words]) == 0
    assert names[0] == names[2] != names[1]
    assert len(set(names[3:])) == 1  # the test images of an npz are the same ones


def test_a_run_goes_on_with_its_own_validation_images_alone(copied_run: Path, tiny_npz: Path) -> None:
    run, source = RunDirectory(copied_run), load_source(f"npz:{tiny_npz}")
    check_same_training(run, source)
    other = load_source(f"npz:{tiny_npz}", DataOptions(split_seed=1))
    with pytest.raises(RunError, match="with other validation images than"):
        check_same_training(run, other)
    for state in run.states():  # as runs were once, which told nothing of them
        tensors, about = read_tensors(state)
        del about["data"]["validation_digest"], about["checksum"], about["format"]
        write_tensors(state, tensors, about)
    check_same_training(run, other)


def test_a_run_goes_on_with_what_this_machine_reads_images_by(copied_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--resume", str(copied_run), "--quiet"]
    here = ["--data_options.workers", "0", "--data_options.memory_limit", "1", "--data_options.cache", "there"]
    assert main([*words, *here]) == 0
    assert main([*words, "--data_options.workers", "0", "--data_options.validation", "5"]) == 2
    assert "begun with another data_options (data_options.validation was" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "kept", "remedy"),
    [
        (["evaluate", "--attacks", "fgsm"], "evaluations", "choose another --out"),
        (["audit", "--images", "8"], "audits", "choose another --out"),
        (["analyze"], "analyses", "an analysis is kept in its run, so analyze a copy of it"),
    ],
)
def test_a_run_that_is_read_only_is_refused_before_the_attacks(
    words: list[str],
    kept: str,
    remedy: str,
    copied_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(copied_run / kept, ignore_errors=True)
    # For root, as which tests may run, no folder is read-only.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert main([words[0], str(copied_run), *words[1:], "--quiet"]) == 2
    what = f"'{copied_run / kept}' cannot be written to, '{copied_run}' is read-only: {remedy}"
    assert capfd.readouterr() == ("", f"aalp: {what}\n")
    assert not (copied_run / kept).exists()
