"""`aalp export`: take a trained classifier out of its run, into what other programs load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from aalp.commands.console import command_line, print_out
from aalp.commands.loading import LoadedModel, load_model, weights_file
from aalp.commands.opening import run_config, stored_options
from aalp.errors import OptionError
from aalp.export.export import FORMATS, check_format, export_model
from aalp.export.subject import Subject
from aalp.models.catalog import ModelOptions, architecture
from aalp.report.collect import Run, read_run
from aalp.report.telling import same_subject
from aalp.store.checkpoint import is_ours
from aalp.store.run import free_path

Record = Mapping[str, Any]


def export(
    path: Path,
    to: str | None = None,
    weights: Literal["best", "last"] = "best",
    out: Path | None = None,
    model: str | None = None,
    trust_model_code: bool = False,
) -> None:
    """Export a trained classifier, load the export back, and compare the logits.

    The folder gets a model card (README.md) with the figures of the run's evaluation and the verdict of its audit, and
    says which command makes those that are missing.

    Args:
        path: a run directory, or a weights file that aalp wrote.
        to: safetensors, torch-export, onnx (extra `onnx`), hf-folder (extra `hf`), or robustbench.
        weights: of a run directory, the weights to export.
        out: folder to make; by default the run's exports/FORMAT-NNN.
        model: name of the model, where it is your own code.
        trust_model_code: run the code that the run's config.yaml names as package.module:factory; without, --model has to.
    """
    if to is None:
        raise OptionError(f"to is missing: name a format with --to: {', '.join(FORMATS)}")
    check_format(to)
    file = weights_file(path, weights)
    config = run_config(path, trust_model_code or model is not None)
    if not path.is_dir() and not is_ours(file):
        raise OptionError(f"'{file}' was not written by aalp and does not say its labels and threat: export an aalp run")
    options = stored_options(config)
    loaded = load_model(file, model or config.get("model"), options)
    run = read_run(path, config) if path.is_dir() else None
    evaluation, audit = _records(run, file.stem, loaded.metadata) if run else (None, None)
    subject = Subject(
        # The layout that convolutions prefer is no part of the model, and tracers would bake it in.
        classifier=loaded.classifier.to(memory_format=torch.contiguous_format),
        metadata=loaded.metadata | _as_built(loaded, model, options) | _as_read(config, loaded.metadata) | _as_trained(run),
        about=str(path),
        which=file.stem if file.stem in ("best", "last") else None,
        evaluation=evaluation,
        audit=audit,
    )
    folder = out or free_path((path if path.is_dir() else Path()) / "exports", to)
    record = export_model(subject, to, folder, {"weights": str(file), "command": command_line()}, exactly=out is not None)
    print_out(report(record, subject), record)


def _as_built(loaded: LoadedModel, model: str | None, options: ModelOptions | None) -> dict[str, Any]:
    """Name and arguments that it was built with, where they were given: a run's own, not what its weights file says of them."""
    told: dict[str, Any] = {} if options is None else {"architecture": architecture(loaded.classifier, options)}
    return told | ({"model": model} if model else {})


def _as_read(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """How the run's images came to their size, where they were resized."""
    data: Mapping[str, Any] = config.get("data_options") or {}
    # Runs that resized no arrays, as it was once, have images of another size.
    resized = list(metadata["image_shape"][1:]) == [data.get("size")] * 2
    return {"resizing": data["resizing"]} if resized else {}


def report(record: Mapping[str, Any], subject: Subject) -> str:
    """What was written and seen, for the screen."""
    checked = record["loaded_back"]
    lines = [
        f"{record['format']}: {', '.join(record['files'])}",
        f"loaded back: logits differ by at most {checked['largest_difference']:.2g} (allowed "
        f"{checked['allowed_difference']:.2g}), {checked['same_predictions']} of {checked['images']} predictions are the same",
    ]
    if subject.evaluation is None:
        lines.append(f"the card has no figures: `aalp evaluate {subject.typed}` measures them")
    if subject.audit is None:
        lines.append(f"the card has no verdict: `aalp audit {subject.typed}` gives one")
    return "\n".join([*lines, f"export: {record['path']}"])


def _as_trained(run: Run | None) -> dict[str, Any]:
    """How far the run has come, where that is not its end."""
    return {"unfinished": run.unfinished} if run and run.unfinished else {}


def _records(run: Run, which: str, metadata: Record) -> tuple[Record | None, Record | None]:
    """The evaluation that speaks for these weights, and the newest audit of them on the same data under the same threat."""

    def of_these(record: Record) -> bool:
        # Weights that were trained on since have another epoch.
        same_epoch = record.get("model", {}).get("epoch") == metadata.get("epoch")
        return Path(record["weights"]).stem == which and same_epoch

    evaluation = next((record for record in run.evaluations if of_these(record)), None)
    about = evaluation or {"data": {}, "threat": {}, **metadata, "weights": f"{which}.safetensors", "model": {}}
    audits = [record for record in run.audits if of_these(record) and same_subject(record, about)]
    return evaluation, max(audits, key=lambda record: str(record.get("created", "")), default=None)
