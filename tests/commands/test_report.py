"""`aalp report`: which runs, where to, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from report_helpers import make_run, write_observations

from aalp.cli import main
from aalp.store.records import write_record


def test_one_run_gets_its_report_and_never_loses_one(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    for name in ("report.html", "report-002.html", "report-003.html"):
        assert main(["report", str(run)]) == 0
        assert capsys.readouterr().out == f"report: {run / name}\n"
        assert (run / name).read_text().startswith("<!doctype html>")


def test_several_runs_go_to_the_next_free_name_in_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(Path("runs") / name, name, analysis=False) for name in ("at", "aalp")]
    write_observations(Path("runs"), runs)
    assert main(["report", *map(str, runs), "--title", "at or aalp"]) == 0
    assert capsys.readouterr().out == f"report: {Path('runs/report-001.html')}\n"
    page = Path("runs/report-001.html").read_text()
    assert "<title>at or aalp</title>" in page
    assert "sentence 1 True" in page
    assert "opposite holds" not in page
    # Newer statements of fewer images do not take their place.
    few = json.loads(Path("runs/observations.json").read_text())
    few |= {"created": "3000", "observations": [{**found, "sentence": "few"} for found in few["observations"]], "images": 1}
    Path("runs/observations-001.json").write_text(json.dumps(few))
    assert main(["report", *map(str, runs), "--out", "again.html"]) == 0
    assert "sentence 1 True" in Path("again.html").read_text()
    # Statements on other runs are not these runs'.
    assert main(["report", str(runs[0]), "--out", "one.html"]) == 0
    assert "sentence 1 True" not in Path("one.html").read_text()


def comparison(path: Path) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"data": "digits"}))
    robust = {"standard": (0.5, 0.6), "aalp": (0.7, 0.8)}
    cells = [
        {"objective": name, "seed": seed, "images": 1000, "figures": {"autoattack": robust[name][seed]}}
        for name in ("standard", "aalp")
        for seed in (0, 1)
    ]
    for cell in cells:
        make_run(path / f"{cell['objective']}-seed{cell['seed']}", cell["objective"], cell["seed"], analysis=False)
    write_record(path / "comparison.json", "comparison", {"cells": cells, "table": {name: {} for name in robust}})
    return path


def test_a_comparison_stands_for_its_runs_and_its_differences_are_told(tmp_path, capsys):
    folder = comparison(tmp_path / "compared")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    page = (folder / "report.html").read_text()
    assert "records of 4 runs" in page
    assert page.index("standard<span") < page.index("aalp<span")
    line = "aalp minus standard, autoattack: +20.0 points with each of 2 seeds, 95 % interval [+19.4, +20.6]"
    assert f"{line} as if one of them had one image more or less: a real difference" in page
    assert "leave out" not in page


def test_differences_that_leave_out_runs_of_the_page_say_so_and_seeds_stand_in_order(tmp_path, capsys):
    folder = comparison(tmp_path / "compared")
    record = json.loads((folder / "comparison.json").read_text())
    # The last command named the second seed alone; the runs of the first are on the page all the same.
    cells = [cell for cell in record["cells"] if cell["seed"] == 1]
    (folder / "comparison.json").write_text(json.dumps({**record, "cells": cells}))
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.index("The differences below leave out standard-seed0 and aalp-seed0:") < page.index("aalp minus standard")
    standard = page[page.index("standard<span") : page.index("aalp<span")]
    assert standard.index(">seed 0<") < standard.index(">seed 1<")


def test_what_is_in_the_way_or_is_no_run_is_refused_before_anything_is_written(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    taken = tmp_path / "taken.html"
    taken.write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("data: digits\n")
    trial = make_run(tmp_path / "search" / "trials" / "0000")
    (tmp_path / "search" / "config.yaml").write_text("objective: at\nspace: {}\n")
    for words, message in (
        ([str(run), "--out", str(taken)], "exists already"),
        ([str(tmp_path / "nothing")], "does not exist"),
        ([str(tmp_path / "empty")], "is not a run directory"),
        ([str(tmp_path / "begun")], "is a comparison without runs yet"),
        ([str(tmp_path / "search")], f"search' is a search, not a run: name one of the runs in it, such as {trial}"),
        ([str(run), "--figures", str(tmp_path)], "is not an empty folder"),
    ):
        assert main(["report", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1
    assert taken.read_text() == "mine"
    assert not list(run.glob("*.html"))


def test_no_run_at_all_is_one_line(capsys):
    assert main(["report"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("missing", ["kaleido", "browser"])
def test_figures_without_what_draws_them_are_refused_in_one_line(missing, tmp_path, capsys, monkeypatch):
    kaleido = pytest.importorskip("kaleido")
    run = make_run(tmp_path / "run")
    if missing == "kaleido":
        monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    else:

        def none_found() -> None:
            raise RuntimeError("no Chrome")

        monkeypatch.setattr(kaleido, "Kaleido", none_found)
    assert main(["report", str(run), "--figures", str(tmp_path / "figures")]) == 2
    err = capsys.readouterr().err
    assert ("pip install 'aalp[figures]'" if missing == "kaleido" else "Chrome or Chromium") in err
    assert err.count("\n") == 1
    assert not list(run.glob("*.html"))


def test_the_title_names_the_data_of_all_runs_or_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = make_run(tmp_path / "one", "at", analysis=False)
    two = make_run(tmp_path / "two", "aalp", analysis=False, data="npz:rot.npz")
    assert main(["report", str(one), str(two)]) == 0
    assert "<title>at and aalp on several data sets</title>" in Path("runs/report-001.html").read_text()
