from __future__ import annotations

from pathlib import Path

import pytest

from aalp.errors import RunError
from aalp.store.run import STATES_KEPT, RunDirectory, free_path


def test_all_paths_lie_inside_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    paths = [run.config, run.metrics, run.evaluations, run.weights("last"), run.weights("best"), run.state(3)]
    assert len(set(paths)) == len(paths)
    assert all(run.path in path.parents for path in paths)


def test_a_new_run_is_made_with_the_folders_above_it(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "some" / "where" / "run")
    assert run.path.is_dir()
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("existing", ["file", "folder", "dangling link"])
def test_what_exists_is_never_made_again(existing: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if existing == "file":
        path.write_text("mine")
    elif existing == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match=f"'{path}'.*choose another --run"):
        RunDirectory.create(path)
    if existing == "folder":
        assert (path / "mine").read_text() == "mine"


def test_a_run_is_opened_by_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: digits")
    assert RunDirectory.open(tmp_path).path == tmp_path


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run directory \(it has no config.yaml\): name a directory that"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="other' does not exist: name a directory that"):
        RunDirectory.open(tmp_path / "other")


def test_the_newest_states_are_kept_and_nothing_else_is_dropped(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "states").mkdir()
    others = [tmp_path / "states" / "notes.txt", tmp_path / "step-1.safetensors"]
    for path in [*others, *(run.state(step) for step in (2, 1000, 30, 4))]:
        path.write_bytes(b"")
    assert run.states() == [run.state(step) for step in (2, 4, 30, 1000)]
    run.drop_old_states()
    assert run.states() == [run.state(step) for step in (2, 4, 30, 1000)][-STATES_KEPT:]
    assert all(path.exists() for path in others)


def test_without_states_there_is_nothing_to_list_or_drop(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.states() == []
    run.drop_old_states()
    assert list(tmp_path.iterdir()) == []


def test_the_first_free_number_is_taken(tmp_path: Path) -> None:
    assert free_path(tmp_path / "runs", "aalp") == tmp_path / "runs" / "aalp-001"
    (tmp_path / "runs" / "aalp-001").mkdir(parents=True)
    (tmp_path / "runs" / "aalp-002").write_text("a file counts, too")
    (tmp_path / "runs" / "at-003").mkdir()
    assert free_path(tmp_path / "runs", "aalp") == tmp_path / "runs" / "aalp-003"
