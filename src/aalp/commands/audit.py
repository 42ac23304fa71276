"""`aalp audit`: are gradients masked, or does the robustness that attacks report hold?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from aalp.commands.audit_table import report
from aalp.commands.config import device
from aalp.commands.console import Display, command_line
from aalp.commands.dry_run import audit_cost, show
from aalp.commands.evaluation_record import drop_under_autoattack
from aalp.commands.loading import LoadedModel, load_model
from aalp.commands.opening import (
    chosen_images,
    model_named,
    opened_weights,
    run_config,
    stored_model,
    stored_source,
    stored_threat,
)
from aalp.commands.resuming import check_counts, journal_of, stopping, written
from aalp.data.sources import DataOptions, Source
from aalp.data.split import as_float
from aalp.distributed import ALONE, Ranks, joined
from aalp.evaluation.audit import audit as run_audit
from aalp.evaluation.autoattack_gap import DropUnderAutoAttack
from aalp.evaluation.bench import QUICK, THOROUGH
from aalp.evaluation.verdict import Audit
from aalp.method.threat import Threat
from aalp.models.catalog import ModelOptions
from aalp.store.files import check_writable
from aalp.store.records import read_record
from aalp.store.run import RunDirectory, free_path

Drops = tuple[DropUnderAutoAttack | None, DropUnderAutoAttack | None]
"""What evaluations say of a model and of its reference."""

EXIT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}
IMAGES = {False: 256, True: 1000}
"""Test images by default, without and with --thorough."""


def audit(
    path: Path,
    weights: Literal["best", "last"] = "best",
    thorough: bool = False,
    reference: Path | None = None,
    images: int | None = None,
    norm: Literal["linf", "l2"] | None = None,
    eps: float | str | None = None,
    data: str | None = None,
    data_options: DataOptions | None = None,
    model: str | None = None,
    model_options: ModelOptions | None = None,
    batch_size: int = 256,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
    dry_run: bool = False,
    trust_model_code: bool = False,
    devices: int = 1,
    nodes: int = 1,
) -> int:
    """Look for masked gradients. Exit code: 0 passed, 3 failed, 4 inconclusive.

    Everything that is not given is taken from the run's own configuration.

    Args:
        path: a run directory; a weights file (.safetensors, or a state dict of tensors; then --model, --data and --eps too); \
or a published model, hf:FOLDER_OR_NAME, timm:NAME or torchvision:NAME (then --data and --eps too).
        weights: of a run directory, the weights to audit.
        thorough: attack with more steps and queries, for papers: takes an hour where the default takes minutes.
        reference: run directory of an `at` model of the same recipe; both need an evaluation with pgd-20 and autoattack.
        images: how many test images, drawn by a fixed seed; by default 256, with --thorough 1000.
        norm: norm of the threat; another one than that of the training needs --eps as well.
        eps: radius of the threat, in pixel units, such as 8/255.
        data: data source whose test split is used.
        data_options: how the data is read.
        model: name of the model, for a weights file that does not say it or that needs your own code.
        model_options: for weights that another program wrote.
        batch_size: images attacked together.
        seed: of the attacks.
        out: folder of the record; by default the run's audits/.
        quiet: show no progress.
        dry_run: print the resolved options and what it would cost, from a probe of 10 steps; write nothing.
        trust_model_code: run the code that the run's config.yaml names as package.module:factory; without, --model has to.
        devices: processes on this machine that share the batches of images, one a GPU, or on the CPU; findings stay the same.
        nodes: machines, each started with the same command and MASTER_ADDR, MASTER_PORT and NODE_RANK; see docs/distributed.md.

    Returns:
        The exit code.
    """
    ranks = ALONE if dry_run else joined(devices, nodes)
    display = Display(quiet, ranks)
    file = opened_weights(path, weights)
    config = run_config(path, trust_model_code or model is not None)
    with display.bar():
        source = ranks.first_of_machine(lambda: stored_source(data, data_options, config, display.reading))
    loaded = stored_model(file, path, model, model_options, source, config, display.warn)
    threat = stored_threat(norm, eps, loaded, config).build()
    if dry_run:
        _show_cost(path, loaded, source, threat, thorough, images, batch_size, seed)
        return 0
    folder = out or (RunDirectory(path).audits if path.is_dir() else Path("audits"))
    drops = _drops(path, reference, weights, threat, source)
    record = audit_model(
        loaded,
        source,
        threat,
        thorough,
        images,
        batch_size,
        seed,
        ranks.from_main(lambda: free_path(folder, file.stem, ".json")),
        {
            "weights": model_named(path) or str(file),
            "command": command_line(),
            "reference": None if reference is None else str(reference),
        },
        display,
        drops,
        ranks,
    )
    display.result(report(record), record)
    return EXIT_CODES[record["verdict"]]


def _show_cost(
    path: Path,
    loaded: LoadedModel,
    source: Source,
    threat: Threat,
    thorough: bool,
    images: int | None,
    batch_size: int,
    seed: int,
) -> None:
    count = IMAGES[thorough] if images is None else images
    check_counts(count, batch_size)
    indices, split = chosen_images(loaded, source, "test", count)
    config = {
        "path": path,
        "data": source.name,
        "images": len(indices),
        "thorough": thorough,
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "batch_size": batch_size,
        "seed": seed,
        "model": loaded.about,
    }
    effort = THOROUGH if thorough else QUICK
    cost = audit_cost(loaded.classifier, split, threat, effort, len(indices), batch_size)
    show(config, {"audit": cost})


def audit_model(
    loaded: LoadedModel,
    source: Source,
    threat: Threat,
    thorough: bool,
    images: int | None,
    batch_size: int,
    seed: int,
    record_path: Path,
    about: dict[str, Any],
    display: Display,
    drops: Drops,
    ranks: Ranks,
) -> dict[str, Any]:
    """Audit on the test split, write the record, return it.

    Args:
        images: how many; None for `IMAGES`.
        drops: what evaluations say of this model and of the reference.

    Raises:
        OptionError: a number makes no sense.
        AalpError: the model does not fit the data.
    """
    count = IMAGES[thorough] if images is None else images
    check_counts(count, batch_size)
    indices, split = chosen_images(loaded, source, "test", count)
    ranks.from_main(lambda: check_writable(record_path.parent, "choose another --out"))
    pixels = as_float(split.read(torch.arange(len(split))))
    own, reference = drops
    settings = {"threat": [threat.norm, threat.eps], "thorough": thorough, "batch_size": batch_size, "seed": seed}
    journal = journal_of(record_path.parent, loaded, source, indices.tolist(), settings)
    with display.bar(), stopping(about["command"]):
        found = run_audit(
            *(loaded.classifier.to(device()), pixels, split.labels, threat),
            thorough=thorough,
            own=own,
            reference=reference,
            batch_size=batch_size,
            seed=seed,
            tick=display.attack,
            journal=journal,
            ranks=ranks,
        )
    content = {
        **about,
        "images": found.images,
        "thorough": thorough,
        "seed": seed,
        "batch_size": batch_size,
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "data": {"name": source.name, "split": "test", "digest": source.digest, "test_images": len(source.test)},
        "model": loaded.about,
        **_content(found),
    }
    return ranks.from_main(lambda: written(record_path, "audit", content, journal))


def audit_once(
    directory: RunDirectory,
    reference: Path | None,
    options: Mapping[str, Any],
    source: Source,
    display: Display,
    ranks: Ranks,
) -> None:
    """Audit a run with the options it was trained and evaluated with, unless that is done already.

    Raises:
        AalpError: see `audit_model` and `drop_under_autoattack`.
    """
    path, wanted = directory.audits / FIRST_AUDIT, options["evaluation"]
    if not ranks.from_main(path.is_file):
        weights, threat = directory.weights(wanted.weights), options["threat"].build()
        display.say(f"audit of {directory.path}")
        drops = _drops(directory.path, reference, wanted.weights, threat, source)
        about = {"weights": str(weights), "command": command_line(), "reference": None if reference is None else str(reference)}
        loaded = load_model(weights, options["model"], options["model_options"])
        audit_model(loaded, source, threat, False, None, wanted.batch_size, wanted.seed, path, about, display, drops, ranks)


FIRST_AUDIT = "test-001.json"


def audit_verdict(directory: RunDirectory) -> str | None:
    """What `audit_once` found; None where it did not run yet."""
    path = directory.audits / FIRST_AUDIT
    return str(read_record(path, "audit")["verdict"]) if path.is_file() else None


def _drops(path: Path, reference: Path | None, weights: str, threat: Threat, source: Source) -> Drops:
    if reference is None:
        return None, None
    first, second = (drop_under_autoattack(run, weights, threat, source) for run in (path, reference))
    return first, second


def _content(found: Audit) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "line": found.line,
        "clean": found.clean,
        "robust": found.robust,
        "gates": [result.record() for result in found.gates],
        "seconds": found.seconds,
    }
