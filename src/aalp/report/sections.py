"""The sections of the report: which blocks, in which order, and what to run for those that are missing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from aalp.plain import flat
from aalp.report import class_figures, figures, observations
from aalp.report.blocks import Code, Gallery, Gates, Missing, Section, Statements, Table, Text
from aalp.report.collect import Group, Run, runs_of
from aalp.report.figures import Interval, counted
from aalp.report.gallery import gallery
from aalp.report.headline import VERDICTS, differing, listed, radius
from aalp.report.robustness_tables import attack_table, breaks_table, named, other_data_table

GALLERY_BUDGET = 1_800_000
"""Characters that all pictures of a report may take together."""


def sections(groups: Sequence[Group], interval: Interval, record: Mapping[str, Any] | None, command: str) -> list[Section]:
    """Every section of the report, in order.

    Args:
        record: what `aalp analyze` wrote on the observations of these runs together, if it did.
        command: the command that made this report.
    """
    return [
        Section("training", "Training", _training(groups)),
        Section("robustness", "Robustness", _robustness(groups, interval)),
        Section("audit", "Audit", _audit(groups)),
        Section("observation-1", "Observation 1: fewer, stronger features", _observation(1, groups, record)),
        Section("observation-2", "Observation 2: pairing against classifying", _observation(2, groups, record)),
        Section("gallery", "Gallery", _gallery(groups)),
        Section("configuration", "Configuration", _configuration(groups)),
        Section("environment", "Environment", _environment(groups)),
        Section("reproduce", "Reproduce", _reproduce(groups, command)),
    ]


def _missing(groups: Sequence[Group], text: str, verb: str, lacks: Callable[[Run], bool]) -> list[Missing]:
    """A note if any run lacks something, with the commands that make it."""
    without = [run for run in runs_of(groups) if lacks(run)]
    if not without:
        return []
    which = "" if len(without) == len(runs_of(groups)) else f" for {len(without)} of {len(runs_of(groups))} runs"
    return [Missing(f"{text}{which}.", [f"aalp {verb} {shlex.quote(str(run.path))}" for run in without])]


def _training(groups: Sequence[Group]) -> list[Any]:
    resume = _missing(groups, "No metrics of training", "train --resume", lambda run: not run.metrics)
    return [*figures.training(groups), *resume]


def _robustness(groups: Sequence[Group], interval: Interval) -> list[Any]:
    about = _about_analysis(groups)
    found: list[Any] = [figures.accuracy(groups, interval), figures.attacks(groups, interval), figures.eps_curve(groups)]
    found += [attack_table(groups, interval), other_data_table(groups, interval), breaks_table(groups)]
    found += [class_figures.per_class(groups, about)]
    found += [class_figures.confusion(group) for group in groups]
    apart = listed(differing(groups))
    return [
        *(
            [Text(f"Figures side by side are not of one measure: the evaluations differ in {apart}.", strong=True)]
            * bool(apart)
        ),
        *(block for block in found if block),
        *_missing(groups, "No evaluation yet", "evaluate", lambda run: run.evaluation is None),
        *_missing(groups, "No attack yet", "evaluate --attacks autoattack", _unattacked),
        *_missing(groups, "No accuracy against eps, by class or confusion yet", "analyze", lambda run: run.analysis is None),
    ]


def _unattacked(run: Run) -> bool:
    return run.evaluation is not None and not run.evaluation["attacks"]


def _about_analysis(groups: Sequence[Group]) -> str:
    records = [run.analysis for run in runs_of(groups) if run.analysis]
    if not records:
        return ""
    subjects = sorted(
        {
            f"{counted(r['images'], 'test image')}, {r['attack']} in the {radius(r['threat'])}, seed {r.get('seed', 0)}"
            for r in records
        }
    )
    return f"On {'; '.join(subjects)}."


def _audit(groups: Sequence[Group]) -> list[Any]:
    intro = "The audit asks whether robustness is real or gradients are masked. Each gate has a rule; the verdict is over all."
    found: list[Any] = [Text(intro)]
    numbered = [(group, run) for group in groups for run in group.runs if run.audits]
    for group, run in numbered:
        record = run.audits[0]
        about = f"{record['line']}. " if record.get("line") else ""
        about += f"{counted(record['images'], 'test image')} of {record['data']['name']}, {radius(record['threat'])}, "
        about += f"weights {record['weights']}."
        if run.audit is None:
            about += " These are not the weights, data and threat of the evaluation above: this verdict does not vouch for it."
        if len(run.audits) > 1:
            earlier = ", ".join(
                f"{VERDICTS.get(other['verdict'], other['verdict'])} ({other['path'].stem})" for other in run.audits[1:]
            )
            about += f" Other audits: {earlier}."
        verdict = record["verdict"]
        shown = VERDICTS.get(verdict, str(verdict))
        found.append(Gates(group, group.called(run), about, verdict, shown, record["gates"], folded=len(numbered) > 1))
    return [*found, *_missing(groups, "Not audited yet", "audit", lambda run: not run.audits)]


def _observation(number: int, groups: Sequence[Group], record: Mapping[str, Any] | None) -> list[Any]:
    about = _about_analysis(groups)
    said = _statements(number, record or {})
    found: list[Any] = [said] if said else []
    if number == 1:
        found += [*observations.first(groups, about), observations.first_table(groups, about)]
    else:
        found += [*observations.second(groups), observations.second_table(groups, about)]
        if not any("conflict_rate" in run.metrics for run in runs_of(groups)):
            found.append(Text("None of these runs pairs logits, so there was no conflict to record in training."))
    found = [block for block in found if block]
    text = f"Observation {number} is not measured on test images yet"
    found += _missing(groups, text, "analyze", lambda run: run.analysis is None)
    if len(groups) > 1 and record is None and all(run.analysis for run in runs_of(groups)):
        together = " ".join(shlex.quote(str(run.path)) for run in runs_of(groups))
        found.append(
            Missing("What the runs together say of this observation is not written down yet.", [f"aalp analyze {together}"])
        )
    return found


def _statements(number: int, record: Mapping[str, Any]) -> Statements | None:
    claims = []
    for found in record.get("observations", ()):
        if found["number"] == number:
            opposite = bool((found.get("figures") or {}).get("opposite"))
            words = {True: ("pass", "holds"), False: ("fail", "opposite holds") if opposite else ("unsure", "not shown")}
            verdict, shown = words.get(found["holds"], ("none", "not judged"))
            claims.append((verdict, shown, str(found["sentence"])))
    lines = [line for line in record.get("summary", ()) if line.startswith(f"Observation {number}:")]
    return Statements([line.partition(": ")[2] for line in lines], claims) if claims else None


def _gallery(groups: Sequence[Group]) -> list[Any]:
    found: list[Any] = []
    shown = [group for group in groups if any(run.gallery for run in group.runs)]
    for group in shown:
        run = next(run for run in group.runs if run.gallery)
        pictures, factor = gallery(run, 12 if len(shown) == 1 else 6, GALLERY_BUDGET // len(shown))
        about: Mapping[str, Any] = (run.analysis or {})["gallery"]
        caption = (
            f"{group.called(run)}: the first {counted(len(pictures), 'image')} of the analysis, under "
            f"{about.get('attack', 'attack')}. The difference is amplified {factor:.3g} times; mid-grey means unchanged."
        )
        found.append(Gallery(group, caption, pictures))
    return [*found, *_missing(groups, "No images yet", "analyze", lambda run: run.gallery is None)]


def _configuration(groups: Sequence[Group]) -> list[Any]:
    whole = "The exact options of {}, from config.yaml; aalp train --config trains with them again."
    codes = [Code(whole.format(group.name), group.runs[0].config_text, folded=len(groups) > 1) for group in groups]
    if len(groups) == 1:
        return codes
    texts = [{name: _as_yaml(value) for name, value in flat(group.runs[0].config).items()} for group in groups]
    names = list(dict.fromkeys(name for options in texts for name in options if name != "seed"))
    differing = [name for name in names if len({options.get(name) for options in texts}) > 1]
    rows = [[name, *(options.get(name, "-") for options in texts)] for name in differing]
    header = ["option", *(group.name for group in groups)]
    table = Table("Options in which the models differ; all others are the same.", header, rows)
    return [table if rows else Text("All options of these models are the same but for the seed."), *codes]


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("\n...\n").strip()


def _environment(groups: Sequence[Group]) -> list[Any]:
    made = [
        (record["environment"], record["kind"], name)
        for run, name in named(groups)
        for record in [*run.evaluations, *run.audits, *([run.analysis] if run.analysis else [])]
        if record.get("environment")
    ]
    if not made:
        return [Text("No record tells an environment yet.")]
    columns = []
    for environment in [made[at][0] for at in range(len(made)) if made[at][0] not in [one for one, _, _ in made[:at]]]:
        of_kind: dict[str, list[str]] = {}
        for other, kind, name in made:
            if other == environment:
                of_kind.setdefault(kind, []).append(name)
        # One environment made all records, mostly; where not, the columns say which made what.
        titles = [f"{kind} of {', '.join(dict.fromkeys(names))}" for kind, names in of_kind.items()]
        columns.append(("; ".join(titles), _plain_environment(environment)))
    header = ["what", *(["all records"] if len(columns) == 1 else [title for title, _ in columns])]
    keys = dict.fromkeys(key for _, values in columns for key in values)
    rows = [[key, *(values.get(key, "-") for _, values in columns)] for key in keys]
    data = [_data_row(run, name) for run, name in named(groups) if run.evaluation]
    data_header = ["model", "weights", "epoch", "parameters", "data", "SHA-256 of the data"]
    return [
        Table("Versions, commit and hardware that the records were made with.", header, rows),
        *([Table("Weights and data that were evaluated.", data_header, data)] if data else []),
    ]


def _plain_environment(environment: Mapping[str, Any]) -> dict[str, str]:
    flat = {**environment, **environment.get("versions", {})}
    flat.pop("versions", None)
    return {
        name: ", ".join(map(str, value)) or "none" if isinstance(value, list) else "unknown" if value is None else str(value)
        for name, value in flat.items()
    }


def _data_row(run: Run, name: str) -> list[str]:
    record: Mapping[str, Any] = run.evaluation or {}
    model = record["model"]
    cells = (
        record["weights"],
        model.get("epoch"),
        model.get("parameters"),
        record["data"]["name"],
        record["data"].get("digest"),
    )
    return [name, *("-" if cell is None else str(cell) for cell in cells)]


def _reproduce(groups: Sequence[Group], command: str) -> list[Any]:
    runs = runs_of(groups)
    records = [record for run in runs for record in (*run.evaluations, *run.audits, run.analysis) if record]
    typed = [str(record.get("command") or "") for record in records]
    commits = {str(record.get("environment", {}).get("commit") or "").partition("+")[0] for record in records}
    again = [f"git checkout {commit}" for commit in sorted(commits - {""})] if len(commits) == 1 else []
    for run in runs:
        path = shlex.quote(str(run.path))
        again.append(f"aalp train --config {path}/config.yaml --run {path}-again")
    made = [line for line in dict.fromkeys(typed) if line.startswith("aalp ")]
    return [
        Code("To train the same again: the options in config.yaml are complete, and so are the seeds.", "\n".join(again)),
        Code("The commands that made the records and this report, as they were typed.", "\n".join([*made, command])),
    ]
