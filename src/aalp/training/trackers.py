"""Experiment trackers that Fabric logs to: TensorBoard, Weights & Biases, MLflow. A resumed run goes on in its own entry."""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
import uuid
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor

from aalp.distributed import ALONE, Ranks
from aalp.errors import AalpError
from aalp.plain import flat
from aalp.store.files import write_atomically
from aalp.store.run import RunDirectory

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "aalp"
"""Project (W&B) or experiment (MLflow) that runs go to, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME say another."""


@contextmanager
def tracking(
    run: RunDirectory, tracker: TrackerName | None, options: Mapping[str, Any], ranks: Ranks = ALONE
) -> Iterator[list[Logger]]:
    """The loggers of a run, open inside the block, on the main process alone; what was logged before it is kept.

    Args:
        tracker: None for TensorBoard where it is installed, else nothing; the run's metrics.csv is written in any case.
        options: of the run, as plain values, nested; logged when the entry is new.

    Raises:
        AalpError: the tracker is not installed, or cannot be reached.
    """
    loggers = _open(run, tracker) if ranks.is_main else []
    try:
        if not run.metrics.is_file():
            for logger in loggers:
                logger.log_hyperparams(flat(options))
        yield loggers
    except BaseException:
        _close(loggers, "failed")
        raise
    _close(loggers, "success")


def check_tracker(tracker: TrackerName | None) -> None:
    """Raises:
    AalpError: the tracker is not installed.
    """
    if tracker is not None and find_spec(tracker) is None:
        raise AalpError(f'the tracker {tracker} is not installed: pip install "aalp[{tracker}]"')


def log_pictures(loggers: Sequence[Logger], name: str, pictures: Tensor, caption: str, step: int) -> None:
    """Log one sheet of pictures.

    Args:
        pictures: (rows, columns, channels, height, width) in [0, 1].
    """
    image = sheet(pictures)
    for logger in loggers:
        if isinstance(logger, (_WandbTracker, _MLflowTracker)):
            logger.log_picture(name, image, caption, step)
        else:
            _tensorboard_picture(logger, name, image, caption, step)


def log_figures(loggers: Sequence[Logger], record: Mapping[str, Any], step: int) -> None:
    """Log the headline figures of an evaluation under the name of its split."""
    split = record["data"]["split"]
    figures = {f"{split}/clean": record["clean"]}
    if record["robust"] is not None:
        figures[f"{split}/robust"] = record["robust"]
    figures |= {f"{split}/{attack['name'].replace(':', '.')}": attack["accuracy"] for attack in record["attacks"]}
    for logger in loggers:
        logger.log_metrics(figures, step)


def sheet(pictures: Tensor, side: int = 64) -> Image.Image:
    """Pictures (rows, columns, channels, height, width) in [0, 1] side by side, small ones enlarged to about `side` pixels."""
    rows, columns, channels, height, width = pictures.shape
    scale = max(1, side // max(height, width))
    big = pictures.clamp(0, 1).repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    # Channels that are neither grey nor colour are shown as their mean.
    big = big if channels == 3 else big.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    framed = torch.nn.functional.pad(big, (1, 1, 1, 1), value=1.0)
    pixels = framed.permute(0, 3, 1, 4, 2).reshape(rows * (height * scale + 2), columns * (width * scale + 2), 3)
    return Image.fromarray((pixels * 255).round().byte().cpu().numpy())


def _open(run: RunDirectory, tracker: TrackerName | None) -> list[Logger]:
    check_tracker(tracker)
    if tracker == "wandb":
        return [_WandbTracker(run)]
    if tracker == "mlflow":
        return [_MLflowTracker(run)]
    if find_spec("tensorboard") is None:
        return []
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    return [TensorBoardLogger(root_dir=run.path, name="tensorboard", version="")]


def _close(loggers: Sequence[Logger], status: str) -> None:
    for logger in loggers:  # their writer threads end here, not somewhere in what comes next
        logger.finalize(status)


class _WandbTracker(Logger):
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
    """Without a tracker's warnings and notes on its own internals, and with everybody's logging as it was before."""

    @functools.wraps(method)
    def quiet(*args: Any, **kwargs: Any) -> None:
        root, disabled = logging.getLogger(), logging.root.manager.disable
        level, handlers = root.level, list(root.handlers)
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                method(*args, **kwargs)
        finally:
            logging.disable(disabled)
            root.setLevel(level)
            root.handlers[:] = handlers

    return quiet


class _MLflowTracker(Logger):
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


@rank_zero_only
def _tensorboard_picture(logger: Any, name: str, image: Image.Image, caption: str, step: int) -> None:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    logger.experiment.add_image(name, pixels.numpy(), step, dataformats="HWC")
    logger.experiment.add_text(f"{name}/caption", caption, step)


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
