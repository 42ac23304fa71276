"""An Optuna study in a folder of its own: trials that several processes share, and that outlive the process that began them.

Optuna keeps what was tried in a journal of JSON lines. Which process works on a trial is told by a lock that the system
takes back when the process dies, however it dies: a trial that is under way and not locked is an orphan, and is gone on with.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aalp.commands.search_space import Dimension, Space
from aalp.errors import AalpError, RunError
from aalp.seeding import derive_seed


def check_search() -> None:
    """Refuse a search before anything runs.

    Raises:
        AalpError: Optuna is not installed.
    """
    if find_spec("optuna") is None or find_spec("filelock") is None:
        raise AalpError('a search needs optuna: pip install "aalp[search]"')


class PrunedError(Exception):
    """A trial does worse than the others did by this epoch: not worth going on with."""


@dataclass(frozen=True)
class Trial:
    """A trial under way.

    Attributes:
        number: from 0.
        values: of the searched options, by dotted name.
    """

    number: int
    values: dict[str, Any]
    handle: Any

    def report(self, value: float, epoch: int) -> None:
        """Tell the value after an epoch.

        Raises:
            PrunedError: it is below the median of the other trials at that epoch.
        """
        before = self.handle.study.get_trials(deepcopy=False)[self.number].intermediate_values
        if epoch not in before:  # told before the process that began it was killed
            self.handle.report(value, epoch)
        if self.handle.should_prune():
            raise PrunedError


@dataclass(frozen=True)
class Study:
    """The trials of a search.

    Args:
        folder: of the search.
        space: what is searched.
        seed: of the sampler.
        prune: stop trials that do worse than the median of the others.
        warmup: epochs in which none is stopped.
    """

    folder: Path
    space: Space
    seed: int
    prune: bool
    warmup: int

    @contextmanager
    def next_trial(self, count: int) -> Iterator[Trial | None]:
        """An orphan, or a new trial while there are fewer than `count`, locked inside the block; None where neither is left."""
        import filelock

        lock = None
        with self._lock("ask"):
            study = self._open()
            trial = None
            for found in study.trials:
                if not found.state.is_finished():
                    lock = filelock.FileLock(self._lock_path(f"trial-{found.number:04d}"))
                    try:
                        lock.acquire(timeout=0)
                    except filelock.Timeout:  # another process is at it
                        continue
                    trial = _handle(study, found)
                    break
            number = len(study.trials)
            if trial is None and number < count:
                lock = filelock.FileLock(self._lock_path(f"trial-{number:04d}"))
                lock.acquire()
                study.sampler = self._sampler(number)
                trial = study.ask()
            elif trial is not None:
                study.sampler = self._sampler(trial.number)
            # One that was killed while it drew its values draws the rest of them now.
            values = {} if trial is None else {name: _draw(trial, name, one) for name, one in self.space.items()}
        if trial is None or lock is None:
            yield None
            return
        try:
            yield Trial(trial.number, values, trial)
        finally:
            lock.release()

    def tell(self, trial: Trial, value: float | None, state: str, reason: str = "") -> None:
        """Finish a trial: `complete` with its value, `pruned`, or `fail` with a reason."""
        from optuna.trial import TrialState

        if reason:
            trial.handle.set_user_attr("reason", reason)
        trial.handle.study.tell(trial.number, value, state=TrialState[state.upper()])

    def tell_as(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """Finish a trial as one of the `rows` that is complete or pruned."""
        trial.handle.report(row["last"], row["epochs"])
        self.tell(trial, row["value"], row["state"])

    def left(self, count: int) -> int:
        """How many of `count` trials have not come to an end; nothing is written, as `rows` would."""
        journal = self.folder / "journal.jsonl"
        if not journal.is_file():
            return count
        with tempfile.TemporaryDirectory() as aside:
            shutil.copy(journal, aside)
            ended = [row for row in replace(self, folder=Path(aside)).rows() if row["state"] != "running"]
        return max(0, count - len(ended))

    def rows(self) -> list[dict[str, Any]]:
        """Every trial: number, state, value (None until it is complete), values of the options, epochs, last value, reason."""
        return [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "options": dict(trial.params),
                "epochs": max(trial.intermediate_values, default=0),
                "last": trial.intermediate_values.get(max(trial.intermediate_values, default=0)),
                **({"reason": trial.user_attrs["reason"]} if "reason" in trial.user_attrs else {}),
            }
            for trial in self._open().trials
        ]

    def _open(self) -> Any:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = self.folder / "journal.jsonl"
        with self._lock("journal"):
            _drop_torn_line(journal)
        warmup = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=self.warmup)
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_JournalLock(self._lock_path("journal"))))
            return optuna.create_study(
                storage=storage,
                study_name="search",
                direction="maximize",
                load_if_exists=True,
                pruner=warmup if self.prune else optuna.pruners.NopPruner(),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"'{journal}' is not a readable journal of a search: {error}; choose another --run") from error

    def _sampler(self, number: int) -> Any:
        """By the trial's number: a search that was killed draws what it would have drawn, and two processes never the same."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=derive_seed("search", self.seed, number), n_startup_trials=8)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        import filelock

        with filelock.FileLock(self._lock_path(name)):
            yield

    def _lock_path(self, name: str) -> str:
        folder = self.folder / "locks"
        folder.mkdir(exist_ok=True)
        return str(folder / f"{name}.lock")


def _handle(study: Any, found: Any) -> Any:
    from optuna.trial import Trial as OptunaTrial

    return OptunaTrial(study, found._trial_id)


def _draw(trial: Any, name: str, dimension: Dimension) -> Any:
    if dimension.choices:
        return trial.suggest_categorical(name, list(dimension.choices))
    low, high = dimension.low, dimension.high
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=dimension.log)
    return trial.suggest_float(name, low, high, log=dimension.log)


class _JournalLock:
    """Optuna's own locks are files that a killed process leaves behind; this one the system takes back."""

    def __init__(self, path: str) -> None:
        import filelock

        self._lock = filelock.FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _drop_torn_line(journal: Path) -> None:
    """Cut off a last line that a loss of power left without an end: what it was to say has not happened."""
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
            os.fsync(file.fileno())
