"""The record of an evaluation: what it holds, how it reads on the screen, and what later verbs take from it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aalp.commands.config import quoted
from aalp.commands.loading import LoadedModel
from aalp.commands.opening import whole_split
from aalp.commands.tables import text_table
from aalp.data.arrays import largest_class
from aalp.data.sources import Source
from aalp.errors import RunError
from aalp.evaluation.autoattack_gap import DropUnderAutoAttack
from aalp.evaluation.outcome import Evaluation
from aalp.evaluation.robustness import wilson_interval
from aalp.method.threat import Threat
from aalp.report.figures import counted
from aalp.report.telling import age, no_better_than_one_answer, of_other_epochs
from aalp.shown import eps_text, in_percent
from aalp.store.checkpoint import read_metadata
from aalp.store.records import read_record, same_threat
from aalp.store.run import RunDirectory


def content_of(evaluation: Evaluation, source: Source, split: str, loaded: LoadedModel, batch_size: int) -> dict[str, Any]:
    """The record of an evaluation."""
    count = len(evaluation)
    parts = [
        {
            "name": part.name,
            "accuracy": part.accuracy,
            "attacked": part.attacked,
            "seconds": part.seconds,
            "search": part.settings["search"],
        }
        for part in evaluation.parts
    ]
    attacks = [
        {
            "name": result.name,
            "accuracy": result.accuracy,
            "attacked": result.attacked,
            "seconds": result.seconds,
            "settings": result.settings,
            **({"outside": result.outside} if result.outside else {}),
            "parts": parts if result.name == "autoattack" else [],
        }
        for result in evaluation.results
    ]
    broken = torch.bincount(evaluation.broken_by, minlength=len(evaluation.names)).tolist()
    # Without an attack there is no robust accuracy, and JSON has no NaN.
    accuracies = {"clean": evaluation.clean_accuracy, "robust": evaluation.robust_accuracy if attacks else None}
    means = {name: float(values.nanmean()) for name, values in evaluation.measures.items()}
    # What nobody measured, and what float32 does not hold, as the squared distance of huge logits: JSON has neither.
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    return {
        "images": count,
        **accuracies,
        "intervals": {
            name: None if value is None else wilson_interval(round(value * count), count) for name, value in accuracies.items()
        },
        "majority": largest_class(evaluation.labels),
        "attacks": attacks,
        "broken_by": {name: number for name, number in zip(evaluation.names, broken, strict=True) if name},
        "measures": {"on": evaluation.measured_on, **means},
        "threat": {"norm": evaluation.threat.norm, "eps": evaluation.threat.eps},
        "seed": evaluation.seed,
        "batch_size": batch_size,
        "data": {
            "name": source.name,
            "split": split,
            "digest": source.digest,
            "split_images": len(whole_split(source, split)),
            # Which images are held out is another seed's matter, and not in the data's digest.
            **({"validation_digest": source.validation_digest} if split == "validation" else {}),
        },
        "model": loaded.about,
    }


def table_of(evaluation: Evaluation) -> dict[str, list[Any]]:
    """The table beside it: what happened to each image."""
    names = [None if name == "" else name for name in evaluation.names]
    table: dict[str, list[Any]] = {
        "index": evaluation.indices.tolist(),
        "label": evaluation.labels.tolist(),
        "clean_prediction": evaluation.predictions.tolist(),
        "broken_by": [names[position] for position in evaluation.broken_by.tolist()],
    }
    for result in evaluation.results:
        table[f"stands_{result.name}"] = result.standing.tolist()
    return table | {name: values.tolist() for name, values in evaluation.measures.items()}


def report(record: dict[str, Any]) -> str:
    """The record as a table for the screen."""
    rows = [["clean", *_figures(record["clean"], record["images"]), "", _broke(record, "clean")]]
    for result in record["attacks"]:
        name, seconds = result["name"], f"{result['seconds']:.1f}"
        rows.append([name, *_figures(result["accuracy"], record["images"]), seconds, _broke(record, name)])
        for part in result["parts"]:
            broke = _broke(record, f"autoattack/{part['name']}")
            rows.append([f"  {part['name']}", f"{in_percent(part['accuracy'])}%", "", f"{part['seconds']:.1f}", broke])
    if record["attacks"]:
        rows.append(["worst case", *_figures(record["robust"], record["images"]), "", ""])
    threat, data = record["threat"], record["data"]
    title = (
        f"{counted(record['images'], data['split'] + ' image')} of {data['name']}, {threat['norm']} eps "
        f"{eps_text(threat['eps'])}, weights {record['weights']}"
    )
    table = text_table(["attack", "accuracy", "95 % interval", "seconds", "broke first"], rows)
    notes = [] if record["attacks"] else ["nothing was attacked: no robust accuracy"]
    if no_better_than_one_answer(record):
        notes.append(f"no better than one answer for all images, {in_percent(record['majority'])}%, which no attack can change")
    return "\n\n".join([title, table, *notes, f"record: {record['path']}"])


def _broke(record: Mapping[str, Any], name: str) -> str:
    """How many images this attack was the first to break, where there are any."""
    return str(record["broken_by"].get(name) or "")


def _figures(accuracy: float, count: int) -> tuple[str, str]:
    low, high = wilson_interval(round(accuracy * count), count)
    return f"{in_percent(accuracy)}%", f"{in_percent(low)}% - {in_percent(high)}%"


CHEAP_VERDICTS = CHEAP_GATES_PASS, CHEAP_GATES_FAIL = "cheap gates pass", "cheap gates fail"


def cheap_verdict(evaluation: Mapping[str, Any]) -> str | None:
    """What an evaluation record's cheap gates say: enough to distrust a figure, too little to trust one."""
    gates = evaluation.get("gates")
    if gates is None:  # made before there were any
        return None
    return CHEAP_GATES_FAIL if any(gate["passed"] is False for gate in gates) else CHEAP_GATES_PASS


def is_of_present_weights(record: Mapping[str, Any], run: RunDirectory) -> bool:
    """Whether an evaluation is of weights that the run still has: training that goes on writes others under the same name."""
    try:
        about = read_metadata(run.weights(Path(record["weights"]).stem))
    except RunError:  # weights that are gone tell against nothing
        return True
    return not of_other_epochs(record, {"model": about})


def drop_under_autoattack(path: Path, weights: str, threat: Threat, source: Source) -> DropUnderAutoAttack:
    """What the run's newest evaluation of these weights on test images says of pgd-20 and AutoAttack under this threat.

    Raises:
        RunError: there is no such evaluation.
    """
    run, wanted = RunDirectory.open(path), {"norm": threat.norm, "eps": threat.eps}
    # By what they say themselves: a copy of the run has other times of its files.
    records = [{**read_record(file, "evaluation"), "path": str(file)} for file in run.evaluations.glob("*.json")]
    for record in sorted(records, key=age, reverse=True):
        accuracy = {attack["name"]: attack["accuracy"] for attack in record["attacks"]}
        same = Path(record["weights"]).stem == weights and same_threat(record["threat"], wanted)
        same = same and record["data"]["digest"] == source.digest and record["data"].get("split") == "test"
        if same and {"pgd-20", "autoattack"} <= accuracy.keys() and is_of_present_weights(record, run):
            return DropUnderAutoAttack(accuracy["pgd-20"], accuracy["autoattack"], record["images"])
    # Neither the threat nor the data has to be the run's own.
    command = f"aalp evaluate {quoted(path)} --weights {weights} --norm {threat.norm.lower()} --eps {threat.eps!r}"
    command += f" --attacks pgd-20,autoattack --data {shlex.quote(source.name)}"
    raise RunError(
        f"'{path}' has no evaluation of its {weights} weights with pgd-20 and autoattack on {source.name} at {threat.norm} eps "
        f"{eps_text(threat.eps)}: make one with `{command}`"
    )
