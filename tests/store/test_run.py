from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aalp.errors import RunError
from aalp.store.run import RunDirectory, free_path, still_free


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


def test_a_directory_in_which_a_process_was_killed_at_once_is_new(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert RunDirectory.create(run).path == run
    (run / ".config.yaml.x1y2.partial").write_text("data: di")
    assert RunDirectory.create(run).path == run
    (run / "config.yaml").write_text("data: digits")
    with pytest.raises(RunError, match="exists already"):
        RunDirectory.create(run)


@pytest.mark.parametrize(
    "inside", ["config.yaml", "metrics.csv", "weights", "states", "evaluations", "weights/best.safetensors"]
)
def test_a_run_with_a_link_that_leads_out_of_it_is_refused(inside: str, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "weights").mkdir(parents=True)
    (run / "config.yaml").write_text("data: digits")
    outside.mkdir() if "." not in inside else outside.write_text("data: digits")
    if inside == "weights":
        (run / "weights").rmdir()
    (run / inside).unlink(missing_ok=True)
    (run / inside).symlink_to(outside)
    with pytest.raises(RunError, match=f"'{run / inside}' is a link that leads out of the run directory"):
        RunDirectory.open(run)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: digits")
    (tmp_path / "weights").symlink_to("weights")
    with pytest.raises(RunError, match="weights' is a link that leads out of the run directory, or in a circle"):
        RunDirectory.open(tmp_path)


def test_a_link_inside_a_run_is_fine(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: digits")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "last.safetensors").write_bytes(b"")
    (tmp_path / "weights" / "best.safetensors").symlink_to("last.safetensors")
    assert RunDirectory.open(tmp_path).path == tmp_path


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    left = [tmp_path / name for name in (".metrics.csv.ab.partial", "states/.step-1.x.partial", "weights/.last.y.partial")]
    others = [tmp_path / name for name in ("metrics.csv", "states/step-1.partial", "weights/.hidden", "mine/.a.partial")]
    for path in (*left, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    run.remove_leftovers()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


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
    run.drop_old_states(2, 1000)
    assert run.states() == [run.state(step) for step in (30, 1000)]
    assert all(path.exists() for path in others)


def test_a_state_of_a_later_step_does_not_push_the_good_ones_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "states").mkdir()
    for step in (4, 6, 8):
        run.state(step).write_bytes(b"")
    run.drop_old_states(1, 6)
    assert run.states() == [run.state(6), run.state(8)]


def test_without_states_there_is_nothing_to_list_or_drop(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.states() == []
    run.drop_old_states(2, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_first_free_number_is_taken(tmp_path: Path) -> None:
    assert free_path(tmp_path / "runs", "aalp") == tmp_path / "runs" / "aalp-001"
    (tmp_path / "runs" / "aalp-001").mkdir(parents=True)
    (tmp_path / "runs" / "aalp-002").write_text("a file counts, too")
    (tmp_path / "runs" / "at-003").mkdir()
    assert free_path(tmp_path / "runs", "aalp") == tmp_path / "runs" / "aalp-003"


def test_those_who_end_at_once_with_one_name_in_mind_write_each_a_file_of_its_own(tmp_path: Path) -> None:
    def end(number: int) -> Path:
        with still_free(tmp_path / "best-001.json") as place:
            time.sleep(0.01)  # long enough for another to look
            place.write_text(str(number))
        return place

    with ThreadPoolExecutor(6) as pool:
        places = list(pool.map(end, range(6)))
    assert [int(place.read_text()) for place in places] == list(range(6))
    assert sorted(place.name for place in places) == [f"best-00{number}.json" for number in range(1, 7)]
