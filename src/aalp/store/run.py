"""A run directory: everything that a training run makes, and what later verbs find there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aalp.errors import RunError
from aalp.links import leads_outside
from aalp.store.files import ASIDE, alone_in, remove, remove_leftovers


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside a run directory.

    config.yaml           the resolved options, which `aalp train --config` accepts
    metrics.csv           one row an epoch
    weights/              last.safetensors and best.safetensors: the averaged weights, what is evaluated and exported
    states/               step-*.safetensors: what a resumed run continues from, the newest kept
    tracker.json          this run's entries in experiment trackers, where --tracker logs to one
    evaluations/          a JSON record and a Parquet table for each evaluation
    audits/               a JSON record for each audit
    analyses/             a folder of a record, tables and images for each analysis
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def tracker(self) -> Path:
        return self.path / "tracker.json"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def audits(self) -> Path:
        return self.path / "audits"

    @property
    def analyses(self) -> Path:
        return self.path / "analyses"

    @property
    def analysis_records(self) -> list[Path]:
        """The records of whole analyses; one that is still being written lies in a hidden folder."""
        return sorted(self.analyses.glob("[!.]*/analysis.json"))

    def weights(self, which: str) -> Path:
        """The weights file `last` or `best`."""
        return self.path / "weights" / f"{which}.safetensors"

    def state(self, step: int) -> Path:
        """The training state after a number of steps."""
        return self.path / "states" / f"step-{step:08d}.safetensors"

    def states(self) -> list[Path]:
        """All training states, oldest first."""
        return sorted((self.path / "states").glob("step-*.safetensors"))

    def drop_old_states(self, keep: int, step: int) -> None:
        """Keep the newest `keep` states up to this step only; a later one that was damaged counts for none.

        Raises:
            RunError: the folder cannot be changed.
        """
        upto = [path for path in self.states() if path <= self.state(step)]
        for path in upto[:-keep]:
            remove(path)

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed while it wrote left behind."""
        for folder in (self.path, self.path / "weights", self.path / "states"):
            remove_leftovers(folder)

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with: no directory, or one that was made and no more, is none."""
        return self.config.is_file()

    @staticmethod
    def create(path: Path) -> RunDirectory:
        """A new run directory.

        One in which a process was killed before it had written anything is new, too.

        Raises:
            RunError: the path exists already (nothing is ever overwritten) or cannot be made.
        """
        if path.is_symlink() or (path.exists() and not _is_fresh(path)):
            again = f"--resume {shlex.quote(str(path))}"
            raise RunError(f"'{path}' exists already: choose another --run, or continue it with {again}")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run directory '{path}' cannot be made: {error.strerror}; choose another --run") from error
        return RunDirectory(path)

    @staticmethod
    def open(path: Path) -> RunDirectory:
        """An existing run directory.

        Raises:
            RunError: it is not one, or a link in it leads out of it, where later verbs would read and write.
        """
        run = RunDirectory(path)
        if not run.begun:
            what = "is not a run directory (it has no config.yaml)" if path.is_dir() else "does not exist"
            what = "is a file" if path.is_file() else what
            raise RunError(f"'{path}' {what}: name a directory that `aalp train` made")
        for inside in (*path.iterdir(), *path.glob("weights/*"), *path.glob("states/*")):
            if leads_outside(inside, path):
                where = "leads out of the run directory, or in a circle"
                raise RunError(f"'{inside}' is a link that {where}: put the file itself there")
        return run


def _is_fresh(path: Path) -> bool:
    """A folder with nothing in it but a configuration that never became whole."""
    return path.is_dir() and all(inside.match(f".config.yaml.*{ASIDE}") for inside in path.iterdir())


def free_path(folder: Path, stem: str, suffix: str = "") -> Path:
    """The first of STEM-001SUFFIX, STEM-002SUFFIX, ... that does not exist in the folder."""
    number = 1
    while (path := folder / f"{stem}-{number:03d}{suffix}").exists():
        number += 1
    return path


@contextmanager
def still_free(path: Path) -> Iterator[Path]:
    """The path to write to: this one, which was free some time ago, or where another process has taken it the next free one.

    No other process gets one in this folder until what was begun in here is written.
    """
    with alone_in(path.parent):
        stem = re.sub(r"-\d+$", "", path.stem)
        yield free_path(path.parent, stem, path.suffix) if path.exists() else path


def put_in_place(aside: Path, path: Path, exactly: bool) -> Path:
    """Rename what is whole now to a path that was free some time ago; where it is by now.

    Args:
        exactly: to this path; else, where another process has taken it, to the next free one.

    Raises:
        RunError: another process has taken it.
    """
    with still_free(path) as place:
        if exactly and place != path:
            raise RunError(f"'{path}' exists by now: choose another --out")
        aside.rename(place)
        return place
