from __future__ import annotations

import datetime
import json
import math
import subprocess
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from aalp.errors import RunError
from aalp.store import records
from aalp.store.records import SCHEMA, environment, read_record, read_table, write_csv, write_record, write_table


def test_a_record_comes_back_with_its_kind_time_and_environment(tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    written = write_record(tmp_path / "deep" / "r.json", "evaluation", {"clean": 0.5, "names": ["a"]})
    read = read_record(tmp_path / "deep" / "r.json", "evaluation")
    assert read == written
    assert (read["schema"], read["kind"], read["clean"], read["names"]) == (SCHEMA, "evaluation", 0.5, ["a"])
    assert before <= datetime.datetime.fromisoformat(read["created"]) <= datetime.datetime.now(datetime.timezone.utc)
    assert read["environment"] == environment()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_json_is_never_written(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path / "r.json", "evaluation", {"clean": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a readable record"),
        (b"", "is not a readable record"),
        (b'{"schema": 1', "is not a readable record"),
        (b"\xff\xfe", "is not a readable record"),
        (b"[1, 2]", "is not a readable record"),
        (b'{"kind": "evaluation"}', "is not a readable record"),
        (json.dumps({"schema": SCHEMA, "kind": "comparison"}).encode(), "a record of kind 'comparison'.* move it away"),
        (
            json.dumps({"schema": SCHEMA + 1, "kind": "evaluation"}).encode(),
            f"is a record of kind 'evaluation' and schema {SCHEMA + 1}.* use the aalp version that wrote it",
        ),
    ],
)
def test_what_is_no_record_of_the_kind_is_refused_by_name(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        read_record(path, "evaluation")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_commit_is_not_that_of_a_project_with_the_package_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "--message", "mine")
    for place, commit in ((".venv/lib/python3.12/site-packages", None), ("src", git("rev-parse", "HEAD"))):
        file = tmp_path / place / "aalp" / "store" / "records.py"
        file.parent.mkdir(parents=True)
        monkeypatch.setattr(records, "__file__", str(file))
        assert environment()["commit"] == commit


def test_a_table_comes_back_column_by_column(tmp_path: Path) -> None:
    columns = {
        "index": [0, 1, 2],
        "broken_by": [None, "clean", "fgsm"],
        "stands": [True, False, False],
        "n90": [1.0, 2.5, math.nan],
    }
    write_table(tmp_path / "deep" / "t.parquet", columns)
    read = parquet.read_table(tmp_path / "deep" / "t.parquet").to_pydict()
    assert list(read) == list(columns)
    assert {name: read[name] for name in ("index", "broken_by", "stands")} == {
        name: columns[name] for name in ("index", "broken_by", "stands")
    }
    assert read["n90"][:2] == [1.0, 2.5]
    assert math.isnan(read["n90"][2])


def test_the_environment_says_what_a_result_was_made_with() -> None:
    found = environment()
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or found["versions"]["torch"] == torch.__version__
    assert found["versions"]["pyautoattack"][0].isdigit()
    assert "not installed" not in found["versions"].values()
    assert found["cpus"] >= 1
    assert found["threads"] == torch.get_num_threads()
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found


def test_a_table_comes_back_with_its_columns(tmp_path: Path) -> None:
    columns = {"index": [0, 1], "broken_by": [None, "fgsm"], "stands": [True, False]}
    write_table(tmp_path / "t.parquet", columns)
    assert read_table(tmp_path / "t.parquet") == columns


@pytest.mark.parametrize("content", [None, b"", b"no table"])
def test_what_is_no_table_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"t\.parquet' is not a readable table"):
        read_table(path)


def test_a_csv_table_leaves_the_cells_of_none_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", {"name": ["a, b", "c"], "value": [0.5, None]})
    assert (tmp_path / "t.csv").read_bytes() == b'name,value\r\n"a, b",0.5\r\nc,\r\n'
    with pytest.raises(ValueError, match="zip"):
        write_csv(tmp_path / "torn.csv", {"name": ["a"], "value": []})
