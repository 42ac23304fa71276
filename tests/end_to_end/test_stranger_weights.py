"""A safetensors file from somebody whom nobody trusts: evaluated and audited, and nothing in it is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from aalp.cli import main
from aalp.data.sources import load_source
from aalp.data.split import as_float
from aalp.models.small_cnn import SmallCNN

EVIL = "import pathlib\npathlib.Path('executed').touch()\ndef net(**_):\n    pathlib.Path('executed').touch()\n"


@pytest.fixture(scope="module")
def theirs() -> SmallCNN:
    """A network that somebody trained on digits in their own loop, without any adversary."""
    train = load_source("digits").train
    images, labels = as_float(train.read(torch.arange(len(train)))), train.labels
    torch.manual_seed(0)
    network = SmallCNN(10, (1, 8, 8), hidden=200)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(90):
        rows = torch.arange(step * 128, step * 128 + 128) % len(labels)
        F.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def test_untrusted_weights_are_evaluated_and_audited(
    theirs: SmallCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_nets.py").write_text(EVIL)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    save_file(state, "theirs.safetensors", metadata={"model": "evil_nets:net", "code": EVIL})
    # Nothing in the file says how its images are normalised: this network takes them as they are.
    words = ["--data", "digits", "--model", "small-cnn", "--eps", "0.2", "--quiet"]
    words += ["--model_options.mean", "[0]", "--model_options.std", "[1]"]
    assert main(["evaluate", "theirs.safetensors", *words, "--attacks", "fgsm,pgd-20", "--images", "100"]) == 0
    record = json.loads((tmp_path / "evaluations" / "theirs-001.json").read_text())
    assert record["clean"] >= 0.9
    assert record["robust"] <= 0.5
    code = main(["audit", "theirs.safetensors", *words, "--images", "32"])
    verdict = json.loads((tmp_path / "audits" / "theirs-001.json").read_text())["verdict"]
    assert code == {"pass": 0, "fail": 3, "inconclusive": 4}[verdict]
    # Trained the ordinary way: not robust, but nothing masks its gradients either.
    assert verdict != "fail"
    assert not (tmp_path / "executed").exists()
    # Its own word on which model it is counts for nothing.
    capfd.readouterr()
    assert main(["evaluate", "theirs.safetensors", "--data", "digits", "--eps", "0.2"]) == 2
    assert "does not say which model it is; name it with --model" in capfd.readouterr().err
