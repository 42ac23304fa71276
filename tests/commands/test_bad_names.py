"""Names that nobody has."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import COMPARE, ON_TINY, TRAIN, Case, refused

BAD_NAMES: dict[str, Case] = {
    "unknown verb": (None, "trian", ("verb 'trian'", "did you mean 'train'?", "report, search, train")),
    "unknown verb like none": (None, "xyzzy", ("verb 'xyzzy'", "known are analyze, audit, compare, data, evaluate, export")),
    "a flag without verb": (None, "--quiet", ("'--quiet'", "known are analyze, audit, compare, data, evaluate, export")),
    "unknown objective": (None, ON_TINY + "--objective aapl", ("objective 'aapl'", "did you mean 'aalp'?")),
    "unknown objective to compare": (None, COMPARE + "--objectives at,tardes", ("'tardes'", "did you mean 'trades'?")),
    "unknown model": (None, ON_TINY + "--model smal-cnn", ("model 'smal-cnn'", "did you mean 'small-cnn'?")),
    "unknown model to compare": (
        None,
        COMPARE + "--objectives at --model smal-cnn",
        ("model 'smal-cnn'", "did you mean 'small-cnn'?"),
    ),
    "unknown timm model": (None, ON_TINY + "--model timm:resnet81", ("timm model 'resnet81'", "did you mean 'resnet")),
    "unknown data": (None, TRAIN + "--data digit", ("data source 'digit'", "did you mean 'digits'?")),
    "unknown kind of data": (None, TRAIN + "--data nzp:tiny.npz", ("'nzp:tiny.npz'", "npz:FILE")),
    "data without its argument": (None, TRAIN + "--data npz:", ("'npz:'", "npz:FILE")),
    "unknown torchvision data": (
        None,
        TRAIN + "--data torchvision:CIFAR01",
        ("torchvision data set 'CIFAR01'", "did you mean 'CIFAR10"),
    ),
    "unknown attack": (
        None,
        ON_TINY + "--evaluation.attacks fgsm,pdg-20",
        ("attack 'pdg-20'", "did you mean 'pgd-20'?"),
    ),
    "unknown attack to evaluate": (None, "evaluate done --attacks apgd", ("attack 'apgd'", "did you mean 'apgd-")),
    "unknown attack of foolbox": (
        None,
        "evaluate done --attacks foolbox:LinfPDG",
        ("foolbox attack 'LinfPDG'", "did you mean 'LinfPGD'?"),
    ),
    "an attack of no package": (
        None,
        "evaluate done --attacks no_module:attack",
        ("'no_module:attack'", "importable from here"),
    ),
    "unknown format": (None, "export done --to onx", ("format 'onx'", "did you mean 'onnx'?")),
    "no format": (None, "export done", ("to is missing", "--to: safetensors")),
    "attack without steps": (None, "evaluate done --attacks pgd-0", ("attack 'pgd-0'", "did you mean 'pgd-20'?")),
    "unknown preset": (None, "train --run run --config digit", ("'digit'", "did you mean 'digits'?")),
    "a missing configuration file": (None, "train --run run --config mine/conf.yaml", ("'mine/conf.yaml'", "digits")),
    "configuration without name": (None, "train --run run --config", ("--config", "value")),
}


@pytest.mark.parametrize("case", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_bad_names_get_one_line_and_change_nothing(case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, folder, capfd)
