"""The model card that goes with every export: what it is, how to load it, what was measured, and what was not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from aalp.export.huggingface import is_native
from aalp.export.robustbench import NORMS, dataset_name
from aalp.export.source import needs
from aalp.export.subject import Subject
from aalp.models.catalog import is_own_code
from aalp.plain import flat
from aalp.shown import eps_text, in_percent
from aalp.store.records import same_threat, split_size


def card(subject: Subject, name: str, files: Sequence[str], checked: Mapping[str, Any]) -> str:
    """README.md of an export.

    Args:
        name: of the format.
        files: in the folder, besides the card and the record.
        checked: what loading it back showed (see `compare`).
    """
    sections = {
        f"{_title(subject)}": _what(subject, name),
        "## Load it": _load(subject, name),
        "## What goes in and comes out": _interface(subject, name),
        "## Figures": _figures(subject),
        "## Audit": _audit(subject),
        "## Limits": _limits(subject),
        "## Loaded back": _checked(name, files, checked),
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_front_matter(subject)}---\n\n{body}\n"


def _front_matter(subject: Subject) -> str:
    """What model hubs read."""
    tags = ["image-classification", "adversarial-robustness", "adversarial-training", "aalp"]
    library = "timm" if subject.model.startswith("timm:") else "pytorch"
    content = {"library_name": library, "pipeline_tag": "image-classification", "tags": tags}
    return yaml.safe_dump(content, sort_keys=False)


def _title(subject: Subject) -> str:
    return f"# {_line(subject.model)} on {dataset_name(subject)}, trained with {_line(subject.metadata.get('objective', '?'))}"


def _what(subject: Subject, name: str) -> str:
    about = subject.metadata
    data = about.get("data") or {}
    parameters = f"{about['parameters']:,} parameters, " if "parameters" in about else ""
    which = f" ({subject.which})" if subject.which else ""
    trained = f"objective {_line(about.get('objective', 'unknown'))} and seed {_line(about.get('seed', 'unknown'))}"
    return (
        f"An image classifier ({_line(subject.model)}, {parameters}{len(subject.classes)} classes), trained with the {trained} "
        f"on {_line(data.get('name', 'unknown'))}; weights of epoch {_line(about.get('epoch', 'unknown'))}{which}. "
        f"{_method(subject)}Threat model of the training: {_threat(subject)}. Exported by aalp as {name}."
    )


def _method(subject: Subject) -> str:
    """A sentence on the numbers of the objective; "" where it has none, or the weights do not tell."""
    method = subject.metadata.get("method")
    told = ", ".join(f"{name} {value}" for name, value in flat(method).items()) if isinstance(method, Mapping) else ""
    return f"Its numbers: {_line(told)}. " if told else ""


def _threat(subject: Subject) -> str:
    threat = subject.metadata.get("threat") or {}
    if "eps" not in threat:
        return "unknown"
    norm = NORMS.get(str(threat.get("norm")), _line(threat.get("norm")))
    return f"{norm} ball of radius eps = {eps_text(float(threat['eps']))} around images in [0, 1]"


USES = {
    "safetensors": 'import aalp\n\nclassifier = aalp.load("model.safetensors")\nlogits = classifier(images)',
    "torch-export": 'import torch\n\nprogram = torch.export.load("model.pt2").module()\nlogits = program(images)',
    "onnx": (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        '(logits,) = session.run(["logits"], {"images": images})'
    ),
    "robustbench": (
        "import torch\n\nfrom model import Model\n\nmodel = Model()\n"
        'model.load_state_dict(torch.load("model.pt", weights_only=True))\nlogits = model.eval()(images)'
    ),
}


def _load(subject: Subject, name: str) -> str:
    if name == "hf-folder":
        trust = "" if is_native(subject) else ", trust_remote_code=True"
        code = (
            "from transformers import AutoImageProcessor, AutoModelForImageClassification\n\n"
            'processor = AutoImageProcessor.from_pretrained(".")\n'
            f'model = AutoModelForImageClassification.from_pretrained("."{trust}).eval()\n'
            'logits = model(**processor(pictures, return_tensors="pt")).logits'
        )
    else:
        code = USES[name]
    return f"In this folder:\n\n```python\n{code}\n```\n\n{_load_notes(subject, name)}".strip()


def _load_notes(subject: Subject, name: str) -> str:
    packages = needs(subject)
    if name == "torch-export":
        return (
            "`torch.export.load` unpickles what a file asks it to. This file asks for nothing (its weights are raw bytes, its "
            "graph is JSON), but one from somebody you do not trust may: take safetensors or ONNX from strangers."
        )
    if name == "hf-folder" and is_native(subject):
        return "Needs transformers and timm, and runs no code from this folder."
    if name in ("hf-folder", "robustbench"):
        what = f"Needs {' and '.join(packages)}. " if packages else ""
        own = f"The network is `{_line(subject.model)}`, which has to be importable. " if is_own_code(subject.model) else ""
        return f"{what}{own}Loading runs the Python files of this folder: read them first if they are not yours."
    if name == "safetensors" and is_own_code(subject.model):
        return f"The network is built by `{_line(subject.model)}`: build it yourself, and load the tensors into it."
    return ""


RESIZED = {
    "stretch": "For the training, images of other sizes were stretched to {side}x{side}: do the same. ",
    "crop": "For the training, the shorter side of other images was scaled to {side} and the middle cropped: do the same. ",
}


def _interface(subject: Subject, name: str) -> str:
    channels, height, width = subject.image_shape
    mean, std = subject.normalisation
    if name == "hf-folder" and is_native(subject):
        where = (
            f"The image processor subtracts the mean {_numbers(mean)} and divides by the deviation {_numbers(std)}; the model "
            "itself takes what comes out."
        )
    elif subject.classifier.mean.numel():
        where = f"The normalisation (mean {_numbers(mean)}, deviation {_numbers(std)}) is inside: do not normalise again."
    else:
        where = "There is no normalisation."
    resized = RESIZED[subject.resizing].format(side=height) if subject.resizing else ""
    return (
        f"Images (N, {channels}, {height}, {width}), float32 in [0, 1], any N. {resized}{where}\n\n"
        f"Logits (N, {len(subject.classes)}), in this order:\n\n```json\n{json.dumps(subject.classes, ensure_ascii=False)}\n```"
    )


def _figures(subject: Subject) -> str:
    record = subject.evaluation
    if record is None:
        return f"Not measured: this model's robustness is unknown. `aalp evaluate {subject.typed}` measures it."
    data, threat = record["data"], record["threat"]
    rows = [("clean", record["clean"], record["intervals"]["clean"])]
    rows += [(attack["name"], attack["accuracy"], None) for attack in record["attacks"]]
    if record["attacks"]:
        rows.append(("all of them (worst case)", record["robust"], record["intervals"]["robust"]))
    lines = ["| attack | accuracy | 95 % interval |", "|---|---:|---:|"]
    for title, accuracy, interval in rows:
        between = "" if interval is None else f"{in_percent(interval[0])}% to {in_percent(interval[1])}%"
        lines.append(f"| {_line(title)} | {in_percent(accuracy)}% | {between} |")
    attacked = "" if record["attacks"] else "Nothing was attacked: this model's robustness is unknown. "
    measured = f"attack seed {record['seed']}; measured {_line(record['created'][:10])} with `{_line(record['command'])}`"
    where = f"{record['images']} of {split_size(data)} {_line(data.get('split', 'test'))} images of {_line(data['name'])}"
    return "\n".join(lines) + (
        f"\n\n{attacked}On {where}, {_line(threat['norm'])} eps {eps_text(threat['eps'])}, float32, {measured}. Intervals are "
        "over images, and say nothing about other training seeds."
    )


VERDICTS = {
    "pass": "passed: no gate found masked gradients",
    "fail": "FAILED: the robust accuracy above may be an artefact of masked gradients",
    "inconclusive": "inconclusive: some gates could not decide",
}


def _audit(subject: Subject) -> str:
    record = subject.audit
    if record is None:
        cheap = (subject.evaluation or {}).get("gates") or []
        failed = [_line(gate["name"]) for gate in cheap if gate["passed"] is False]
        seen = ""
        if cheap:
            seen = f" The evaluation's {len(cheap)} cheap gates " + (f"failed: {', '.join(failed)}." if failed else "passed.")
        return (
            f"Not audited for masked gradients.{seen} `aalp audit {subject.typed}` does it: "
            "a robust accuracy that no audit vouches for may be an artefact of attacks that fail."
        )
    words = VERDICTS.get(record["verdict"], _line(record["verdict"]))
    lines = [
        f"{words[0].upper()}{words[1:]}. {record['images']} images of {_line(record['data']['name'])}, "
        f"{_line(record['threat']['norm'])} eps {eps_text(record['threat']['eps'])}"
        f"{', thorough' if record.get('thorough') else ''}; {_line(record['created'][:10])}."
    ]
    for gate in record["gates"]:
        if gate["passed"] is not True:
            what = "failed" if gate["passed"] is False else "not decided"
            lines.append(f"- {what}: {_line(gate['name'])} ({_line(gate['detail'])})")
    return "\n".join(lines)


def _limits(subject: Subject) -> str:
    lines = [
        f"- Robustness is claimed against one threat model alone: {_threat(subject)}. Other norms, larger eps, patches, "
        "rotations, weather and other cameras are not covered.",
        "- Attacks give an upper bound of robust accuracy, never a proof: a stronger or adaptive attack may find more.",
    ]
    if "unfinished" in subject.metadata:
        lines.append(f"- The training has not come to its end: {_line(subject.metadata['unfinished'])}.")
    record = subject.evaluation
    if record is not None:
        threat = subject.metadata.get("threat") or {}
        if {"norm", "eps"} <= threat.keys() and not same_threat(threat, record["threat"]):
            lines.append("- The figures are of another threat than the training's.")
        if subject.measured_on_other_data:
            trained = _line(subject.metadata["data"]["name"])
            lines.append(f"- The figures are of {_line(record['data']['name'])}; the model was trained on {trained}.")
        if not any(attack["name"] == "autoattack" for attack in record["attacks"]):
            lines.append(
                f"- AutoAttack has not run: {'the figures are optimistic' if record['attacks'] else 'nothing was attacked'}. "
                f"`aalp evaluate {subject.typed} --attacks autoattack` runs it."
            )
        whole = split_size(record["data"])
        if whole and record["images"] < whole:
            lines.append(f"- The figures are of {record['images']} of {whole} images: see the intervals.")
        if record["data"].get("split", "test") != "test":
            lines.append("- The figures are of validation images, which chose the weights: they are too high.")
    lines.append("- One training seed: how much another would change is not known (`aalp compare` measures it).")
    return "\n".join(lines)


def _checked(name: str, files: Sequence[str], checked: Mapping[str, Any]) -> str:
    listed = ", ".join(f"`{file}`" for file in files)
    sizes = ", ".join(map(str, checked["batch_sizes"]))
    return (
        f"{listed}: loaded back as {name} and run on {checked['images']} images in batches of {sizes}, the logits (largest "
        f"{checked['largest_logit']:.3g}) differ from the model's by at most {checked['largest_difference']:.2g}; "
        f"{checked['allowed_difference']:.2g} is allowed. {checked['same_predictions']} of {checked['images']} predictions are "
        "the same."
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _line(value: object) -> str:
    """Text from a record or a file as it may stand in a line or a table of Markdown."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
