"""Analyses that end at the same moment in one folder."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aalp.commands import analyze
from aalp.store.records import read_record, write_record


def test_each_keeps_its_statements_under_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*words: Any) -> dict[str, Any]:
        time.sleep(0.05)  # long enough for another to look
        return write_record(*words)

    def end(name: str) -> Path:
        observation = {"number": 1, "claim": name, "holds": True, "sentence": name}
        return analyze._write_observations(tmp_path, {"runs": [name], "observations": [observation]}, [])

    monkeypatch.setattr(analyze, "write_record", slowly)
    names = ["one", "two", "three"]
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(end, names))
    assert [read_record(path, "observations")["runs"] for path in paths] == [[name] for name in names]
    assert sorted(path.name for path in paths) == ["observations-001.json", "observations-002.json", "observations.json"]
    assert [path.with_suffix(".csv").read_text().splitlines()[1].split(",")[1] for path in paths] == names
