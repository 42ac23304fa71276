"""Trackers get the options, the metrics, the pictures and the figures, and a resumed run goes on in its own entry."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aalp.cli import main
from aalp.errors import AalpError, RunError
from aalp.store.run import RunDirectory
from aalp.training import trackers
from aalp.training.loop import fit
from aalp.training.plan import Fit
from aalp.training.trackers import check_tracker, sheet, tracking

MakeFit = Callable[..., Fit]


def test_tensorboard_gets_the_metrics_where_it_is_installed(fit_plan: MakeFit) -> None:
    run = fit_plan().run
    with tracking(run, None, {"training": {"lr": 0.05}}) as loggers:
        fit(fit_plan(loggers=loggers))
    events = b"".join(file.read_bytes() for file in (run.path / "tensorboard").glob("events.*"))
    assert b"validation_robust" in events
    assert b"training.lr" in events


def test_a_disk_that_refuses_tensorboard_is_told_in_one_line(
    fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its thread printed a traceback, and Lightning took it for a metric of a kind that it does not know."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(self: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = fit_plan().run
    refused = pytest.raises(RunError, match=f"'{run.path}/tensorboard' could not be written: No space left on device; free")
    with refused, tracking(run, "tensorboard", {"seed": 1}) as loggers:
        loggers[0].log_metrics({"loss": 1.0}, 1)  # opens the file
        monkeypatch.setattr(RecordWriter, "write", full)
        for step in range(100):  # the thread may be a few behind
            loggers[0].log_metrics({"loss": 1.0}, step)
    assert capfd.readouterr().err == ""


@pytest.fixture
def words(train_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny training with an evaluation, in a folder of its own, whose trackers write to that folder alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return [*train_words, "--evaluate", "--evaluation.attacks", "fgsm", "--run", "run"]


def test_tensorboard_gets_pictures_and_figures(words: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main([*words, "--tracker", "tensorboard"]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"test/clean", "test/robust", "test/fgsm", "validation_robust", "loss"} <= set(events.Tags()["scalars"])
    record = json.loads((tmp_path / "run" / "evaluations" / "test.json").read_text())
    assert events.Scalars("test/robust")[0].value == pytest.approx(record["robust"])
    # Of the best weights, which are not the last: where `aalp evaluate` would put them, too.
    assert [event.step for event in events.Scalars("test/robust")] == [record["model"]["epoch"]]
    assert [event.step for event in events.Scalars("validation_robust")] == [1, 2]
    (picture,) = events.Images("adversarial")
    # Three rows of at most eight pictures of 8x8, enlarged to 64 and framed; seven images are held out for validation.
    assert (picture.width, picture.height) == (7 * 66, 3 * 66)


def test_wandb_offline_gets_everything_and_a_resumed_run_keeps_its_id(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--tracker", "wandb"]) == 0
    entry = json.loads((tmp_path / "run" / "tracker.json").read_text())["wandb"]
    (folder,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{entry}")
    wait_for(tmp_path, entry, b"validation_robust", b"test/robust", b"test/fgsm", b"training.lr")
    assert len(list((folder / "files" / "media" / "images").glob("adversarial*.png"))) == 1
    assert main(["evaluate", "run", "--attacks", "pgd-2", "--tracker", "wandb", "--quiet"]) == 0
    again = json.loads((tmp_path / "run" / "tracker.json").read_text())["wandb"]
    assert again == entry
    wait_for(tmp_path, entry, b"test/pgd-2")


def wait_for(folder: Path, entry: str, *names: bytes) -> None:
    """Until W&B's own process, which writes behind our back, has written all of these for this entry."""
    deadline = time.monotonic() + 30
    while True:
        logged = b"".join(file.read_bytes() for file in (folder / "run" / "wandb").glob(f"offline-run-*-{entry}/*.wandb"))
        missing = [name for name in names if name not in logged]
        if not missing:
            return
        assert time.monotonic() < deadline, f"{missing} not logged"
        time.sleep(0.05)


def test_mlflow_s_local_store_gets_everything_and_a_resumed_run_goes_on_in_its_entry(words: list[str], tmp_path: Path) -> None:
    level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
    assert main([*words, "--tracker", "mlflow"]) == 0
    assert (logging.getLogger().level, logging.getLogger().handlers) == (level, handlers)
    assert main(["evaluate", "run", "--attacks", "pgd-2", "--tracker", "mlflow", "--quiet"]) == 0
    assert (tmp_path / "mlflow.db").is_file()
    run = mlflow_run(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "evaluations" / "test.json").read_text())
    assert run.data.metrics["test/robust"] == pytest.approx(record["robust"])
    assert {"validation_robust", "loss", "test/fgsm", "test/pgd-2"} <= set(run.data.metrics)
    assert run.data.params["training.lr"] == "0.05"
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert "clean -> adversarial prediction" in run.data.tags["adversarial"]
    assert list(Path(run.info.artifact_uri.removeprefix("file://")).glob("pictures/adversarial-000[12].png"))


def mlflow_run(uri: str, run: Path) -> Any:
    """The only entry in MLflow's store, which is the run's own."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("aalp")
        (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == json.loads((run / "tracker.json").read_text())["mlflow"]
    return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where MLflow keeps entries: the older store of plain files, which it wants to be asked for; and a folder `run`."""
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "run").mkdir()
    return uri


def test_an_error_is_marked_in_the_store_that_the_user_names(store: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking(RunDirectory(tmp_path / "run"), "mlflow", {"seed": 1}):
        raise ZeroDivisionError
    assert mlflow_run(store, tmp_path / "run").info.status == "FAILED"


def test_an_entry_keeps_the_options_that_it_was_made_with(store: str, tmp_path: Path) -> None:
    """MLflow takes no other value for a parameter that it has."""
    for keep in (2, 3):  # as where a run is resumed within its first epoch
        with tracking(RunDirectory(tmp_path / "run"), "mlflow", {"checkpoint": {"keep": keep}}) as loggers:
            loggers[0].log_metrics({"loss": 1.0 / keep}, keep)
    run = mlflow_run(store, tmp_path / "run")
    assert run.data.params == {"checkpoint.keep": "2"}
    assert run.data.metrics == {"loss": 1 / 3}


def test_a_refusal_of_mlflow_is_told_in_one_line_and_hides_no_other_error(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def refuses(*arguments: Any, **options: Any) -> None:
        raise MlflowException("the server is full\nand says so at length")

    for name in ("log_metric", "set_terminated"):
        monkeypatch.setattr(MlflowClient, name, refuses)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(AalpError) as caught, tracking(run, "mlflow", {"seed": 1}) as loggers:
        loggers[0].log_metrics({"loss": 1.0}, 1)
    assert str(caught.value) == "mlflow refuses: the server is full; look after MLFLOW_TRACKING_URI, then go on with the run"
    with pytest.raises(ZeroDivisionError), tracking(run, "mlflow", {"seed": 1}) as loggers:
        raise ZeroDivisionError


def test_a_missing_tracker_is_named_with_its_extra_before_anything_is_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(AalpError, match=r'tracker wandb is not installed: pip install "aalp\[wandb\]"'):
        check_tracker("wandb")
    assert main([*words, "--tracker", "mlflow"]) == 2
    assert 'pip install "aalp[mlflow]"' in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_frames_each_picture_and_enlarges_small_ones() -> None:
    pictures = torch.zeros(2, 3, 1, 2, 2)
    pictures[1, 2] = 1.0
    small = sheet(pictures, side=4)
    assert small.size == (3 * 6, 2 * 6)
    assert small.getpixel((0, 0)) == (255, 255, 255)  # the frame
    assert small.getpixel((1, 1)) == (0, 0, 0)
    assert small.getpixel((2 * 6 + 2, 6 + 2)) == (255, 255, 255)
    colour = torch.zeros(1, 1, 3, 4, 4)
    colour[:, :, 0] = 1.0
    assert sheet(colour, side=4).getpixel((2, 2)) == (255, 0, 0)
