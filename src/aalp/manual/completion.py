"""Completion for bash, zsh and fish: the shell asks `aalp completion words ...`, which answers without loading torch.

The scripts know no option, so they never grow stale: verbs, options and values come from the installed version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from aalp.errors import OptionError, unknown_name
from aalp.manual.options import Option, names_in, read_verb
from aalp.manual.screens import all_options, flag

SCRIPTS = {
    "bash": """\
# In ~/.bashrc: eval "$(aalp completion bash)"
_aalp() {
    local cur=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT} IFS=$'\\n'
    # The line by blanks: bash itself would cut words at : and =.
    local whole=${line##*[[:space:]]}
    COMPREPLY=($(aalp completion words "$line" 2>/dev/null))
    if ((${#COMPREPLY[@]})); then
        # What is before the last : or = stands already, where bash cuts words at it.
        local before=${whole%"$cur"}
        [[ $cur == [:=] ]] && before=$whole
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
    # A name that ends so goes on, with a value or with the rest of the name.
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[.:] ]] && compopt -o nospace
}
complete -o default -F _aalp aalp
""",
    "zsh": """\
#compdef aalp
# In ~/.zshrc, after compinit: eval "$(aalp completion zsh)"
_aalp() {
    local -a found
    found=("${(@f)$(aalp completion words "${LBUFFER}" 2>/dev/null)}")
    found=(${found:#})
    if (( ${#found} )); then
        compadd -Q -- ${found:#*[.:]}
        compadd -Q -S '' -- ${(M)found:#*[.:]}
    else
        _files
    fi
}
compdef _aalp aalp
""",
    "fish": """\
# In ~/.config/fish/completions/aalp.fish: aalp completion fish | source
function __aalp_words
    aalp completion words (commandline -cp | string collect) 2>/dev/null
end
complete -c aalp -f -n 'test -n "$(__aalp_words)"' -a '(__aalp_words)'
""",
}

TABLES = {
    "objective": ("aalp.method.objectives", "OBJECTIVES"),
    "objectives": ("aalp.method.objectives", "OBJECTIVES"),
    "model": ("aalp.models.catalog", "BUILT_IN"),
    "data": ("aalp.data.sources", "READERS"),
    "attacks": ("aalp.evaluation.autoattack", "STANDARD"),
    "to": ("aalp.export.export", "FORMATS"),
}
"""Where the known values of an option stand, by the last part of its name; there may be others than these."""

FURTHER = {"model": ("timm:",), "attacks": ("clean", "fgsm", "pgd-20", "cw-40", "autoattack")}


def script(shell: str) -> str:
    """The script for a shell.

    Raises:
        OptionError: an unknown shell.
    """
    if shell not in SCRIPTS:
        raise OptionError(unknown_name("shell", shell, SCRIPTS))
    return SCRIPTS[shell]


def candidates(line: str, verbs: Mapping[str, str], paths: Mapping[str, str], presets: Iterable[str]) -> list[str]:
    """What the last word of a command line may become; nothing where a file or a free text goes.

    Args:
        line: up to the cursor, `aalp` included.
    """
    # Other commands may stand before it in the line, and what it is called is an objective and may be a folder, too.
    words = re.split(r"[;&|(]", line)[-1].split()
    start = next((at for at, word in enumerate(words) if word.rpartition("/")[2] == "aalp"), 0)
    words = words[start + 1 :] + ([""] if line[-1:].isspace() else [])
    if len(words) <= 1:
        return _fitting([*verbs, "completion", "--help", "--version"], words[-1] if words else "")
    verb, before, last = words[0], words[-2], words[-1]
    if verb == "completion":
        return _fitting(SCRIPTS, last) if len(words) == 2 else []
    if verb not in verbs:
        return []
    options = {flag(option): option for option in all_options(read_verb(verb), paths.get(verb))}
    if before in ("--help", "-h"):
        return _fitting([*read_verb(verb).groups, *(option.name for option in options.values())], last)
    name, equals, value = last.partition("=")
    if equals:
        found = _values(options.get(name), value, presets)
        return [f"{name}={each}" for each in found]
    if before in options and not options[before].switch:
        return _values(options[before], last, presets)
    if not last.startswith("-"):
        return []
    return _by_group([*options, "--help-all"], last)


def _values(option: Option | None, begun: str, presets: Iterable[str]) -> list[str]:
    if option is None:
        return []
    if option.name == "config":
        return _fitting(presets, begun)
    if option.choices or option.kind == "BOOL" or option.switch:
        return _fitting(option.choices or ("true", "false"), begun)
    key = option.name.rpartition(".")[2]
    if key not in TABLES:
        return []
    done, comma, rest = begun.rpartition(",") if key in ("objectives", "attacks") else ("", "", begun)
    known = [f"{name}:" if key == "data" and name != "digits" else name for name in names_in(*TABLES[key])]
    return [done + comma + name for name in _fitting([*known, *FURTHER.get(key, ())], rest)]


def _by_group(flags: Iterable[str], begun: str) -> list[str]:
    """Options that begin so; of a group whose name is not whole yet, the name alone, so that a list stays short."""
    found: dict[str, None] = {}
    for name in _fitting(flags, begun):
        group = name.partition(".")[0] + "."
        found[group if "." in name and not begun.startswith(group) else name] = None
    return list(found)


def _fitting(names: Iterable[str], begun: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(begun)]


def answer(words: Sequence[str], verbs: Mapping[str, str], paths: Mapping[str, str], presets: Iterable[str]) -> str:
    """What `aalp completion WORDS` prints.

    Raises:
        OptionError: no shell, or an unknown one.
    """
    if words[:1] == ["words"] and len(words) == 2:
        return "".join(f"{word}\n" for word in candidates(words[1], verbs, paths, presets))
    if len(words) != 1:
        raise OptionError("`aalp completion` needs the name of a shell: bash, zsh or fish")
    return script(words[0])
