"""What mkdocs does not do by itself: pages from outside docs/, notebooks as pages, a list of the decisions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/, notebooks, and the list of decisions."""
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    files.append(File.generated(config, "decisions/index.md", content=decisions()))
    linked = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    seen: set[Path] = set()
    linked += [target for path in DOCS.rglob("*.md") for target in outside(path)]
    while linked:
        path = linked.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        level = InclusionLevel.NOT_IN_NAV if path.name != "README.md" else InclusionLevel.UNDEFINED
        files.append(File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls, inclusion=level))
        if path.suffix == ".md":
            linked += outside(path)
    for file in files:
        if file.src_uri.startswith("decisions/0"):
            file.inclusion = InclusionLevel.NOT_IN_NAV
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository become links in the site."""
    if page.file.generated_by:
        return markdown
    path = Path(page.file.abs_src_path or "")

    def moved(match: re.Match[str]) -> str:
        target = (path.parent / match[2]).resolve()
        if target.is_dir():
            target = target / ("index.md" if target == DOCS / "decisions" else "README.md")
        if not target.is_relative_to(ROOT):
            return match[0]
        uri = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT).as_posix()
        return match[1] + relpath(uri, dirname(page.file.src_uri) or ".") + match[3]

    return "".join(LINK.sub(moved, part) if kept else part for kept, part in _around_code(markdown))


def _around_code(markdown: str) -> Iterator[tuple[bool, str]]:
    """Pieces of a page: (True, text) and (False, a block of code)."""
    at = 0
    for block in FENCE.finditer(markdown):
        yield True, markdown[at : block.start()]
        yield False, block[0]
        at = block.end()
    yield True, markdown[at:]


def outside(path: Path) -> Iterator[Path]:
    """Files of this repository that a page links to and that are not in docs/."""
    for kept, part in _around_code(path.read_text()):
        for match in LINK.finditer(part) if kept else ():
            target = (path.parent / match[2]).resolve()
            target = target / "README.md" if target.is_dir() else target
            if target.is_relative_to(ROOT) and not target.is_relative_to(DOCS):
                yield target


def decisions() -> str:
    """The list of decisions, from their titles."""
    lines = ["# Decisions", "", "One page for each decision that was not obvious.", ""]
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        title = path.read_text().partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def notebook_page(path: Path) -> str:
    """A notebook with its outputs as a page."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts += [f"```python\n{source}\n```", *(_output(output) for output in cell["outputs"])]
    title, *rest = "\n\n".join(part for part in parts if part).split("\n", 1)
    return f"{title}\n\nA notebook that the tests run: [download it]({path.name}).\n" + "".join(rest) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        image = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="what this cell draws" src="data:image/png;base64,{image}">'
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```{{.text .output}}\n{text}\n```" if text else ""
