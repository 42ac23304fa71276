"""A study draws trials, shares them among processes, prunes them, and keeps them in a journal that a crash may tear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aalp.commands.search_space import Dimension
from aalp.commands.study import PrunedError, Study


def study(folder: Path, **changes: Any) -> Study:
    folder.mkdir(exist_ok=True)
    options = {"space": {"x": Dimension(0.0, 1.0)}, "seed": 0, "prune": True, "warmup": 2, **changes}
    return Study(folder, **options)


def run_trial(one: Study, curve: list[float], count: int = 99) -> str:
    with one.next_trial(count) as trial:
        assert trial is not None
        try:
            for epoch, value in enumerate(curve, start=1):
                trial.report(value, epoch)
        except PrunedError:
            one.tell(trial, None, "pruned")
            return f"pruned after {epoch}"
        one.tell(trial, curve[-1], "complete")
        return "complete"


def test_a_trial_below_the_median_of_four_others_is_pruned_after_the_warmup(tmp_path: Path) -> None:
    one = study(tmp_path / "s")
    # While four have not come to their end, none is pruned, however bad.
    assert [run_trial(one, [level] * 4) for level in (0.4, 0.1, 0.2, 0.3)] == ["complete"] * 4
    # The median of 0.1, 0.2, 0.3, 0.4 is 0.25.
    assert run_trial(one, [0.26, 0.26, 0.26, 0.26]) == "complete"
    assert run_trial(one, [0.0, 0.24, 0.24, 0.24]) == "pruned after 2"
    assert run_trial(study(tmp_path / "s", prune=False), [0.0, 0.0, 0.0, 0.0]) == "complete"
    assert one.rows()[5]["value"] is None


def test_two_processes_share_trials_and_never_draw_the_same(tmp_path: Path) -> None:
    one, other = study(tmp_path / "s"), study(tmp_path / "s")
    with one.next_trial(2) as first, other.next_trial(2) as second:
        assert first is not None
        assert second is not None
        assert (first.number, second.number) == (0, 1)
        assert first.values != second.values
        # Both are at work: there is nothing to take over and nothing more to begin.
        with study(tmp_path / "s").next_trial(2) as third:
            assert third is None
    with one.next_trial(2) as orphan:  # nobody told how it ended: it is begun and its process gone
        assert orphan is not None
        assert (orphan.number, orphan.values) == (0, first.values)


def test_a_line_that_a_loss_of_power_tore_is_cut_off(tmp_path: Path) -> None:
    one = study(tmp_path / "s")
    assert run_trial(one, [0.5]) == "complete"
    journal = tmp_path / "s" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "tri')
    assert one.rows()[0]["value"] == 0.5
    assert journal.read_bytes().startswith(whole)
    assert b'"tri' not in journal.read_bytes()[len(whole) :].replace(b'"trial', b"")
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
