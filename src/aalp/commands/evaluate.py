"""`aalp evaluate`: clean accuracy and accuracy under attack of a run's weights, or of anybody's."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import torch

from aalp.commands.config import ThreatOptions, device, split_names
from aalp.commands.console import Display, command_line
from aalp.commands.dry_run import evaluation_cost, show
from aalp.commands.evaluation_record import content_of, report, table_of
from aalp.commands.loading import LoadedModel
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
from aalp.commands.trust import check_attack_trust
from aalp.data.loaders import read_rows
from aalp.data.sources import DataOptions, Source
from aalp.distributed import ALONE, Ranks, joined
from aalp.evaluation.attacks import attack_by_name, check_attacks
from aalp.evaluation.findings import GateResult
from aalp.evaluation.first_gates import CHEAP_IMAGES, cheap_gates, determinism, steady_later
from aalp.evaluation.foreign_attacks import is_foreign
from aalp.evaluation.robustness import DEFAULT_ATTACKS
from aalp.evaluation.robustness import evaluate as run_evaluation
from aalp.models.catalog import ModelOptions
from aalp.store.files import check_writable
from aalp.store.run import RunDirectory, free_path
from aalp.training.trackers import TrackerName, check_tracker, log_figures, tracking


def evaluate(
    path: Path,
    weights: Literal["best", "last"] = "best",
    attacks: str | list[str] | None = None,
    split: Literal["test", "validation"] = "test",
    images: int | None = None,
    norm: Literal["linf", "l2"] | None = None,
    eps: float | str | None = None,
    data: str | None = None,
    data_options: DataOptions | None = None,
    model: str | None = None,
    model_options: ModelOptions | None = None,
    batch_size: int = 250,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
    dry_run: bool = False,
    trust_model_code: bool = False,
    devices: int = 1,
    nodes: int = 1,
    exact: bool = False,
    tracker: TrackerName | None = None,
) -> None:
    """Attack a trained classifier and report its clean and robust accuracy.

    Everything that is not given is taken from the run's own configuration.

    Args:
        path: a run directory; a weights file (.safetensors, or a state dict of tensors; then --model, --data and --eps too); \
or a published model, hf:FOLDER_OR_NAME, timm:NAME or torchvision:NAME (then --data and --eps too).
        weights: of a run directory, the weights to evaluate.
        attacks: separated by commas: clean, fgsm, pgd-K, cw-K, autoattack, apgd-ce, apgd-t, fab-t, square, \
package.module:function, foolbox:NAME, art:NAME.
        split: test, or the validation images that were held out of the training split.
        images: how many images of the split, drawn by a fixed seed; by default all.
        norm: norm of the threat; another one than that of the training needs --eps as well.
        eps: radius of the threat, in pixel units, such as 8/255.
        data: data source whose images are used.
        data_options: how the data is read.
        model: name of the model, for a weights file that does not say it or that needs your own code.
        model_options: for weights that another program wrote.
        batch_size: images attacked together.
        seed: of the attacks.
        out: folder of the record; by default the run's evaluations/.
        quiet: show no progress.
        dry_run: print the resolved options and what it would cost, from a probe of 10 steps; write nothing.
        trust_model_code: run the code that the run's config.yaml names as package.module:factory; without, --model has to.
        devices: processes on this machine that share the batches of images, one a GPU, or on the CPU; verdicts stay the same.
        nodes: machines, each started with the same command and MASTER_ADDR, MASTER_PORT and NODE_RANK; see docs/distributed.md.
        exact: AutoAttack by its authors' package, unchanged, for figures beside published ones; a few times slower.
        tracker: log the figures to the run's entry in tensorboard, wandb or mlflow as well.
    """
    ranks = ALONE if dry_run else joined(devices, nodes)
    display = Display(quiet, ranks)
    check_tracker(tracker)
    file = opened_weights(path, weights)
    config = run_config(path, trust_model_code or model is not None)
    if attacks is None:
        check_attack_trust(path, config.get("evaluation", {}).get("attacks", ""), trust_model_code)
    with display.bar():
        source = ranks.first_of_machine(lambda: stored_source(data, data_options, config, display.reading))
    loaded = stored_model(file, path, model, model_options, source, config, display.warn)
    threat_options = stored_threat(norm, eps, loaded, config)
    wanted = config.get("evaluation", {})
    names = split_names(attacks or wanted.get("attacks") or list(DEFAULT_ATTACKS))
    count = images if images is not None else wanted.get("images")
    folder = out or (path / "evaluations" if path.is_dir() else Path("evaluations"))
    if dry_run:
        _show_cost(path, loaded, source, threat_options, names, split, count, batch_size, seed)
        return
    record = evaluate_model(
        loaded,
        source,
        threat_options,
        names,
        split,
        count,
        batch_size,
        seed,
        ranks.from_main(lambda: free_path(folder, file.stem, ".json")),
        {"weights": model_named(path) or str(file), "command": command_line()},
        display,
        ranks,
        exact,
    )
    display.result(report(record), record)
    if tracker is not None and path.is_dir():
        with tracking(RunDirectory(path), tracker, config, ranks) as loggers:
            log_figures(loggers, record)


def _show_cost(
    path: Path,
    loaded: LoadedModel,
    source: Source,
    threat: ThreatOptions,
    attacks: list[str],
    split_name: str,
    count: int | None,
    batch_size: int,
    seed: int,
) -> None:
    """What --dry-run says; on the images that would be attacked, and with the refusals that an evaluation has."""
    check_attacks(attacks)
    check_counts(count, batch_size)
    indices, split = chosen_images(loaded, source, split_name, count)
    config = {
        "path": path,
        "data": source.name,
        "split": split_name,
        "images": len(indices),
        "attacks": ",".join(attacks),
        "threat": threat,
        "batch_size": batch_size,
        "seed": seed,
        "model": loaded.about,
    }
    cost = evaluation_cost(loaded.classifier, split, threat.build(), attacks, len(indices), batch_size, trained=True)
    show(config, {"evaluation": cost})


def evaluate_model(
    loaded: LoadedModel,
    source: Source,
    threat_options: ThreatOptions,
    attacks: list[str],
    split_name: Literal["test", "validation"],
    images: int | None,
    batch_size: int,
    seed: int,
    record_path: Path,
    about: dict[str, Any],
    display: Display,
    ranks: Ranks,
    exact: bool,
) -> dict[str, Any]:
    """Evaluate on a split, write JSON record and Parquet table, return the record.

    Raises:
        OptionError: an attack is unknown or a number makes no sense.
        AalpError: the model does not fit the data.
    """
    threat = threat_options.build()
    check_attacks(attacks)
    check_counts(images, batch_size)
    indices, split = chosen_images(loaded, source, split_name, images)
    ranks.from_main(lambda: check_writable(record_path.parent, "choose another --out"))
    classifier = loaded.classifier.to(device())
    rows = torch.arange(min(CHEAP_IMAGES, len(split)))
    some, labels = read_rows(split, rows, device())
    steady = determinism(classifier, some, threat, seed)
    gates = ranks.from_main(lambda: cheap_gates(classifier, some, labels, threat, seed, steady))
    _tell_failed(gates, ranks)
    settings = {"threat": [threat.norm, threat.eps], "attacks": attacks, "batch_size": batch_size, "seed": seed, "exact": exact}
    # Another version of somebody's attack is another attack.
    foreign = {name: dict(attack_by_name(name).settings) for name in attacks if is_foreign(name)}
    which = [split_name, indices.tolist()] + [source.validation_digest] * (split_name == "validation")
    journal = journal_of(record_path.parent, loaded, source, which, settings | ({"foreign": foreign} if foreign else {}))
    with display.bar(), stopping(about["command"]):
        evaluation = run_evaluation(
            classifier,
            split,
            threat=threat,
            attacks=attacks,
            batch_size=batch_size,
            seed=seed,
            tick=display.attack,
            journal=journal,
            ranks=ranks,
            exact=exact,
        )
    for result in evaluation.results:
        if result.outside:
            display.warn(
                f"warning: attack '{result.name}' left the ball or [0, 1] on {result.outside} of {result.attacked} images: "
                "there it counts as failed"
            )
    later = ranks.from_main(lambda: steady_later(gates, steady()))
    _tell_failed([result for result in later if result not in gates], ranks)
    evaluation = dataclasses.replace(evaluation, indices=indices)
    content = {
        **about,
        **content_of(evaluation, source, split_name, loaded, batch_size),
        "gates": [result.record() for result in later],
    }
    return ranks.from_main(lambda: written(record_path, "evaluation", content, journal, table_of(evaluation)))


def _tell_failed(results: list[GateResult], ranks: Ranks) -> None:
    """A failed gate is told on stderr, whatever is quiet."""
    failed = [f"{result.gate.name} ({result.finding.detail})" for result in results if result.passed is False]
    if failed and ranks.is_main:
        print(f"aalp: warning: gate failed: {'; '.join(failed)}: see `aalp audit` before trusting figures", file=sys.stderr)
