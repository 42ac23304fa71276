from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aalp.cli import PATHS, VERBS, main, presets
from aalp.manual.completion import SCRIPTS, candidates


def completed(line: str) -> list[str]:
    return candidates(line, VERBS, PATHS, presets())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("aalp tr", ["train"]),
        ("aalp train --obj", ["--objective"]),
        ("aalp train --objective t", ["trades"]),
        ("aalp train --objective=t", ["--objective=trades"]),
        ("aalp compare --run x --objectives at,t", ["at,trades"]),
        ("aalp train --config d", ["digits"]),
        ("aalp train --training.sch", ["--training.schedule"]),
        ("aalp train --trai", ["--training."]),
        ("aalp train --training.schedule ", ["one-cycle", "step"]),
        ("aalp train --attack.project ", ["true", "false"]),
        ("aalp train --data n", ["npz:"]),
        ("aalp evaluate run --split t", ["test"]),
        ("aalp evaluate ru", []),
        ("aalp export run --to o", ["onnx"]),
        ("aalp train --run ru", []),
        ("cd there && /usr/bin/aalp rep", ["report"]),
        ("cd aalp; OMP_NUM_THREADS=1 aalp train --training.sch", ["--training.schedule"]),
        ("aalp train --objective aalp --training.sch", ["--training.schedule"]),
        ("aalp evaluate work/aalp --spl", ["--split"]),
        ("aalp completion z", ["zsh"]),
        ("aalp nonsense --", []),
        ("aalp train --help thr", ["threat", "threat.norm", "threat.eps"]),
    ],
)
def test_what_a_word_may_become(line: str, found: list[str]) -> None:
    assert completed(line) == found


@pytest.mark.parametrize("verb", VERBS)
def test_a_lone_dash_offers_every_option_or_its_group(verb: str) -> None:
    offered = completed(f"aalp {verb} --")
    assert {"--json", "--help", "--help-all"} <= set(offered)
    assert len(offered) == len(set(offered)) < 30


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "aalp completion words" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_another_shell_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 2
    assert "bash" in capsys.readouterr().err


BASH = r"""
complete_line() {
    COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
    # The words as bash itself cuts them for a completion: also at : and =.
    local spaced=${1//:/ : }
    read -ra COMP_WORDS <<<"${spaced//=/ = }"
    [[ $1 == *' ' ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    compopt() { local IFS=" "; echo "compopt $*"; }
    _aalp aalp
    echo "${COMPREPLY[*]}"
}
eval "$(aalp completion bash)"
complete -p aalp
complete_line 'aalp tr'
complete_line 'aalp train --training.'
complete_line 'aalp train --training.schedule=o'
complete_line 'aalp train --trai'
complete_line 'aalp evaluate runs/'
"""


def test_bash_completes(tmp_path: Path) -> None:
    command = tmp_path / "aalp"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m aalp "$@"\n')
    command.chmod(0o755)
    process = subprocess.run(
        ["bash", "--norc", "-c", f'PATH="{tmp_path}:$PATH"\n{BASH}'], capture_output=True, text=True, check=True
    )
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0] == "complete -o default -F _aalp aalp"
    assert lines[1] == "train"
    assert "--training.epochs" in lines[2].split()
    # bash replaces what follows the =.
    assert lines[3] == "one-cycle"
    assert lines[4:6] == ["compopt -o nospace", "--training."]
    # Nothing of ours: bash goes on to files.
    assert lines[6:] == [""]
