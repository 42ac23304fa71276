"""docs/cli.md: every verb with its options, exit codes, and what --json prints, from the same source as the help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aalp.manual.options import Option, Verb, read_verb
from aalp.manual.screens import EXIT_CODES, all_options, flag, positional, usage

HEAD = """# Command line

Made from the source of the verbs by `python tests/manual/test_cli_page.py`; a test fails when it is stale.

`aalp VERB --help` shows the options most turned, `--help GROUP` or `--help OPTION` some of them whole, `--help-all` all.
An option is a flag (`--training.epochs 30`), or a line of a YAML file given with `--config` where a verb takes one. In flags,
`-` and `_` are the same. A switch needs no value and may have one (`--quiet=false`). Help answers without loading torch.

## Verbs
"""

MIDDLE = """
## Exit codes

{codes}

## JSON

`--json` makes any verb print one JSON document on stdout, whatever happens; progress, warnings and the line about an error
go to stderr (`--quiet` silences progress there). The exit code is the same as without it.

| key | what it holds |
|---|---|
| `schema` | 1; a number that grows when a key changes its meaning |
| `verb`, `command` | what was run |
| `exit_code` | as above |
| `error` | null, or `kind` (the class of the error, such as `OptionError`) and `message` (the line on stderr) |
| `result` | what the verb made, in the table below; what was finished before an error stays in it |

| verb | `result` |
|---|---|
{results}

`--dry-run` gives `config`, `cost` and `device`.

## Dry runs

`--dry-run` prints the resolved options as YAML that `--config` takes (`train`, `compare`, `search`), with the cost in comments,
and writes nothing: steps, minutes and the peak of memory, extrapolated from ten steps of the real training loop and one
validation, in a temporary folder that is removed. For attacks it times PGD with ten steps on one batch. Of a model that is
not trained yet every image is taken to withstand every attack: then minutes are an upper bound, and the line says "at most".
Data is read for it, so a torchvision data set that is not there yet is downloaded.

## Completion

| shell | to have it in every session |
|---|---|
| bash | `eval "$(aalp completion bash)"` in ~/.bashrc |
| zsh | `eval "$(aalp completion zsh)"` in ~/.zshrc, after `compinit` |
| fish | `aalp completion fish \\| source` in ~/.config/fish/config.fish |

It completes verbs, options, presets, and the values of options that have a list of them.

## Output

Results go to stdout, progress and warnings to stderr. Where stderr is no terminal, or `TERM=dumb`, there is no bar but a
plain line an epoch or an attack, and one a minute in between; lines are written whole, so a log can be followed. Nothing is
coloured where `NO_COLOR` is set. Where a reader of results goes away
(`aalp ... | head`) it ends quietly, and where one of progress does it goes on.
"""

RESULTS = {
    "data": {
        "classes": "names, in the order of the labels",
        "splits": "images, sizes and values of each",
        "unreadable": "images that cannot be read",
        "duplicates": "`across` splits, `contradictions` of labels, `within` a split, `near`",
        "spoiled": "whether any of this spoils figures",
        "path": "the record",
        "images": "a table with a row an image",
        "contact_sheet": "",
    },
    "train": {
        "run": "the run directory",
        "weights": "`best` and `last`",
        "steps": "done in all",
        "seconds": "of training",
        "best_epoch": "",
        "validation_clean": "of the best weights, in [0, 1]; null without validation images",
        "validation_robust": "under PGD",
        "evaluation": "with --evaluate: as of `evaluate`",
    },
    "evaluate": {
        "clean": "accuracy in [0, 1]",
        "robust": "worst case over all attacks, null where none ran",
        "intervals": "95 %",
        "attacks": "a list of name, accuracy, seconds, settings",
        "threat": "",
        "gates": "the cheap gates of the audit",
        "path": "the record, which has all of this",
    },
    "audit": {"verdict": "pass, fail or inconclusive", "line": "the same in words", "gates": "", "path": "the record"},
    "analyze": {"observations": "statements and whether they hold", "groups": "figures", "path": "the record"},
    "compare": {
        "table": "means and deviations by objective and figure",
        "compared": "differences with intervals",
        "cells": "each run that is evaluated",
        "left": "the names of the others",
        "path": "the record",
    },
    "search": {
        "trials": "number, state, value, options of each",
        "best": "the trial with the highest value, null where none came to its end",
        "config": "its options as --config takes them",
        "path": "the record",
    },
    "report": {"path": "the HTML file", "figures": "the folder, with --figures"},
    "export": {
        "format": "",
        "files": "names in the folder",
        "loaded_back": "by how much logits and predictions differ",
        "path": "the folder",
    },
}
"""What --json gives for each verb, as far as programs may rely on it."""


def page(verbs: Mapping[str, str], paths: Mapping[str, str]) -> str:
    """The page as it should be."""
    parts = [HEAD, _table(["verb", "what it does"], ([f"[`{v}`](#{v})", text] for v, text in verbs.items()))]
    codes = _table(["code", "meaning"], ([str(code), text] for code, text in EXIT_CODES.items()))
    results = "\n".join(
        f"| `{verb}` | {'; '.join(f'`{key}` {text}'.strip() for key, text in keys.items())} |" for verb, keys in RESULTS.items()
    )
    parts.append(MIDDLE.format(codes=codes, results=results))
    parts += [_verb(read_verb(verb), paths.get(verb)) for verb in verbs]
    return "\n".join(parts)


def _verb(about: Verb, paths: str | None) -> str:
    options = all_options(about, paths)
    parts = [f"## {about.name}", f"```text\n{usage(about.name, paths, options)}\n```", about.description]
    parts.append(_options([option for option in options if not option.group], paths))
    for group, purpose in about.groups.items():
        parts += [f"**`--{group}.*`**: {purpose}", _options([o for o in options if o.group == group], paths)]
    return "\n\n".join(parts) + "\n"


def _options(options: Iterable[Option], paths: str | None) -> str:
    return _table(["option", "", "default"], (_row(option, paths) for option in options))


def _row(option: Option, paths: str | None) -> list[str]:
    name = str(paths) if positional(option, paths) else f"{flag(option)} {option.kind}".rstrip()
    default = f"`{option.default}`" if option.default is not None else "required" * option.required
    return [f"`{name}`", option.text, default]


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
