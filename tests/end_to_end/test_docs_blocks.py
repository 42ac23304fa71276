"""Every block of code in README.md and docs/ runs, page by page, in the order in which a reader would run it.

The rules, which CONTRIBUTING.md tells: a block says its language. `bash` blocks run in a shell, with the commands of aalp
shortened as in command_server.py; `python` blocks of a page share their names, and find `loader`, `images`, `labels`,
`test_images` and `test_labels`; `yaml` is parsed; `text` is what a command prints. Before a block,
`<!-- test: skip, REASON -->` leaves it out and `<!-- test: with WORDS -->` adds words to each command of aalp in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command_server
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {"bad-input.md", "cli.md", "audit-known-bad.md"}
LANGUAGES = {"bash", "python", "yaml", "text"}

BLOCK = re.compile(r"(?:<!-- test: ([^\n]*?) -->\n)?^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

REASONS = ("needs ", "installs ", "downloads ", "stands for ", "takes ")
"""How a reason for leaving a block out may begin: each is something that a test cannot have, or a placeholder."""


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    rule: str

    @property
    def skipped(self) -> str:
        """The reason, if the block is left out."""
        return self.rule.removeprefix("skip, ") if self.rule.startswith("skip") else ""


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = BLOCK.finditer(text)
    return [Block(text.count("\n", 0, m.start(2)) + 1, m[2], m[3], m[1] or "") for m in found]


ALL = {str(page.relative_to(ROOT)): blocks(page) for page in PAGES if page.name not in GENERATED}
RUN = {name: found for name, found in ALL.items() if any(b.language != "text" and not b.skipped for b in found)}


@pytest.mark.parametrize("name", ALL)
def test_every_block_says_its_language_and_why_it_is_left_out(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.count("```") == 2 * len(ALL[name]), "a fence that is not at the start of a line, or not closed"
    # An indented block has no language and would run nowhere.
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\n\n {4}(aalp|pip|make|python|docker|torchrun|srun) ", outside)
    for block in ALL[name]:
        assert block.language in LANGUAGES, f"line {block.line}: write ```bash, python, yaml or text"
        assert not block.rule or re.match(r"skip, |with ", block.rule), f"line {block.line}: {block.rule}"
        assert not block.skipped or block.skipped.startswith(REASONS), f"line {block.line}: {block.skipped}"


def test_few_blocks_are_left_out() -> None:
    code = [block for found in ALL.values() for block in found if block.language != "text"]
    skipped = [block for block in code if block.skipped]
    assert len(skipped) <= 0.4 * len(code), f"{len(skipped)} of {len(code)}"
    assert len(code) - len(skipped) >= 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an `aalp` in it that answers quickly."""
    folder = tmp_path_factory.mktemp("bin")
    path = str(folder / "socket")
    process = subprocess.Popen([sys.executable, command_server.__file__, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        command_server.write_client(folder, path)
        yield folder
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, tiny_npz: Path, tiny_run: Path, write_images: Callable[..., Path]
) -> Path:
    """What is there where a page begins: mnist.npz, photos/, and a finished run in runs/mine; benchmarks/ is linked to."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copy(tiny_npz, folder / "mnist.npz")
    for tone, name in ((0, "cat"), (180, "dog")):
        write_images(folder / "photos" / "train" / name, 30, tone=tone)
        write_images(folder / "photos" / "test" / name, 4, tone=tone)
    shutil.copytree(tiny_run, folder / "runs" / "mine")
    return folder


def given() -> dict[str, Any]:
    """The names that python blocks find.

    All images that a network may learn from are of class 0, so that the test images of other classes are wrong already and
    an AutoAttack on a whole ResNet has no work.
    """
    random = torch.Generator().manual_seed(0)
    batch = torch.rand(4, 3, 32, 32, generator=random), torch.zeros(4, dtype=torch.int64)
    test = {"test_images": torch.rand(2, 3, 32, 32, generator=random), "test_labels": torch.tensor([9, 8])}
    return {"loader": [batch] * 3, "images": batch[0], "labels": batch[1], **test}


@pytest.mark.parametrize("name", RUN)
def test_the_blocks_of_a_page_run(
    name: str, server: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    shutil.copytree(template, page)
    (page / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(page)
    monkeypatch.setenv("PATH", f"{server}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names = given()
    torch.manual_seed(0)
    for block in RUN[name]:
        if block.skipped:
            continue
        if block.language == "python":
            exec(compile(block.code, f"{name}, line {block.line}", "exec"), names)
        elif block.language == "yaml":
            assert yaml.safe_load(block.code) is not None
        elif block.language == "bash":
            words = block.rule.removeprefix("with ") if block.rule.startswith("with ") else ""
            again = f'aalp() {{ command aalp "$@" {words}; }}\n' if words else ""
            process = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", again + block.code], capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            assert process.returncode == 0, f"{name}, line {block.line}:\n{process.stdout}\n{process.stderr}"
