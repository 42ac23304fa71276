"""What the committed pages say is what the committed records hold, by the rules of today."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aalp.commands.comparison import judged_anew, markdown
from aalp.store.records import read_record

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "benchmarks" / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_study_s_page_is_what_its_records_say() -> None:
    assert (ROOT / "benchmarks" / "study" / "README.md").read_text() == script("study/page.py").page()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/comparison.json")), ids=lambda path: path.parent.name)
def test_a_comparison_s_page_is_what_its_record_says(path: Path) -> None:
    record = read_record(path, "comparison")
    assert judged_anew(record)["compared"] == record["compared"]
    assert path.with_suffix(".md").read_text() == markdown(record)


def test_the_comparison_of_six_seeds_is_of_the_two_that_it_names() -> None:
    folders = ["cifar10-3-epochs", "cifar10-3-epochs-more"]
    records = [read_record(RESULTS / folder / "comparison.json", "comparison") for folder in folders]
    joined = script("joined_comparison.py").joined
    whole = read_record(RESULTS / "cifar10-3-epochs-six-seeds" / "comparison.json", "comparison")
    assert whole | joined(records, ["aalp", "alp"]) == whole
    with pytest.raises(SystemExit, match="other seeds"):  # seed 0 twice
        joined([records[0], records[0]], ["aalp"])
    with pytest.raises(SystemExit, match="each of the rows aalp, clp"):
        joined(records, ["aalp", "clp"])
    rows = [
        [cell for cell in record["cells"] if cell["objective"] == name]
        for record, name in zip(records, ("at", "alp"), strict=True)
    ]
    told = joined([{**record, "cells": cells} for record, cells in zip(records, rows, strict=True)], ["at", "alp"])
    assert [(cell["objective"], cell["seed"]) for cell in told["cells"]] == [
        *(("at", seed) for seed in range(3)),
        *(("alp", seed) for seed in range(3, 6)),
    ]


def test_the_comparison_of_twenty_epochs_is_of_the_runs_that_it_names() -> None:
    recorded, joined = (getattr(script("joined_comparison.py"), name) for name in ("recorded", "joined"))
    folder = RESULTS / "mnist-20-epochs-clipped"
    whole = read_record(RESULTS / "mnist-20-epochs-seeds" / "comparison.json", "comparison")
    rows = list(whole["table"])
    runs = recorded(folder, rows)
    assert runs["cells"] == whole["cells"]
    assert whole | joined([runs], rows) == whole
    with pytest.raises(SystemExit, match="each of the rows clp"):
        joined([recorded(folder, ["clp"])], ["clp"])


def test_the_page_on_the_observations_has_every_sentence_of_its_records_and_no_other() -> None:
    said = [line[2:] for line in (ROOT / "docs" / "observations.md").read_text().splitlines() if line.startswith("- ")]
    records = [
        read_record(RESULTS / f"{name}-observations" / "observations.json", "observations") for name in ("digits", "mnist")
    ]
    assert said == [found["sentence"] for record in records for found in record["observations"]]


def test_the_page_of_results_has_the_main_table() -> None:
    table = script("results_table.py").main_table()
    assert table in (ROOT / "docs" / "results.md").read_text()
    best = json.loads((RESULTS / "digits" / "comparison.json").read_text())["table"]["aalp"]["autoattack"]["mean"]
    assert f"| digits | aalp | 5 | 500 | 98.5 +- 0.1 | 81.5 +- 0.8 | 81.5 +- 0.3 | {100 * best:.1f} +- 0.5 |" in table


def evaluation(**changes: Any) -> dict[str, Any]:
    record = json.loads((RESULTS / "mnist" / "aalp.json").read_text())
    return {**record, "images": 100, **changes}


def test_the_interval_beside_an_accuracy_is_its_own() -> None:
    """20 of 100: Wilson's 95 % interval is 13.3 to 28.9 %; 15 of 100: 9.3 to 23.3 %."""
    whole, pgd = ({"name": name, "accuracy": accuracy} for name, accuracy in (("autoattack", 0.2), ("pgd-40", 0.3)))
    table = script("results_table.py")
    alone, below = "20.0% (13.3% - 28.9%)", "15.0% (9.3% - 23.3%)"
    assert table.row(evaluation(robust=0.2, attacks=[pgd, whole]))[7] == alone
    assert table.row(evaluation(robust=0.15, attacks=[pgd, whole]))[7] == f"{alone}; worst case of all {below}"
    assert table.row(evaluation(robust=0.15, attacks=[pgd]))[7] == f"not run; pgd-40 {below}"
