"""Export in the shape of RobustBench's model zoo (arXiv 2010.09670): weights, a module with the model, model_info JSON."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aalp.export.source import source
from aalp.export.subject import Predict, Subject
from aalp.shown import eps_text
from aalp.store.checkpoint import state_for
from aalp.store.files import write_atomically
from aalp.store.records import same_threat, split_size

MODULE = "model.py"
WEIGHTS = "model.pt"

ARCHITECTURES = {
    "small-cnn": "SmallCNN",
    "thin-resnet": "PreActResNet (16-32-64-128)",
    "preact-resnet18": "PreActResNet-18",
    "wide-resnet28-10": "WideResNet-28-10",
    "wide-resnet34-10": "WideResNet-34-10",
}
"""Built-in models as the leaderboard's column names them."""

NORMS = {"linf": "Linf", "l2": "L2"}
"""Norms as the leaderboard writes them, by the option's value."""


def write_robustbench(subject: Subject, folder: Path) -> None:
    """model.py, model.pt (tensors only), and model_info/DATASET/THREAT/NAME.json, which is where RobustBench keeps it."""
    (folder / MODULE).write_text(source(subject), encoding="utf-8")
    # As its zoo keeps them; tensors only, so that weights_only=True reads it.
    tensors = {name: tensor.contiguous() for name, tensor in subject.classifier.state_dict().items()}
    content = io.BytesIO()
    torch.save(state_for(subject.classifier, tensors), content)
    write_atomically(folder / WEIGHTS, content.getbuffer())  # torch's own writer does not say that a disk is full
    info = model_info(subject)
    threat = subject.metadata.get("threat") or {}
    place = folder / "model_info" / info["dataset"] / NORMS.get(str(threat.get("norm")), "Linf")
    place.mkdir(parents=True)
    text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    (place / f"{entry_name(subject)}.json").write_text(text, encoding="utf-8")


def load_robustbench(subject: Subject, folder: Path) -> Predict:
    """The model from the module and the weights that were just written."""
    del subject
    spec = importlib.util.spec_from_file_location("aalp_exported_model", folder / MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: Any = module.Model()
    model.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    predict: Predict = model.eval()
    return predict


def model_info(subject: Subject) -> dict[str, Any]:
    """The fields of RobustBench's model_info; accuracies in percent as text, None where nothing was measured.

    What only the authors know (link, title, authors, venue) says that it is to be filled in. `autoattack_acc` is the
    standard AutoAttack's own accuracy, and stands only where it ran at the threat that the model was trained for.
    """
    # An entry is of the data set that it names.
    record: Mapping[str, Any] = {} if subject.measured_on_other_data else subject.evaluation or {}
    threat = subject.metadata.get("threat") or {}
    accuracy = {attack["name"]: attack["accuracy"] for attack in record.get("attacks", ())}
    autoattack = _percent(accuracy.get("autoattack")) if same_threat(record.get("threat") or {}, threat) else None
    info: dict[str, Any] = {
        "link": "TO FILL IN",
        "name": "TO FILL IN",
        "authors": "TO FILL IN",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": dataset_name(subject),
        "venue": "Unpublished",
        "architecture": ARCHITECTURES.get(subject.model, subject.model.removeprefix("timm:")),
        "eps": eps_text(float(threat["eps"])) if "eps" in threat else None,
        "clean_acc": _percent(record.get("clean")),
        "reported": autoattack,
        "autoattack_acc": autoattack,
        "unreliable": False,
    }
    if subject.audit is not None:
        info["unreliable"] = subject.audit["verdict"] == "fail"
    if record:
        data = record["data"]
        info["footnote"] = (
            f"Trained with {subject.metadata.get('objective', 'an unknown objective')}; measured by aalp on "
            f"{record['images']} of {split_size(data)} {data.get('split', 'test')} images."
        )
    return info


def dataset_name(subject: Subject) -> str:
    """The data set as RobustBench writes it (cifar10, cifar100, imagenet); another by the source's own short name."""
    name = str((subject.metadata.get("data") or {}).get("name", "unknown"))
    short = Path(name.partition(":")[2] or name).stem.lower()
    return re.sub(r"[^a-z0-9]+", "-", short).strip("-") or "unknown"


def entry_name(subject: Subject) -> str:
    """A file name for the entry, in place of the AuthorYearTitle that only the authors know."""
    parts = (subject.metadata.get("objective", "model"), dataset_name(subject), subject.model)
    return re.sub(r"[^\w.-]+", "-", "_".join(map(str, parts))).strip("-")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}"
