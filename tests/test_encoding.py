"""Text files are UTF-8 whatever the locale is: runs and exports travel between machines."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import aalp

SOURCES = sorted(Path(aalp.__file__).parent.rglob("*.py"))


def in_the_locale_s_encoding(call: ast.Call) -> bool:
    """Whether this reads or writes text, and leaves it to the locale how."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    if name in ("read_text", "write_text"):
        return "encoding" not in given
    modes = [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    # Our own, Pillow's and the system's open take a path, and no mode.
    text = isinstance(call.func, ast.Name) or "newline" in given or not call.args or bool(modes)
    return name in ("open", "fdopen") and text and "encoding" not in given and not any("b" in mode for mode in modes)


def test_no_text_file_is_read_or_written_in_the_locale_s_encoding() -> None:
    found = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and in_the_locale_s_encoding(node)
    ]
    assert len(SOURCES) > 100
    assert found == []


def test_a_configuration_is_read_as_utf_8_in_a_locale_without_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: folder:größe\n", encoding="utf-8")
    code = "from pathlib import Path; from aalp.commands.yaml_file import read_yaml; print(ascii(read_yaml(Path('mine.yaml'))))"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **locale}, capture_output=True, text=True, check=True
    )
    assert told.stdout == "{'data': 'folder:gr\\xf6\\xdfe'}\n"
