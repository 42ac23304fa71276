"""Composes the rooms' options into what the verbs take, and builds from them."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from aalp.commands.yaml_file import check_groups, read_yaml
from aalp.errors import AalpError, OptionError, RunError, unknown_name
from aalp.method.aalp import Adversary, Distance
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objective_base import Objective
from aalp.method.objectives import OBJECTIVES
from aalp.method.sample_weights import SampleWeights
from aalp.method.threat import L2, Linf, Threat
from aalp.plain import number
from aalp.store.run import RunDirectory

THREATS: dict[str, type[Threat]] = {"linf": Linf, "l2": L2}


@dataclass(frozen=True)
class ThreatOptions:
    """What the adversary may do."""

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""

    eps: float | str = "8/255"
    """Radius of the ball in pixel units (images in [0, 1]): a number, or a fraction such as 8/255."""

    def build(self) -> Threat:
        """The threat.

        Raises:
            OptionError: eps is not a positive number.
        """
        return THREATS[self.norm](parse_number("eps", self.eps))


@dataclass(frozen=True)
class MethodOptions:
    """Numbers of the objective; each applies to the objectives that have it."""

    pairing_weight: float | None = None
    """lambda, weight of the pairing term: 0.5 by default for alp and clp; once its ramp is over 1 for aalp, 6 for aalp-kl."""

    pairing_ramp: float | None = None
    """Share of the training over which lambda grows from 0 (aalp); 1 by default."""

    clean_share: float | None = None
    """Share of the clean cross-entropy in the classification term: 0.5 by default for alp; for aalp 1, to begin with."""

    final_clean_share: float | None = None
    """What the clean share has changed to at the end, evenly (aalp); 0 by default."""

    distance: Distance | None = None
    """Distance of a pair (aalp): squared between logits (default), one-sided (no gradient through the clean ones), or kl."""

    adversary: Adversary | None = None
    """What the training attack maximises (aalp): the cross-entropy (default), or the pairing's distance as for trades."""

    beta: float | None = None
    """Weight of the KL term: 6 by default for trades, 5 for mart."""

    dropout: GuidedDropout = field(default_factory=GuidedDropout)
    """Guided Dropout (aalp)."""

    weights: SampleWeights = field(default_factory=SampleWeights)
    """Adaptive sample weights (aalp)."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured after training."""

    attacks: str | list[str] = "fgsm,pgd-20,cw-40,autoattack"
    """Attacks, separated by commas: fgsm, pgd-K, cw-K, autoattack, or its parts apgd-ce, apgd-t, fab-t, square; \
also package.module:function, foolbox:NAME and art:NAME."""

    images: int | None = None
    """How many images of the split, drawn by a fixed seed; by default all."""

    split: Literal["test", "validation"] = "test"
    """Which images: test for what is reported, validation for choosing between methods (nothing is chosen on test images)."""

    weights: Literal["best", "last"] = "best"
    """Weights of the best epoch on validation images, or of the last epoch."""

    batch_size: int = 250
    """Images attacked together."""

    seed: int = 0
    """Seed of the attacks."""

    exact: bool = False
    """AutoAttack by its authors' package, unchanged, for figures beside published ones; a few times slower."""

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"evaluation {name} is {value}: it has to be at least 1")


def split_names(value: str | int | list[Any]) -> list[str]:
    """`a,b` or [a, b] as a list of names."""
    items = value if isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in items if str(item).strip()]


def parse_number(name: str, value: float | str) -> float:
    """A number, or a fraction such as 8/255.

    Raises:
        OptionError: it is neither.
    """
    found = number(value)
    if math.isnan(found):
        raise OptionError(f"{name} is '{value}': give a number, or a fraction such as 8/255")
    return found


def override(options: Mapping[str, Any], changes: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Options with changes laid over them, nested as in a YAML file, checked as the command line checks them.

    Raises:
        OptionError: an unknown option, or a value of the wrong type or range.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    check_groups(options, changes, what)
    parser = ArgumentParser(exit_on_error=False)
    for name, value in options.items():
        parser.add_argument(f"--{name}", type=type(value))
    try:
        parsed = parser.parse_object(_laid_over(to_plain(options), changes))
        return dict(parser.instantiate(parsed).as_dict())
    except AalpError as error:
        raise OptionError(f"{what}: {error}") from error
    except (ArgumentError, TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        # All but the first are what the parser stumbles over, such as a number where a group of options goes.
        raise OptionError(f"{what}: {' '.join(str(error).split())}") from error


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: (under[key], over[key]) for key in under.keys() & over.keys()}
    nested = {key: _laid_over(*pair) for key, pair in both.items() if all(isinstance(value, Mapping) for value in pair)}
    return {**under, **over, **nested}


def build_objective(name: str, options: MethodOptions, strict: bool) -> Objective:
    """The objective of this name with its numbers.

    Args:
        strict: refuse a number that the objective does not have; a comparison of several objectives ignores it.

    Raises:
        OptionError: unknown name, or a number that this objective does not have.
    """
    if name not in OBJECTIVES:
        raise OptionError(unknown_name("objective", name, OBJECTIVES))
    factory, accepted = OBJECTIVES[name]
    numbers = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    given = {key: value for key, value in numbers.items() if value is not None}
    # The two modules always have a value: there, one that is not the default was given.
    untouched = {"dropout": GuidedDropout(), "weights": SampleWeights()}
    foreign = sorted(key for key in set(given) - accepted if given[key] != untouched.get(key))
    if strict and foreign:
        takes = ", ".join(sorted(accepted)) or "no numbers"
        raise OptionError(f"method {foreign[0]} does not apply to objective '{name}': it takes {takes}")
    return factory(**{key: value for key, value in given.items() if key in accepted})


def with_own_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run, those of `method` that its objective does not have at their defaults.

    Options that several objectives share, as in a search over them, have numbers that one alone would refuse.
    """
    _, accepted = OBJECTIVES[options["objective"]]
    foreign = {f.name: getattr(MethodOptions(), f.name) for f in dataclasses.fields(MethodOptions) if f.name not in accepted}
    return {**options, "method": dataclasses.replace(options["method"], **foreign)}


def method_numbers(objective: Objective) -> dict[str, Any]:
    """All numbers of an objective as plain values, those by default too."""
    numbers: dict[str, Any] = to_plain({"method": objective})["method"]
    return numbers


def device() -> torch.device:
    """The device to evaluate on: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as plain values for YAML and JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in options.items()}


def same_options(run: Path, options: Mapping[str, Any], advice: str) -> None:
    """Refuse to go on with a run under other options than those it was begun with.

    Args:
        run: directory with the config.yaml of then.
        options: those of now; what changes nothing in the result is not compared.
        advice: what to do about a difference.

    Raises:
        RunError: naming the first option that differs.
    """
    config = RunDirectory(run).config
    before, now = read_yaml(config), to_plain({name: value for name, value in options.items() if name not in FREE})
    # An option that is newer than the run had its default then.
    groups: dict[str, Any] = {
        name: type(value)()
        for name, value in options.items()
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
    }
    begun = override(groups, {name: before[name] for name in groups if name in before}, f"'{config}'")
    objective = options.get("objective")
    if "space" not in options and objective == before.get("objective") and objective in OBJECTIVES:
        # Rows of a comparison were once begun with each other's numbers; a search's are for all its objectives.
        begun = with_own_numbers({**begun, "objective": objective})
    before |= to_plain(begun)
    for given in (before, now):
        given["data_options"] = {key: value for key, value in given.get("data_options", {}).items() if key not in FREE_OF_DATA}
    for name in now:
        if before.get(name) != now[name]:
            key, then, wanted = _difference(name, before.get(name), now[name])
            raise RunError(f"'{run}' was begun with another {name} ({key} was {then} and is {wanted}): {advice}")


FREE = ("checkpoint", "tracker")
"""Options that may differ when a run goes on: they change nothing in what it makes."""

FREE_OF_DATA = ("workers", "memory_limit", "cache")
"""The same among those of the data: they say how this machine reads the images, and a run may go on on another one."""


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The dotted name of the first option that differs, its value then and its value now."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        key = next(key for key in {**now, **before} if before.get(key) != now.get(key))
        return _difference(f"{name}.{key}", before.get(key), now.get(key))
    return name, before, now


def kind_of(config: Mapping[str, Any]) -> str:
    """What a directory with this config.yaml is: a run, a search or a comparison."""
    if "space" in config:
        return "search"
    return "run" if "objective" in config else "comparison"


def check_one_run(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse the directory of several runs where one is meant.

    Args:
        config: what its config.yaml says.

    Raises:
        RunError: it is that of a search or of a comparison.
    """
    if kind_of(config) == "search":
        trials = sorted(file.parent for file in path.glob("trials/*/config.yaml"))
        # The winner is a run of its own only where somebody has trained it.
        run = path / "best" if (path / "best" / "config.yaml").is_file() or not trials else trials[0]
        raise RunError(f"'{path}' is a search, not a run: name one of the runs in it, such as {quoted(run)}")
    cells = sorted(file.parent for file in path.glob("*/config.yaml"))
    if kind_of(config) == "comparison" and cells:
        raise RunError(f"'{path}' is a comparison, not a run: name one of the runs in it, such as {quoted(cells[0])}")


def quoted(path: Path) -> str:
    """A path as a shell takes it, for commands that a user may copy."""
    return shlex.quote(str(path))
