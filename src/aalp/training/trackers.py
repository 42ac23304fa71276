"""Experiment trackers that Fabric logs to: TensorBoard, Weights & Biases, MLflow. A resumed run goes on in its own entry."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from aalp.distributed import ALONE, Ranks
from aalp.errors import AalpError
from aalp.plain import flat
from aalp.store.run import RunDirectory

if TYPE_CHECKING:  # to import Fabric takes seconds, which an evaluation without a tracker has no use for
    from lightning_fabric.loggers.logger import Logger

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


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
    with _told_once():
        try:
            for logger in loggers:
                if _is_new(run, logger):
                    logger.log_hyperparams(flat(options))
            yield loggers
        except BaseException:
            with suppress(AalpError):  # what went wrong first is what is told
                _close(loggers, "failed")
            raise
        _close(loggers, "success")


@contextmanager
def _told_once() -> Iterator[None]:
    """A disk that refuses what TensorBoard's thread writes: that raises it here, too, and no traceback of it is printed."""
    before = threading.excepthook

    def told(ended: threading.ExceptHookArgs) -> None:
        if not isinstance(ended.exc_value, OSError):
            before(ended)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before


def check_tracker(tracker: TrackerName | None) -> None:
    """Refuse a tracker before anything runs.

    Raises:
        AalpError: it is not installed.
    """
    if tracker is not None and find_spec(tracker) is None:
        raise AalpError(f'the tracker {tracker} is not installed: pip install "aalp[{tracker}]"')


def log_pictures(loggers: Sequence[Any], name: str, pictures: Tensor, caption: str, step: int) -> None:
    """Log one sheet of pictures.

    Args:
        loggers: of `tracking`.
        pictures: (rows, columns, channels, height, width) in [0, 1].
    """
    image = sheet(pictures)
    for logger in loggers:
        logger.log_picture(name, image, caption, step)


def log_figures(loggers: Sequence[Logger], record: Mapping[str, Any]) -> None:
    """Log the headline figures of an evaluation under the name of its split, at the epoch of the weights."""
    split, step = record["data"]["split"], int(record["model"].get("epoch") or 0)
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
        from aalp.training.tracker_services import WandbTracker

        return [WandbTracker(run)]
    if tracker == "mlflow":
        from aalp.training.tracker_services import MLflowTracker

        return [MLflowTracker(run)]
    if find_spec("tensorboard") is None:
        return []
    from aalp.training.tracker_services import TensorBoardTracker

    return [TensorBoardTracker(run)]


def _is_new(run: RunDirectory, logger: Logger) -> bool:
    """Whether a logger's entry has no options yet: a service says which entry it goes on with, TensorBoard has files alone."""
    return logger.version is None or (logger.version == "" and not run.metrics.is_file())


def _close(loggers: Sequence[Logger], status: str) -> None:
    for logger in loggers:  # their writer threads end here, not somewhere in what comes next
        logger.finalize(status)
