"""Run directories begun with their options, and gone on with: what `train`, `compare` and `search` write before they train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aalp.commands.config import kind_of, quoted, same_options, to_plain
from aalp.commands.yaml_file import read_yaml
from aalp.errors import RunError
from aalp.models.catalog import is_own_code
from aalp.store.files import alone_in, write_atomically
from aalp.store.run import RunDirectory, free_path


def begin(path: Path, options: Mapping[str, Any]) -> RunDirectory:
    """A new directory with these options as its config.yaml, which --config accepts.

    Raises:
        RunError: it exists already, or the disk refuses.
    """
    with alone_in(path.parent):
        return _begin(path, options)


def begin_next(folder: Path, stem: str, options: Mapping[str, Any]) -> RunDirectory:
    """The same at the next free number: STEM-001, STEM-002, ..."""
    with alone_in(folder):
        return _begin(free_path(folder, stem), options)


def _begin(path: Path, options: Mapping[str, Any]) -> RunDirectory:
    directory = RunDirectory.create(path)
    try:
        write_config(directory.config, options)
    except RunError:
        path.rmdir()
        raise
    return directory


def begin_or_go_on(path: Path, options: Mapping[str, Any]) -> None:
    """A new directory, or one that was begun with the same options.

    Raises:
        RunError: it was begun with others, or is something else.
    """
    with alone_in(path.parent):
        if not RunDirectory(path).begun:
            _begin(path, options)
            return
    goes_on(path, options)


def goes_on(path: Path, options: Mapping[str, Any]) -> bool:
    """Whether there is a run directory that was begun with these options.

    Raises:
        RunError: it was begun with others or is something else, or a link in it leads out of it.
    """
    if not RunDirectory(path).begun:
        return False
    RunDirectory.open(path)
    same_options(path, options, "choose another --run, or give the same options as then")
    # A run has all the options of a comparison, and may have them alike.
    then, now = (kind_of(config) for config in (read_yaml(RunDirectory(path).config), options))
    if then != now:
        raise RunError(f"'{path}' is a {then}, not a {now}: choose another --run")
    return True


def write_config(path: Path, options: Mapping[str, Any]) -> None:
    """Write options as YAML that --config accepts."""
    write_atomically(path, yaml.safe_dump(to_plain(options), sort_keys=False, allow_unicode=True).encode())


def resume_command(path: Path, options: Mapping[str, Any]) -> str:
    """The command that goes on with a run."""
    return f"aalp train --resume {quoted(path)}" + (" --trust-model-code" if is_own_code(options["model"]) else "")
