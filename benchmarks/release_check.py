"""Builds what would be published and uses it as a stranger would: `make release-check`, some minutes and 6 GB.

1. `python -m build` from a copy of the committed files: sdist, and the wheel from the sdist.
2. The wheel holds the package, presets and templates, and no tests; its version is the sdist's.
3. A venv of its own, in a temporary folder that is removed, gets the wheel with the pinned versions; `pip check`.
4. There, outside the checkout: help, completion, a short training with its evaluation, a report, the library.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("aalp/py.typed", "aalp/presets/digits.yaml", "aalp/report/page.html.j2", "aalp/manual/options.py")
SHORT = ["--training.epochs", "1", "--attack.steps", "1", "--evaluation.images", "8", "--evaluation.attacks", "fgsm"]


def run(*words: str | Path, folder: Path, quiet: bool = True) -> str:
    """The output of a command that has to succeed, without this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    print("$", *words, flush=True)
    process = subprocess.run([str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode or not quiet:
        print(process.stdout, process.stderr, sep="\n")
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}")
    return process.stdout


def check_wheel(wheel: Path, sdist: Path) -> str:
    """The wheel's version, if it holds what it has to."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = Parser().parsestr(archive.read(next(name for name in names if name.endswith("METADATA"))).decode())
    missing = [name for name in NEEDED if name not in names]
    foreign = [name for name in names if not name.startswith(("aalp/", "aalp-"))]
    if missing or foreign:
        raise SystemExit(f"{wheel.name} lacks {missing} and has {foreign}")
    if about["Version"] not in sdist.name or about["Description-Content-Type"] != "text/markdown" or not about.get_payload():
        raise SystemExit(f"{wheel.name}: version {about['Version']} is not that of {sdist.name}, or there is no description")
    return str(about["Version"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the archives")
    parser.add_argument("--no-install", action="store_true", help="only build and look into the archives")
    given = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # The checkout itself is left alone: no build/ or *.egg-info of this run can get into another.
        run("git", "clone", "--quiet", ROOT, place / "source", folder=place)
        run(sys.executable, "-m", "build", "--outdir", place / "dist", ".", folder=place / "source")
        (wheel,), (sdist,) = ((place / "dist").glob(pattern) for pattern in ("*.whl", "*.tar.gz"))
        version = check_wheel(wheel, sdist)
        given.out.mkdir(parents=True, exist_ok=True)
        for archive in (wheel, sdist):
            shutil.copy(archive, given.out)
        if not given.no_install:
            use(wheel, version, place)
    print(
        f"aalp {version}: {', '.join(archive.name for archive in (wheel, sdist))} in {given.out}; "
        f"{(time.perf_counter() - started) / 60:.1f} minutes"
    )


def use(wheel: Path, version: str, place: Path) -> None:
    """Install the wheel into a new venv and work with it."""
    run(sys.executable, "-m", "venv", place / "venv", folder=place)
    python, aalp = place / "venv" / "bin" / "python", place / "venv" / "bin" / "aalp"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, folder=place)
    run(python, "-m", "pip", "check", folder=place)
    work = place / "work"
    work.mkdir()
    if run(aalp, "--version", folder=work) != f"aalp {version}\n":
        raise SystemExit("the installed command has another version than the wheel")
    run(aalp, "--help", folder=work)
    run(aalp, "train", "--help", folder=work)
    run(aalp, "completion", "bash", folder=work)
    told = json.loads(run(aalp, "train", *SHORT, "--evaluate", "--run", "run", "--quiet", "--json", folder=work))
    if told["exit_code"] != 0 or told["result"]["evaluation"]["images"] != 8:
        raise SystemExit(f"the training ended with {told}")
    run(aalp, "report", "run", folder=work)
    run(python, "-c", "import aalp; print(aalp.load('run').num_classes)", folder=work)


if __name__ == "__main__":
    main()
