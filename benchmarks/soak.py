"""Kill training runs and evaluations with SIGKILL at random moments, resume them, compare with undisturbed ones byte by byte.

    python benchmarks/soak.py [--kills 200] [--seed 0] [--out benchmarks/results/soak.json]

One process imports everything once, by doing the work itself, so that a random moment is one of the work and not of an
import, and forks a child for each attempt; the child calls the command line as a user does.
Half of the kills come at a random time, the other half just before a random one of the child's file-system operations
(opening, renaming, removing, making a folder), where a torn file would come from. What is killed is resumed until it is
done; then a new run begins, until the kills are used up. The moments are drawn from the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aalp.cli import main as aalp
from aalp.store.records import read_record, write_record

TRAINING = (
    *("--objective", "aalp", "--model", "thin-resnet", "--training.epochs", "2", "--training.batch_size", "12"),
    *("--training.ema", "0.9", "--training.augment", "crop+flip", "--training.awp", "0.005", "--training.clip", "1"),
    *("--training.validation_steps", "2", "--training.precision", "32-true", "--attack.steps", "2", "--threat.eps", "0.1"),
    *("--method.dropout.ramp", "0.3", "--checkpoint.every", "0.05s", "--quiet"),
)
ATTACKS = "fgsm,pgd-10,cw-10"
EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"})
"""Python's audit events at which a file system changes."""


def main() -> int:
    """Exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        record = soak(Path(folder), arguments.kills, random.Random(arguments.seed))
    record |= {"seed": arguments.seed, "identical": not record["differences"]}
    print(json.dumps(record, indent=2))
    if arguments.out:
        write_record(arguments.out, "soak", record)
    return 0 if record["identical"] else 1


def soak(folder: Path, kills: int, dice: random.Random) -> dict[str, Any]:
    """Half of the kills hit trainings, half evaluations; returns what came of it."""
    started = time.perf_counter()
    data = write_images(folder / "images.npz")
    run = folder / "undisturbed"

    def train(path: Path) -> list[str]:
        return ["train", "--data", f"npz:{data}", *TRAINING, "--resume", str(path)]

    def evaluate(out: Path) -> list[str]:
        return ["evaluate", str(run), "--attacks", ATTACKS, "--batch_size", "6", "--out", str(out), "--quiet"]

    record: dict[str, Any] = {"kills": 0, "differences": []}
    for name, words, content in (("training", train, run_content), ("evaluation", evaluate, evaluation_content)):
        whole = run if name == "training" else folder / "evaluation"
        with redirect_stdout(io.StringIO()):
            check(aalp(words(folder / f"{name}-for-its-imports")))  # three quarters of a first training's time
        seconds, operations = measure(words(whole))
        expected = content(whole)
        done = {"kills": 0, "by_time": 0, "at_file_operations": 0, "finished_before": 0, "rounds": 0}
        while done["kills"] < kills // 2:
            path = folder / f"{name}-{done['rounds']}"
            # An evaluation that has its record is done, and would make another one; only its clean-up was killed.
            late = False
            while not late and not attempt(words(path), dice, seconds, operations, done, kills // 2):
                late = (path / "best-001.json").is_file()
            done["rounds"] += 1
            found = content(path)
            record["differences"] += [f"{path.name}: {key}" for key in expected if found.get(key) != expected[key]]
            left = () if late else found.keys() - expected.keys()
            record["differences"] += [f"{path.name}: {key} is left over" for key in left]
        record["kills"] += done["kills"]
        record[name] = {**done, "undisturbed_seconds": seconds, "file_operations": operations}
    return {**record, "seconds": time.perf_counter() - started}


def attempt(
    words: Sequence[str], dice: random.Random, seconds: float, operations: int, done: dict[str, int], kills: int
) -> bool:
    """Start or resume; kill, unless the kills are used up; whether it came to its end."""
    if done["kills"] >= kills:
        check(fork(lambda: aalp(words)))
        return True
    by_time = dice.random() < 0.5
    if by_time:
        code = fork(lambda: aalp(words), kill_after=dice.uniform(0, seconds))
    else:
        number = dice.randrange(operations)
        code = fork(lambda: dying_at(number, words))
    if code == -signal.SIGKILL:
        done["kills"] += 1
        done["by_time" if by_time else "at_file_operations"] += 1
        return False
    check(code)
    done["finished_before"] += 1
    return True


def check(code: int) -> None:
    """A resumed run that ends in an error is as bad as one that differs."""
    if code != 0:
        raise SystemExit(f"an attempt ended with exit code {code} instead of going on")


def dying_at(number: int, words: Sequence[str]) -> int:
    """The command, killed just before its file-system operation of this number."""
    seen = [0]

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if changes_files(event, arguments):
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

    sys.addaudithook(look)
    return aalp(words)


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is about to change the file system (or opens a folder, as flushing one does)."""
    if event != "open":
        return event in EVENTS
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) or (isinstance(arguments[0], str) and os.path.isdir(arguments[0]))


def measure(words: Sequence[str]) -> tuple[float, int]:
    """Seconds and file-system operations of the command when nothing disturbs it."""
    reader, writer = os.pipe()

    def counted() -> int:
        seen = [0]

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            seen[0] += changes_files(event, arguments)

        sys.addaudithook(look)
        code = aalp(words)
        os.write(writer, str(seen[0]).encode())
        return code

    started = time.perf_counter()
    check(fork(counted))
    seconds = time.perf_counter() - started
    operations = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    return seconds, operations


def fork(work: Callable[[], int], kill_after: float | None = None) -> int:
    """Run in a child; its exit code, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = work()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_images(path: Path) -> Path:
    """Noisy 8x8 images of three classes."""
    noise = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 54), ("test", 24)):
        labels = np.arange(count) % 3
        images = noise.integers(0, 60, (count, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 2] += 180
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images.astype(np.uint8), labels
    np.savez(path, **arrays)
    return path


def run_content(run: Path) -> dict[str, str]:
    """Digests of all that a run leaves behind, except for times (and TensorBoard's event files, which are made of them)."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and not name.startswith("tensorboard"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [column for column, name in enumerate(rows[0]) if name not in ("seconds", "images_per_second")]
    found["metrics.csv"] = str([[row[column] for column in kept] for row in rows])
    # States tell the time that was spent; which of them are kept depends on when they were saved.
    return {name: value for name, value in found.items() if not name.startswith("states/step-")}


def evaluation_content(folder: Path) -> dict[str, str]:
    """The record except for times, the digest of the table, and the names of whatever else is there."""
    record = read_record(folder / "best-001.json", "evaluation")
    for key in ("created", "environment", "command"):
        record.pop(key)
    for timed in (*record["attacks"], *record["gates"]):
        timed.pop("seconds")
    found = {str(path.relative_to(folder)): "" for path in folder.rglob("*") if path.is_file()}
    table = hashlib.sha256((folder / "best-001.parquet").read_bytes()).hexdigest()
    return {**found, "best-001.json": json.dumps(record), "best-001.parquet": table}


if __name__ == "__main__":
    sys.exit(main())
