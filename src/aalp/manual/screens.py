"""Help screens: one that fits a terminal for each verb, all its options, or one group of them."""

from __future__ import annotations

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from aalp.errors import OptionError
from aalp.manual.options import Option, Verb, read_verb

OFTEN = (
    "threat.eps",
    "threat.norm",
    "attack.steps",
    "training.epochs",
    "training.batch_size",
    "training.lr",
    "training.augment",
    "data_options.size",
    "evaluation.attacks",
    "evaluation.images",
)
"""The options of groups that a verb's short help shows, being turned most; the others are named by their group."""

SCREEN = 32
"""Lines that the options of a short help may take; with usage and footer it stays within 40."""

EXIT_CODES = {
    0: "done",
    1: "training diverged: the loss stopped being finite; the last good state is kept",
    2: "bad input, or a disk that refuses; one line on stderr says what, and what to do",
    3: "an audit failed, or a data check found what spoils figures",
    4: "an audit was inconclusive",
    5: "another of several processes ended; its own error tells why",
    130: "stopped by SIGINT (Ctrl-C); what was done is saved",
    138: "stopped by SIGUSR1; what was done is saved",
    143: "stopped by SIGTERM; what was done is saved",
}

CONFIG = Option("config", "FILE", None, "preset name or YAML file; a further --config overrides it, and so do other options")
PRINT_CONFIG = Option(
    "print_config", "", None, "print the options as YAML and end, without looking at the data (see --dry-run)"
)
EVERYWHERE = (
    Option("json", "", None, "one JSON document on stdout, also on errors; everything else goes to stderr"),
    Option("help", "[GROUP]", None, "this text, or all of a GROUP or an option; --help-all for everything"),
)
"""Options that are no parameters of a verb's function."""

COMPLETION = "print a script that completes commands in bash, zsh or fish"


def overview(verbs: Mapping[str, str], presets: Iterable[str]) -> str:
    """What `aalp --help` says."""
    wide = max(map(len, [*verbs, "completion"])) + 2
    lines = ["usage: aalp VERB ...", "", "Adversarially robust image classifiers: train, attack, compare, report.", ""]
    lines += [f"  {name:<{wide}}{purpose}" for name, purpose in {**verbs, "completion": COMPLETION}.items()]
    codes = ", ".join(f"{code} {re.split('[:;,(]', text)[0].strip()}" for code, text in EXIT_CODES.items())
    lines += ["", "`aalp VERB --help` tells a verb's options; `--json` makes any verb speak JSON."]
    lines += ["Presets for --config: " + ", ".join(presets), *_wrapped(f"Exit codes: {codes}.")]
    return "\n".join(lines)


def help_screen(verb: str, paths: str | None, words: Sequence[str]) -> str:
    """What `aalp VERB ... --help ...` says.

    Args:
        paths: the verb's positional arguments as its usage shows them; None for a verb that takes --config.
        words: after the verb.

    Raises:
        OptionError: no group or option of the name that follows --help.
    """
    about = read_verb(verb)
    options = all_options(about, paths)
    if "--help-all" in words:
        return _everything(about, paths, options)
    at = next(position for position, word in enumerate(words) if word in ("-h", "--help"))
    asked = words[at + 1].lstrip("-").replace("-", "_") if words[at + 1 :] else ""
    if not asked or words[at + 1].startswith("-"):
        return _short(about, paths, options)
    found = [option for option in options if option.name == asked or option.name.startswith(f"{asked}.")]
    found = found or [option for option in options if option.name.rpartition(".")[2] == asked]
    if not found:
        near = difflib.get_close_matches(asked, [*about.groups, *(option.name for option in options)], n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise OptionError(
            f"`aalp {verb}` has no option or group '{asked}': {hint}groups are {', '.join(about.groups)}; see --help-all"
        )
    title = [f"{flag(asked)}: {about.groups[asked]}", ""] if asked in about.groups else []
    return "\n".join([*title, *_long(found)])


def all_options(about: Verb, paths: str | None) -> list[Option]:
    """The options of a verb with those that no signature has, in the order of its help."""
    own = [option for option in about.options if not option.group]
    if paths is None:
        needed = sum(option.required for option in own)
        own = [*own[:needed], CONFIG, *own[needed:]]
    grouped = [option for option in about.options if option.group]
    return [*own, *grouped, *([PRINT_CONFIG] if paths is None else []), *EVERYWHERE]


def usage(verb: str, paths: str | None, options: Sequence[Option]) -> str:
    """The usage line."""
    needed = [f"{flag(option)} {option.kind}" for option in options if option.required and not paths]
    return " ".join(["usage: aalp", verb, *([paths] if paths else needed), "[options]"])


def positional(option: Option, paths: str | None) -> bool:
    """Whether an option is given by its place."""
    return paths is not None and option.required


def _short(about: Verb, paths: str | None, options: Sequence[Option]) -> str:
    few = len(options) <= 24
    shown = [o for o in options if few or (not o.group and o is not PRINT_CONFIG) or o.name in OFTEN]
    lines = [usage(about.name, paths, options), "", *_wrapped(about.description.partition("\n\n")[0]), ""]
    named = {option.name: _named(option, paths) for option in shown}
    indent = min(max(map(len, named.values())), 30) + 4
    rows = [_rows(named[o.name], o, indent, lines=1 if o.group or o in EVERYWHERE else 2) for o in shown]
    for place in reversed(range(len(shown))):  # what a user needs first is cut last
        if sum(map(len, rows)) > SCREEN:
            rows[place] = _rows(named[shown[place].name], shown[place], indent, lines=1)
    lines += [line for row in rows for line in row]
    hidden = {group: sum(option.group == group and option not in shown for option in options) for group in about.groups}
    if any(hidden.values()):
        counts = ", ".join(f"{group} {count}" for group, count in hidden.items() if count)
        lines += ["", *_wrapped(f"More: aalp {about.name} --help GROUP, or --help-all. Options by group: {counts}.")]
    elif any(line.endswith(CUT) for line in lines):
        lines += ["", f"Whole texts: aalp {about.name} --help-all"]
    return "\n".join(lines)


def _everything(about: Verb, paths: str | None, options: Sequence[Option]) -> str:
    lines = [usage(about.name, paths, options), ""]
    for paragraph in about.description.split("\n\n"):
        lines += [*_wrapped(paragraph), ""]
    lines += _long([option for option in options if not option.group], paths)
    for group, purpose in about.groups.items():
        members = [option for option in options if option.group == group]
        what = f"a YAML file of these, or {flag(group)}.NAME" if not paths else f"{flag(group)}.NAME"
        lines += ["", f"{group}: {purpose.rstrip('.')} ({what})", *_long(members)]
    lines += ["", *_wrapped("A switch needs no value and may have one: --quiet=false. - and _ are the same in option names.")]
    return "\n".join(lines)


def _long(options: Iterable[Option], paths: str | None = None) -> list[str]:
    lines = []
    for option in options:
        default = f" [default: {option.default}]" if option.default is not None else " [required]" * option.required
        texts = (" " * 8 + line for line in _wrapped(option.text + default, _width() - 8))
        lines += [f"  {_named(option, paths)}", *texts]
    return lines


CUT = " ..."


def _named(option: Option, paths: str | None) -> str:
    if positional(option, paths):
        return str(paths)
    kind = option.kind if len(option.kind) < 24 or option.group == "" else "NAME"
    return f"{flag(option)} {kind}".rstrip() if option.name != "help" else "-h, --help [GROUP]"


def flag(option: Option | str) -> str:
    """The way an option is written: as in a YAML file, a switch with dashes."""
    if isinstance(option, str):
        return f"--{option}"
    return "--" + (option.name.replace("_", "-") if option.switch and option is not PRINT_CONFIG else option.name)


def _rows(named: str, option: Option, indent: int, lines: int) -> list[str]:
    """An option with the first sentence of its text and its default, in so many lines at most."""
    default = f" [{option.default}]" if option.default is not None else ""
    text = option.text.rstrip(".")
    for stop in (". ", "; "):
        if len(text) + len(default) > (_width() - indent) * lines:
            text = text.partition(stop)[0]
    words = text.split()
    rows = _wrapped(text + default, _width() - indent)
    while len(rows) > lines and len(words) > 1:
        words.pop()
        rows = _wrapped(" ".join(words).rstrip(",(:") + CUT + default, _width() - indent)
    rows = [" " * indent + row for row in rows]
    head = f"  {named}"
    return [head, *rows] if len(head) > indent - 2 else [head.ljust(indent) + rows[0][indent:], *rows[1:]]


def _wrapped(text: str, width: int | None = None) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), width or _width(), break_on_hyphens=False)


def _width() -> int:
    """Columns to write in: those of the terminal, where it says so, up to what is pleasant to read."""
    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
