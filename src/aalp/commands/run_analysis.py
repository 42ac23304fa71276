"""One run's analysis: a folder of a record, tables and a gallery in its analyses/, made once for the same settings."""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aalp.analysis.analyze import Analysis, analyze_classifier
from aalp.analysis.conflict import training_rows
from aalp.analysis.pairs import ATTACK
from aalp.analysis.robustness_curves import attack_overlap
from aalp.commands.config import ThreatOptions, device
from aalp.commands.console import Display, command_line
from aalp.commands.evaluation_record import is_of_present_weights
from aalp.commands.loading import load_model, verify_on, weights_file
from aalp.commands.opening import sampled, stored_options, stored_source
from aalp.data.sources import Source
from aalp.errors import AalpError, RunError
from aalp.method.threat import Threat
from aalp.report.figures import counted
from aalp.report.telling import of_trained_data
from aalp.shown import eps_text
from aalp.store.checkpoint import read_metadata, write_tensors
from aalp.store.files import aside_of, check_writable
from aalp.store.records import read_csv, read_record, read_table, write_csv, write_record, write_table
from aalp.store.run import RunDirectory, free_path, put_in_place

BATCH_SIZE = 250
SEED = 0


def analysis_of(
    path: Path, config: Mapping[str, Any], weights: str, images: int, sources: dict[str, Source], display: Display
) -> dict[str, Any]:
    """The run's analysis with these settings: read if there is one, else made."""
    run, file = RunDirectory(path), weights_file(path, weights)
    threat = _trained_threat(path, config)
    evaluation = _evaluation(run, weights, threat.norm, threat.eps, config, read_metadata(file).get("data") or {})
    settings = {
        "weights": _digest(file),
        "metrics": _digest(run.metrics) if run.metrics.is_file() else None,
        "evaluation": [evaluation.name, _digest(evaluation)] if evaluation else None,
        "images": images,
        "seed": SEED,
        "attack": ATTACK,
        "threat": {"norm": threat.norm, "eps": threat.eps},
    }
    for done in reversed(run.analysis_records):
        record = read_record(done, "analysis")
        if record.get("settings") == settings:
            display.say(f"{path}: analysed before, see {done.parent}")
            return {**record, "path": str(done)}
    check_writable(run.analyses, "an analysis is kept in its run, so analyze a copy of it")
    started = time.perf_counter()
    key = repr((config.get("data"), config.get("data_options")))
    if key not in sources:
        with display.bar():
            sources[key] = stored_source(None, None, dict(config), display.reading, "run this there")
    source = sources[key]
    loaded = load_model(file, config.get("model"), stored_options(config))
    if loaded.classifier.num_classes != len(source.classes):
        raise AalpError(
            f"the model of '{path}' has {loaded.classifier.num_classes} classes and '{source.name}' has "
            f"{len(source.classes)}: the data is no longer what the run was trained on"
        )
    indices, split = sampled(source.test, images)
    verify_on(loaded.classifier, split, str(config.get("model")))
    display.say(f"{path}: {counted(len(split), 'test image')} of {source.name}, {threat.norm} eps {eps_text(threat.eps)}")
    with display.bar():
        analysis = analyze_classifier(
            loaded.classifier.to(device()),
            split,
            threat,
            source.classes,
            batch_size=BATCH_SIZE,
            seed=SEED,
            tick=display.attack,
        )
    content = {
        "weights": str(file),
        "command": command_line(),
        "images": len(split),
        "seed": SEED,
        "threat": settings["threat"],
        "classes": list(source.classes),
        "data": {"name": source.name, "split": "test", "digest": source.digest, "split_images": len(source.test)},
        "model": loaded.about,
        **analysis.content,
        "attacks": attack_overlap(read_table(evaluation.with_suffix(".parquet"))) if evaluation else [],
        "attacks_from": str(evaluation) if evaluation else None,
        "training": _training(run),
        "settings": settings,
        "seconds": time.perf_counter() - started,
    }
    folder = free_path(run.analyses, weights)
    with aside_of(folder) as aside:
        record = _write(aside, content, analysis, indices.tolist())
        place = put_in_place(aside, folder, exactly=False)
    return {**record, "path": str(place / "analysis.json")}


def _trained_threat(path: Path, config: Mapping[str, Any]) -> Threat:
    """The threat that the run was trained for."""
    try:
        return ThreatOptions(config["threat"]["norm"], config["threat"]["eps"]).build()
    except KeyError as error:
        raise RunError(f"'{path / 'config.yaml'}' has no threat {error}: add the norm and eps it was trained for") from error


def _evaluation(
    run: RunDirectory, weights: str, norm: str, eps: float, config: Mapping[str, Any], data: Mapping[str, Any]
) -> Path | None:
    """The newest evaluation that attacked the data's test images at this threat, of these weights if there is one.

    By the digest that the weights have in `data`, too: from another folder the same images have another name.

    None of weights that are no more: beside the analysis of those that are, its breaks would be another model's.
    """
    found = []
    for path in run.evaluations.glob("*.json"):
        record = read_record(path, "evaluation")
        of_test_images = record["data"]["split"] == "test" and of_trained_data(record, config, data.get("digest"))
        fits = record["attacks"] and record["threat"] == {"norm": norm, "eps": eps} and of_test_images
        if fits and is_of_present_weights(record, run):
            found.append((Path(record["weights"]).stem == weights, record["created"], path.name, path))
    return max(found)[3] if found else None


def _training(run: RunDirectory) -> list[dict[str, float]]:
    if not run.metrics.is_file():
        return []
    try:
        return training_rows(read_csv(run.metrics))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"'{run.metrics}' is not a readable training log: {error}; restore it or move it away") from error


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _write(folder: Path, content: dict[str, Any], analysis: Analysis, indices: list[int]) -> dict[str, Any]:
    """Tables, gallery and the record."""
    for name, columns in _tables(content, {"index": indices, **analysis.images}).items():
        write_table(folder / f"{name}.parquet", columns)
        write_csv(folder / f"{name}.csv", columns)
    write_tensors(folder / "gallery.safetensors", analysis.gallery, {"kind": "gallery"})
    content["gallery"] = {"file": "gallery.safetensors", **content["gallery"]}
    return write_record(folder / "analysis.json", "analysis", content)


def _tables(content: Mapping[str, Any], images: Mapping[str, Sequence[Any]]) -> dict[str, Mapping[str, Sequence[Any]]]:
    curves = [
        {"side": side, "target": target, "features": count, "share": share}
        for side, targets in content["contributions"].items()
        for target, values in targets.items()
        for count, share in zip(values["curve_features"], values["curve"], strict=True)
    ]
    confusion = [
        {"true": true, "predicted": predicted, "images": count}
        for true, row in zip(content["classes"], content["confusion"], strict=True)
        for predicted, count in zip(content["classes"], row, strict=True)
    ]
    tables = {"contributions": curves, "confusion": confusion}
    tables |= {name: content[name] for name in ("top_k", "eps_curve", "per_class", "attacks", "training")}
    return {"images": images, **{name: columns_of(rows) for name, rows in tables.items() if rows}}


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The same table by columns; a cell that a row does not have is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
