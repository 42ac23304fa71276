"""Writes benchmarks/study/README.md from notes.md and the records beside it: every figure on the page is a record's.

python benchmarks/study/page.py
"""

from __future__ import annotations

from pathlib import Path

from aalp.commands.comparison import judged_anew, markdown
from aalp.store.records import read_record

HERE = Path(__file__).parent


def main() -> None:
    (HERE / "README.md").write_text(page())


def page() -> str:
    parts = [(HERE / "notes.md").read_text().rstrip()]
    for record_path in sorted(HERE.glob("*.json")):
        config = record_path.with_suffix(".yaml")
        question = " ".join(line[1:].strip() for line in config.read_text().splitlines() if line.startswith("#"))
        parts.append(f"## {record_path.stem}\n\n{question} Rows: [{config.name}]({config.name}).")
        parts.append(markdown(judged_anew(read_record(record_path, "comparison"))).rstrip())
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
