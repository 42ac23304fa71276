"""Composes the rooms' options into what the verbs take, and builds from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from aalp.errors import OptionError, RunError, unknown_name
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objectives import OBJECTIVES, Distance, Objective
from aalp.method.sample_weights import SampleWeights
from aalp.method.threat import L2, Linf, Threat

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
    """lambda, the weight of the pairing term (alp, clp, aalp); 0.5 by default."""

    clean_share: float | None = None
    """Share of the clean cross-entropy in the classification term (alp, aalp); 0.5 by default."""

    distance: Distance | None = None
    """Distance of a pair (aalp): squared between logits (default), one-sided (no gradient through the clean ones), or kl."""

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
    """Attacks, separated by commas: fgsm, pgd-K, cw-K, autoattack, or its parts apgd-ce, apgd-t, fab-t, square."""

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
    top, slash, bottom = str(value).partition("/")
    try:
        number = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if math.isnan(number):
        raise OptionError(f"{name} is '{value}': give a number, or a fraction such as 8/255")
    return number


def override(options: Mapping[str, Any], changes: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Options with changes laid over them, nested as in a YAML file, checked as the command line checks them.

    Raises:
        OptionError: an unknown option, or a value of the wrong type or range.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    for name, value in options.items():
        parser.add_argument(f"--{name}", type=type(value))
    try:
        parsed = parser.parse_object(_laid_over(to_plain(options), changes))
        return dict(parser.instantiate(parsed).as_dict())
    except ArgumentError as error:
        raise OptionError(f"{what}: {' '.join(str(error).split())}") from error


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: (under[key], over[key]) for key in under.keys() & over.keys()}
    nested = {key: _laid_over(*pair) for key, pair in both.items() if all(isinstance(value, Mapping) for value in pair)}
    return {**under, **over, **nested}


def build_objective(name: str, options: MethodOptions, strict: bool = True) -> Objective:
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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping of plain values.

    Raises:
        RunError: the file cannot be read or is not one.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"'{path}' is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RunError(f"'{path}' is not a mapping of options: write lines such as `data: digits`")
    return content
