"""The notebooks run and say what is committed; `python tests/end_to_end/test_notebooks.py` runs them and keeps the outputs."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(notebook: Any, folder: Path) -> Any:
    """A notebook with fresh outputs, those on stderr left out, run in a folder."""
    notebook = copy.deepcopy(notebook)
    # Sockets in the folder, by their whole path: the kernel works in the folder and this process does not.
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "kernel"))
    client = NotebookClient(notebook, timeout=300, km=manager, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def said(notebook: Any) -> list[str]:
    """What the cells print, with numbers left open: they differ a little between machines."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text", output.get("data", {}).get("text/plain", ""))
            found.append(re.sub(r"\d+(\.\d+)?", "#", text))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_it_said(path: Path, tmp_path: Path) -> None:
    committed = nbformat.read(path, 4)
    assert said(committed), "run it and keep the outputs: python tests/end_to_end/test_notebooks.py"
    # In a process of its own: nbclient leaves event loops open, and pytest would blame the tests that follow.
    copied = shutil.copy(path, tmp_path)
    process = subprocess.run([sys.executable, __file__, copied], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert said(nbformat.read(copied, 4)) == said(committed)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for file in map(Path, sys.argv[1:] or NOTEBOOKS):
        with tempfile.TemporaryDirectory() as place:
            nbformat.write(executed(nbformat.read(file, 4), Path(place)), file)
