"""A run directory: everything that a training run makes, and what later verbs find there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aalp.errors import RunError

STATES_KEPT = 2


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside a run directory.

    config.yaml           the resolved options, which `aalp train --config` accepts
    metrics.csv           one row an epoch
    weights/              last.safetensors and best.safetensors: the averaged weights, what is evaluated and exported
    states/               step-*.safetensors: what a resumed run continues from, the newest kept
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
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def audits(self) -> Path:
        return self.path / "audits"

    @property
    def analyses(self) -> Path:
        return self.path / "analyses"

    def weights(self, which: str) -> Path:
        """The weights file `last` or `best`."""
        return self.path / "weights" / f"{which}.safetensors"

    def state(self, step: int) -> Path:
        """The training state after a number of steps."""
        return self.path / "states" / f"step-{step:08d}.safetensors"

    def states(self) -> list[Path]:
        """All training states, oldest first."""
        return sorted((self.path / "states").glob("step-*.safetensors"))

    def drop_old_states(self) -> None:
        """Keep the newest states of this run only."""
        for path in self.states()[:-STATES_KEPT]:
            path.unlink(missing_ok=True)

    @staticmethod
    def create(path: Path) -> RunDirectory:
        """A new run directory.

        Raises:
            RunError: the path exists already (nothing is ever overwritten) or cannot be made.
        """
        if path.exists():
            raise RunError(f"'{path}' exists already: choose another --run, or continue it with --resume {path}")
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"run directory '{path}' cannot be made: {error.strerror}; choose another --run") from error
        return RunDirectory(path)

    @staticmethod
    def open(path: Path) -> RunDirectory:
        """An existing run directory.

        Raises:
            RunError: it is not one.
        """
        run = RunDirectory(path)
        if not run.config.is_file():
            what = "is not a run directory (it has no config.yaml)" if path.is_dir() else "does not exist"
            raise RunError(f"'{path}' {what}: name a directory that `aalp train` made")
        return run


def free_path(folder: Path, stem: str, suffix: str = "") -> Path:
    """The first of STEM-001SUFFIX, STEM-002SUFFIX, ... that does not exist in the folder."""
    number = 1
    while (path := folder / f"{stem}-{number:03d}{suffix}").exists():
        number += 1
    return path
