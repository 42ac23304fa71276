"""docs/bad-input.md is generated from the tables whose every row is a test: `python tests/commands/test_bad_input_page.py`."""

from __future__ import annotations

from pathlib import Path

from bad_input import COMPARE, EVALUATE_FOREIGN, ON_TINY, TRAIN, Case
from test_bad_data import BAD_DATA
from test_bad_models import BAD_MODELS
from test_bad_names import BAD_NAMES
from test_bad_options import BAD_OPTIONS
from test_bad_runs import BAD_RUNS
from test_strangers import STRANGERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad-input.md"

HEAD = """# Bad input

Each row is a test: the command ends with exit code 2 and one line on stderr that has these pieces in it, nothing on stdout, and
no file is made or changed. `...` stands for options that are in order. The page is generated from the tests' own tables by
`python tests/commands/test_bad_input_page.py`; a test compares the two.

Nothing that is loaded is unpickled: weights and states are safetensors, records JSON, options YAML (safe), `torch.load` takes
tensors only, `numpy.load` no objects. One exception is not ours: torchvision keeps CIFAR as its authors' pickles, and opens
them only after it has checked their published MD5 sums.
"""

FROM_STRANGERS: dict[str, Case] = {name: (make, words, (needle,)) for name, (make, words, needle) in STRANGERS.items()}
ROOMS = {
    "Names": BAD_NAMES,
    "Options": BAD_OPTIONS,
    "Data": BAD_DATA,
    "Models": BAD_MODELS,
    "Runs, checkpoints and records": BAD_RUNS,
    "From strangers": FROM_STRANGERS,
}


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for title, cases in ROOMS.items():
        parts.append(f"## {title}\n\n| what is wrong | command | the line says |\n|---|---|---|")
        parts[-1] += "".join(f"\n{row(name, case)}" for name, case in cases.items()) + "\n"
    return "\n".join(parts)


def row(name: str, case: Case) -> str:
    """One case as a row of the table."""
    _, words, needles = case
    for long, short in (
        (ON_TINY, "train ... "),
        (COMPARE, "compare ... "),
        (EVALUATE_FOREIGN, "evaluate foreign.safetensors ... "),
    ):
        words = words.replace(long, short)
    words = words.replace(TRAIN, "train ... ").strip()
    said = ", ".join(f"`{needle}`" for needle in needles)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (name, f"`aalp {words}`", said)) + " |"


def test_the_page_is_what_the_tests_prove() -> None:
    assert PAGE.read_text() == page(), "generate it anew: python tests/commands/test_bad_input_page.py"


if __name__ == "__main__":
    PAGE.write_text(page())
