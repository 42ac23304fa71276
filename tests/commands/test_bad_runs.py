"""Runs, checkpoints and records that are missing, foreign or in the way."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import (
    COMPARE,
    EVALUATE_FOREIGN,
    ON_TINY,
    Case,
    arrays_with,
    begun,
    both,
    empty_folder,
    evil_pickle,
    evil_zip,
    refused,
    small_weights,
    text_file,
    torn,
    write_tiny,
)
from safetensors.torch import save_file

from aalp.store.checkpoint import read_tensors, write_tensors


def a_comparison(folder: Path) -> None:
    empty_folder("several/at-seed0")(folder)
    text_file("several/at-seed0/config.yaml", "objective: at\n")(folder)
    text_file("several/config.yaml", "data: digits\n")(folder)


def a_search(folder: Path) -> None:
    empty_folder("several")(folder)
    text_file("several/config.yaml", "data: digits\nobjective: aalp\nspace: {}\n")(folder)


def on_changed_data(folder: Path) -> None:
    config = folder / "done/config.yaml"
    config.write_text(re.sub("data: npz:.*", "data: npz:changed.npz", config.read_text()))


def stopped_within_its_first_epoch(folder: Path) -> None:
    """There are states of it, and no weights yet."""
    for path in (folder / "done/weights", folder / "done/metrics.csv"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def told_otherwise(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The newest state tells something else of its training."""

    def prepare(folder: Path) -> None:
        newest = max((folder / "done/states").glob("*"))
        tensors, about = read_tensors(newest)
        change(about)
        write_tensors(newest, tensors, {name: value for name, value in about.items() if name not in ("checksum", "format")})

    return prepare


def of_a_growing_attack(folder: Path) -> None:
    """Its equal steps were larger at the beginning, so no one step_size makes them again."""
    config = folder / "done/config.yaml"
    config.write_text(config.read_text().replace("first_steps: null", "first_steps: 1"))


BAD_RUNS: dict[str, Case] = {
    "a missing run": (None, "evaluate other", ("'other' does not exist", "name a run directory")),
    "a run that is a folder": (
        empty_folder("other"),
        "evaluate other",
        ("'other' is not a run directory", "aalp train"),
    ),
    "a comparison to evaluate": (a_comparison, "evaluate several", ("'several' is a comparison", "several/at-seed0")),
    "a comparison to train on": (a_comparison, "train --resume several", ("'several' is a comparison", "several/at-seed0")),
    "a search to audit": (a_search, "audit several", ("'several' is a search", "several/best")),
    "a search to train on": (a_search, "train --resume several", ("'several' is a search", "several/best")),
    "a missing weights file": (
        None,
        "evaluate other/weights.safetensors",
        ("'other/weights.safetensors' does not exist",),
    ),
    "a run without weights": (
        lambda folder: (folder / "done/weights/best.safetensors").unlink(),
        "evaluate done",
        ("'done' has no best weights and has last ones", "give --weights last"),
    ),
    "a foreign checkpoint without model": (
        small_weights,
        EVALUATE_FOREIGN,
        ("'foreign.safetensors'", "--model"),
    ),
    "a foreign checkpoint without data": (
        small_weights,
        "evaluate foreign.safetensors --model small-cnn --eps 0.1",
        ("data is missing", "--data"),
    ),
    "a foreign checkpoint without eps": (
        small_weights,
        "evaluate foreign.safetensors --model small-cnn --data npz:tiny.npz --attacks fgsm",
        ("eps is missing", "--eps 8/255"),
    ),
    "a checkpoint of another model": (
        small_weights,
        EVALUATE_FOREIGN + "--model thin-resnet",
        ("'foreign.safetensors' do not fit the model",),
    ),
    "a training state": (
        lambda folder: (folder / "done/states/step-00000008.safetensors").rename(folder / "state.safetensors"),
        "evaluate state.safetensors --data npz:tiny.npz",
        ("'state.safetensors'", "training state"),
    ),
    "a checkpoint of a later format": (
        lambda folder: save_file({"w": torch.zeros(1)}, folder / "new.safetensors", {"aalp": '{"format": 3}'}),
        "evaluate new.safetensors --data npz:tiny.npz --model small-cnn --eps 0.1",
        ("'new.safetensors' has format 3", "use the aalp version that wrote it"),
    ),
    "a pickle with code in it": (
        evil_pickle,
        EVALUATE_FOREIGN.replace("foreign.safetensors", "evil.pt") + "--model small-cnn",
        ("'evil.pt' is not a plain state dict", "state_dict() as safetensors"),
    ),
    "a torch file with code in it": (
        evil_zip,
        EVALUATE_FOREIGN.replace("foreign.safetensors", "evil.pt") + "--model small-cnn",
        ("'evil.pt' is not a plain state dict", "state_dict() as safetensors"),
    ),
    "a whole network, pickled": (
        lambda folder: torch.save(torch.nn.Linear(2, 2), folder / "whole.pt"),
        EVALUATE_FOREIGN.replace("foreign.safetensors", "whole.pt") + "--model small-cnn",
        ("'whole.pt' is not a plain state dict: it asks for torch.nn.modules.linear.Linear, which is not run; save",),
    ),
    "a torch file with other things": (
        lambda folder: torch.save({"epoch": 3, "weight": torch.zeros(1)}, folder / "more.pt"),
        EVALUATE_FOREIGN.replace("foreign.safetensors", "more.pt") + "--model small-cnn",
        ("'more.pt' holds other things than tensors", "state_dict() alone"),
    ),
    "a run without any weights": (stopped_within_its_first_epoch, "evaluate done", ("no best weights yet", "--resume done")),
    "a file to report on": (small_weights, "report foreign.safetensors", ("'foreign.safetensors' is a file", "a directory")),
    "data that is not where the run saw it": (
        on_changed_data,  # but there is none
        "evaluate done",
        ("changed.npz", "as seen from where the run was trained", "give --data"),
    ),
    "data that is not where the run to resume was begun": (
        on_changed_data,  # but there is none
        "train --resume done",
        ("changed.npz", "as seen from where the run was begun", "go on with it there", "write into that line"),
    ),
    "an unknown option in the configuration of the run to resume": (
        text_file("done/config.yaml", "data: npz:tiny.npz\nobjective: at\ntraining: {epoch: 3}"),
        "train --resume done",
        ("'done/config.yaml': unknown option training.epoch: did you mean training.epochs?",),
    ),
    "a name that is none in the configuration of the run to resume": (
        text_file("done/config.yaml", "data: npz:tiny.npz\nobjective: at\nxyzzy: 3"),
        "train --resume done",
        ("'done/config.yaml': unknown option xyzzy: remove it",),
    ),
    "a torn checkpoint": (torn, "evaluate done", ("best.safetensors' is not a readable safetensors file",)),
    "a text file as checkpoint": (
        text_file("text.safetensors", "weights"),
        EVALUATE_FOREIGN.replace("foreign.safetensors", "text.safetensors") + "--model small-cnn",
        ("'text.safetensors' is not a readable safetensors file",),
    ),
    "weights of other classes": (
        lambda folder: write_tiny(folder, classes=4),
        "evaluate done --attacks fgsm --data npz:changed.npz",
        ("3 classes", "'npz:changed.npz' has 4"),
    ),
    "weights for images of another size": (
        lambda folder: write_tiny(folder, size=12),
        "evaluate done --attacks fgsm --data npz:changed.npz",
        ("1x8x8", "1x12x12", "bring it to that with --data_options.size 8"),
    ),
    "a run whose configuration is broken": (
        text_file("done/config.yaml", "data: ["),
        "evaluate done",
        ("config.yaml'",),
    ),
    "a run whose configuration is of another kind": (
        text_file("done/config.yaml", "threat: 3\ndata: npz:tiny.npz"),
        "evaluate done",
        ("threat",),
    ),
    "a run whose configuration has foreign data options": (
        text_file("done/config.yaml", "data_options: {sise: 3}\ndata: npz:tiny.npz"),
        "evaluate done",
        ("sise",),
    ),
    "an existing run": (None, ON_TINY.replace("--run run", "--run done"), ("'done' exists already", "--resume done")),
    "an existing file as run": (
        None,
        ON_TINY.replace("--run run", "--run tiny.npz"),
        ("'tiny.npz' exists already", "choose another --run"),
    ),
    "a run inside a file": (
        None,
        ON_TINY.replace("--run run", "--run tiny.npz/run"),
        ("'tiny.npz' cannot be made", "choose another folder"),
    ),
    "to resume what is missing": (
        None,
        "train --resume other",
        ("'other' is not a run directory", "`aalp train` made"),
    ),
    "to resume something else": (empty_folder("other"), "train --resume other", ("'other' is not a run directory",)),
    "to resume nothing": (None, "train --resume", ("--resume", "value")),
    "to resume a run without states": (
        lambda folder: shutil.rmtree(folder / "done/states"),
        "train --resume done",
        ("'done' has no saved state", "start a new run"),
    ),
    "to resume a torn state": (
        lambda folder: [path.write_bytes(b"torn") for path in (folder / "done/states").iterdir()],
        "train --resume done",
        ("no saved state of 'done' can be read", "step-00000008.safetensors' is not a readable", "start a new run"),
    ),
    "to resume with other options": (
        None,
        "train --resume done --training.epochs 3",
        ("'done' was begun with another training", "training.epochs was 2 and is 3", "`aalp train --resume done` alone"),
    ),
    "to resume with other options before": (
        None,
        "train --seed=1 --resume=done",
        ("'done' was begun with another seed", "seed was 0 and is 1", "`aalp train --resume done` alone"),
    ),
    "to resume with a configuration": (
        None,
        "train --config digits --resume done",
        ("'done' was begun with another data", "was npz:", "is digits"),
    ),
    "to resume when the data has changed": (
        both(arrays_with(x_train=lambda pixels: pixels[::-1].copy()), on_changed_data),
        "train --resume done",
        ("'done' was trained on other images than 'npz:changed.npz' has now", "put those back"),
    ),
    "to resume within the first epoch when the data has changed": (
        both(
            both(arrays_with(x_train=lambda pixels: pixels[::-1].copy()), on_changed_data),
            stopped_within_its_first_epoch,
        ),
        "train --resume done",
        ("'done' was trained on other images than 'npz:changed.npz' has now", "put those back"),
    ),
    "to resume when its validation images have changed": (
        told_otherwise(lambda about: about["data"].update(validation_digest="0" * 64)),
        "train --resume done",
        ("'done' was trained with other validation images than 'npz:", "put those back"),
    ),
    "to resume when a default has changed": (
        told_otherwise(lambda about: about["method"].update(pairing_weight=0.25)),
        "train --resume done",
        ("'done' was trained with pairing_weight 0.25", "stands for 1.0 in this version", "write method.pairing_weight 0.25"),
    ),
    "to resume what tells no steps, which were equal": (
        told_otherwise(lambda about: about.pop("step_sizes")),
        "train --resume done",
        ("'done' was trained with attack steps of 1 eps", "2 eps and falling in this version", "write attack.step_size 1"),
    ),
    "to resume a growing attack that tells no steps": (
        both(told_otherwise(lambda about: about.pop("step_sizes")), of_a_growing_attack),
        "train --resume done",
        ("'done' was trained with attack steps of 1 eps, and", "2 eps and falling in this version: start another --run"),
    ),
    "a comparison begun with other options": (begun, COMPARE + "--objectives at", ("'run' was begun with another",)),
    "a comparison where something else is": (
        text_file("run", "mine"),
        COMPARE + "--objectives at",
        ("'run'", "choose another --run"),
    ),
    "a comparison in some folder": (
        both(empty_folder("run"), text_file("run/notes.txt", "mine")),
        COMPARE + "--objectives at",
        ("'run'", "choose another --run"),
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS.values(), ids=BAD_RUNS.keys())
def test_bad_runs_get_one_line_and_change_nothing(case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, folder, capfd)
