"""TensorBoard, W&B and MLflow as loggers of Fabric; apart from `trackers`, which an evaluation imports without Fabric."""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
import uuid
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import frombuffer, uint8

from aalp.errors import AalpError, RunError
from aalp.store.files import write_atomically
from aalp.store.run import RunDirectory

PROJECT = "aalp"
"""Project (W&B) or experiment (MLflow) that runs go to, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME say another."""


def _refused_in_a_line(method: Callable[..., None]) -> Callable[..., None]:
    """With a disk that refuses told as one; Lightning takes it for a metric that it cannot log.

    Raises (when it runs):
        RunError: the disk is full, or the folder cannot be written to.
    """

    @functools.wraps(method)
    def told(tracker: TensorBoardTracker, *args: Any, **kwargs: Any) -> None:
        try:
            method(tracker, *args, **kwargs)
        except (OSError, ValueError) as error:
            refusal = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(refusal, OSError):
                raise
            reason = refusal.strerror or refusal
            folder = tracker.run.path / str(tracker.name)
            raise RunError(f"'{folder}' could not be written: {reason}; free space or make it writable") from error

    return told


class TensorBoardTracker(TensorBoardLogger):
    """TensorBoard: files in the run directory's tensorboard/, written by a thread of its own."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(root_dir=run.path, name="tensorboard", version="")
        self.run = run

    log_metrics = _refused_in_a_line(TensorBoardLogger.log_metrics)
    log_hyperparams = _refused_in_a_line(TensorBoardLogger.log_hyperparams)
    finalize = _refused_in_a_line(TensorBoardLogger.finalize)

    @rank_zero_only
    @_refused_in_a_line
    def log_picture(self, name: str, image: Image.Image, caption: str, step: int) -> None:
        pixels = frombuffer(bytearray(image.tobytes()), dtype=uint8).view(image.height, image.width, 3)
        self.experiment.add_image(name, pixels.numpy(), step, dataformats="HWC")
        self.experiment.add_text(f"{name}/caption", caption, step)


class WandbTracker(Logger):
    """Weights & Biases. WANDB_MODE=offline writes to the run directory's wandb/, for `wandb sync` later."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._entry: Any = None

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def version(self) -> str | None:
        return _known(self.run).get("wandb")

    def _opened(self) -> Any:
        if self._entry is None:
            import wandb

            entry = self.version or uuid.uuid4().hex[:8]
            try:
                self._entry = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", PROJECT),
                    name=self.name,
                    id=entry,
                    resume="allow",
                    dir=self.run.path,
                    settings=wandb.Settings(silent=True, console="off"),
                )
            except wandb.errors.Error as error:
                reason = str(error).splitlines()[0]
                raise AalpError(f"wandb does not start: {reason}: run `wandb login`, or set WANDB_MODE=offline") from error
            _remember(self.run, "wandb", entry)
            # Steps of ours are epochs; its own counter goes on where it was.
            self._entry.define_metric("epoch")
            self._entry.define_metric("*", step_metric="epoch")
        return self._entry

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._opened().log({**metrics, "epoch": step})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._opened().config.update(dict(params), allow_val_change=True)

    @rank_zero_only
    def log_picture(self, name: str, image: Image.Image, caption: str, step: int) -> None:
        import wandb

        self._opened().log({name: wandb.Image(image, caption=caption), "epoch": step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._entry is not None:
            self._entry.finish(exit_code=0 if status == "success" else 1)
            self._entry = None


def _quietly(method: Callable[..., None]) -> Callable[..., None]:
    """Without MLflow's warnings and notes on its own internals, with everybody's logging as it was before.

    Raises (when it runs):
        AalpError: MLflow refuses, in one line.
    """

    @functools.wraps(method)
    def quiet(*args: Any, **kwargs: Any) -> None:
        root, disabled = logging.getLogger(), logging.root.manager.disable
        level, handlers = root.level, list(root.handlers)
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                method(*args, **kwargs)
        except Exception as error:
            from mlflow.exceptions import MlflowException

            if not isinstance(error, MlflowException):
                raise
            reason = str(error).splitlines()[0]
            raise AalpError(f"mlflow refuses: {reason}; look after MLFLOW_TRACKING_URI, then go on with the run") from error
        finally:
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers

    return quiet


class MLflowTracker(Logger):
    """MLflow: at MLFLOW_TRACKING_URI, or in ./mlflow.db, which is where `mlflow ui` looks."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._mlflow: Any = None
        self._id = ""

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def version(self) -> str | None:
        return _known(self.run).get("mlflow")

    def _client(self) -> Any:
        if self._mlflow is None:
            import mlflow
            from mlflow.tracking import MlflowClient

            uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
            try:
                client = MlflowClient(uri)
                known = self.version
                if known is not None:
                    self._id = client.get_run(known).info.run_id
                    client.update_run(known, "RUNNING")
                else:
                    title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
                    found = client.get_experiment_by_name(title)
                    experiment = found.experiment_id if found else client.create_experiment(title)
                    self._id = client.create_run(experiment, run_name=self.name).info.run_id
            except mlflow.exceptions.MlflowException as error:
                reason = str(error).splitlines()[0]
                raise AalpError(f"mlflow does not start at '{uri}': {reason}; set MLFLOW_TRACKING_URI") from error
            _remember(self.run, "mlflow", self._id)
            self._mlflow = client
        return self._mlflow

    @rank_zero_only
    @_quietly
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        client = self._client()
        for name, value in metrics.items():
            client.log_metric(self._id, name, float(value), step=step)

    @rank_zero_only
    @_quietly
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        client = self._client()
        for name, value in dict(params).items():
            client.log_param(self._id, name, value)

    @rank_zero_only
    @_quietly
    def log_picture(self, name: str, image: Image.Image, caption: str, step: int) -> None:
        client = self._client()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}-{step:04d}.png"
            image.save(path)
            client.log_artifact(self._id, str(path), "pictures")
        client.set_tag(self._id, name, caption)

    @rank_zero_only
    @_quietly
    def finalize(self, status: str) -> None:
        if self._mlflow is not None:
            self._mlflow.set_terminated(self._id, "FINISHED" if status == "success" else "FAILED")
            self._mlflow = None


def _known(run: RunDirectory) -> dict[str, str]:
    """Entries of this run in trackers, by tracker, from before."""
    try:
        known = json.loads(run.tracker.read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: entry for name, entry in known.items() if isinstance(entry, str)} if isinstance(known, dict) else {}


def _remember(run: RunDirectory, tracker: str, entry: str) -> None:
    known = {**_known(run), tracker: entry}
    write_atomically(run.tracker, (json.dumps(known, indent=2) + "\n").encode())
