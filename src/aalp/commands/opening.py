"""What a run directory or a weights file on the command line stands for: options, data, model, threat, images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aalp.commands.config import (
    EvaluationOptions,
    MethodOptions,
    ThreatOptions,
    build_objective,
    method_numbers,
    override,
    to_plain,
)
from aalp.commands.loading import LoadedModel, load_model, load_weights, ready, verify_on, weights_file
from aalp.commands.trust import check_trust
from aalp.commands.yaml_file import read_yaml
from aalp.data.loaders import Tick
from aalp.data.sources import DataOptions, Source, load_source
from aalp.data.split import Split, channel_statistics
from aalp.errors import AalpError, DataError, OptionError, RunError
from aalp.method.objective_base import Objective
from aalp.method.pgd import AttackOptions, equal_step
from aalp.models.catalog import COLLECTIONS, ModelOptions, architecture, build, is_own_code, order_classes
from aalp.models.published import Tell
from aalp.plain import flat
from aalp.seeding import derive_seed
from aalp.store.checkpoint import is_ours, read_foreign_tensors, read_metadata
from aalp.store.run import RunDirectory

STORED: dict[str, Any] = {
    "threat": ThreatOptions(),
    "evaluation": EvaluationOptions(),
    "data_options": DataOptions(),
    "model_options": ModelOptions(),
}
"""The groups of a run's options that later verbs read."""


def run_config(path: Path, trusted: bool = False) -> dict[str, Any]:
    """The options of a run directory as plain values, those that are read from it checked; nothing for a lone file.

    Args:
        trusted: whether the user said that the model code which they name may run, or named the model themselves.

    Raises:
        AalpError: they are not readable, or name code that nobody said may run.
    """
    if not path.is_dir():
        return {}
    file = path / "config.yaml"
    config = read_yaml(file)
    check_trust(path, config.get("model"), trusted)
    if not isinstance(config.get("data", ""), str):
        raise RunError(f"'{file}' has {config['data']!r} as data: a name is needed")
    groups = {name: default for name, default in STORED.items() if name in config}
    return config | to_plain(override(groups, {name: config[name] for name in groups}, f"'{file}'"))


def run_groups(path: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A run's own options of these groups as plain values, for others to be laid over; nothing for a lone file.

    Raises:
        AalpError: see `run_config`.
    """
    config = run_config(path, trusted=True)  # read, not run: the verb that runs it asks
    # What the training started from is no matter of the model that it made.
    return {name: {key: value for key, value in config[name].items() if key != "init_from"} for name in names if name in config}


def stored_source(
    name: str | None,
    options: DataOptions | None,
    config: dict[str, Any],
    tick: Tick = lambda what, done, total: None,
    remedy: str = "run this there, or give --data",
) -> Source:
    """The data that was asked for, or what the run was trained on, read as the run read it.

    Args:
        remedy: what to do where the run's data is not found from here.
    """
    stored: DataOptions = _group(DataOptions(), config.get("data_options", {}))
    if name is not None:
        return load_source(name, options or stored, tick)
    if config.get("data") is None:
        raise OptionError("data is missing: a weights file does not know its test images; name them with --data")
    try:
        return load_source(config["data"], options or stored, tick)
    except DataError as error:
        raise DataError(f"{error} (config.yaml names it as seen from where the run was trained: {remedy})") from error


def check_same_training(directory: RunDirectory, source: Source) -> None:
    """Refuse to go on with a run, or to set its figures beside others, whose data or method has changed since.

    Its options alone do not tell: a file of the same name may hold other images, and a number that its config.yaml
    leaves to the objective or the attack may have another default in this version.

    Raises:
        RunError: what it has left so far was trained on other images or labels than the source has, or with other
            numbers of the objective or steps of the attack than its config.yaml stands for now.
    """
    about = _trained_as(directory)
    data, then = (_mapping(about.get(name)) for name in ("data", "method"))
    now_told = {key: getattr(source, key) for key in ("digest", "validation_digest")}
    if data.get("digest") not in (None, now_told["digest"]):  # as it is where another memory_limit reads the same ones, too
        now_told = source.digests_read_otherwise() or now_told
    # Runs that are older tell nothing of their validation images.
    for key, what in (("digest", "on other"), ("validation_digest", "with other validation")):
        if data.get(key) not in (None, now_told[key]):
            other = f"'{directory.path}' was trained {what} images than '{source.name}' has now"
            raise RunError(f"{other}: put those back (or the version of Pillow that decoded them), or start another --run")
    objective, attack = _stands_for(directory)
    now = flat(method_numbers(objective))
    # A number that is newer than the run had its default then.
    changed = [(name, value) for name, value in flat(then).items() if name in now and now[name] != value]
    for name, value in changed[:1]:
        raise RunError(
            f"'{directory.path}' was trained with {name} {value}, and its config.yaml stands for {now[name]} in this version: "
            f"write method.{name} {value} there to go on with it, or start another --run"
        )
    # What tells no steps is from before they fell: they were equal.
    taken = about.get("step_sizes", [equal_step(attack.steps)] * attack.steps if attack.step_size is None else None)
    sizes = attack.step_sizes()
    if about and objective.inner is not None and taken not in (None, sizes):
        # One size for all is what they were, unless there were fewer of them at the beginning, and larger ones.
        equal = attack.first_steps is None and taken == [taken[0]] * attack.steps
        remedy = f"write attack.step_size {taken[0]} there to go on with it, or " if equal else ""
        raise RunError(
            f"'{directory.path}' was trained with attack steps of {taken[0]:g} eps{_falling(taken)}, and its config.yaml "
            f"stands for {sizes[0]:g} eps{_falling(sizes)} in this version: {remedy}start another --run"
        )


def _trained_as(directory: RunDirectory) -> dict[str, Any]:
    """What the newest state of a run, or its last weights, tell of their training; nothing where none is there and whole."""
    for file in (*reversed(directory.states()), directory.weights("last")):
        try:
            return read_metadata(file)
        except RunError:
            continue
    return {}


def _falling(sizes: Sequence[float]) -> str:
    return " and falling" if sizes[-1] < sizes[0] else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _stands_for(directory: RunDirectory) -> tuple[Objective, AttackOptions]:
    """The objective and the attack that a run's config.yaml stands for in this version."""
    config, defaults = read_yaml(directory.config), {"method": MethodOptions(), "attack": AttackOptions()}
    options = override(defaults, {name: config.get(name, {}) for name in defaults}, f"'{directory.config}'")
    return build_objective(str(config.get("objective")), options["method"], strict=False), options["attack"]


def _group(default: Any, stored: Mapping[str, Any]) -> Any:
    """A group of options from its plain values."""
    return override({"stored": default}, {"stored": stored}, "the run's options")["stored"]


def model_named(path: Path) -> str | None:
    """The model that a word means which is no path: a published one, or code of the user's own; None for a path."""
    name = str(path)
    kind, _, rest = name.partition(":")
    if path.exists() or not rest or "/" in kind:
        return None
    return name if kind in (*COLLECTIONS, "hf") or is_own_code(name) else None


def opened_weights(path: Path, which: str) -> Path:
    """The weights file that a path stands for; the word itself where it is a model's name.

    Raises:
        RunError: see `weights_file`.
    """
    return Path(str(path).replace("/", "-").replace(":", "-")) if model_named(path) else weights_file(path, which)


def stored_model(
    file: Path,
    path: Path,
    model: str | None,
    options: ModelOptions | None,
    source: Source,
    config: dict[str, Any],
    tell: Tell,
) -> LoadedModel:
    """The classifier with these weights: of a run, of a file, ours or another program's, or a published model as it is."""
    if options is not None and options.init_from is not None:
        raise OptionError(f"init_from is '{options.init_from}': it starts a training; name weights to judge in its place")
    named = model_named(path)
    # What a run directory's configuration names has been seen to be trusted; what a lone file says is not run.
    name = model or config.get("model")
    if named is None and (path.is_dir() or is_ours(file)):
        loaded = load_model(file, name, options or stored_options(config))
        own = [str(label) for label in loaded.metadata["classes"]]
        if len(own) == len(source.classes):
            order_classes(loaded.classifier, own, source.classes, f"'{file}'", tell)
        return loaded
    if named is None and name is None:
        raise OptionError(f"model is missing: '{file}' does not say which model it is; name it with --model")
    if named is not None and model is not None:
        raise OptionError(f"model is '{model}' and the weights are those of '{named}': name one of them")
    name, options = named or str(name), options or ModelOptions()
    if named is not None and named.partition(":")[0] in COLLECTIONS:
        options = dataclasses.replace(options, pretrained=True)
    statistics = channel_statistics(source.train)
    classifier = build(
        name,
        len(source.classes),
        source.image_shape,
        options,
        statistics,
        source.classes,
        tell=tell,
        keep_head=named is not None,
    )
    if named is None:
        load_weights(classifier, read_foreign_tensors(file), str(file))
    about = {"model": name, "parameters": sum(parameter.numel() for parameter in classifier.parameters())}
    return LoadedModel(ready(classifier, source.image_shape), about | {"architecture": architecture(classifier, options)})


def stored_options(config: Mapping[str, Any]) -> ModelOptions | None:
    """How a run's model was built, as its configuration says (and as it was seen to be right); None for a lone file."""
    stored = config.get("model_options")
    options: ModelOptions | None = None if stored is None else _group(ModelOptions(), stored)
    return options


def stored_threat(norm: str | None, eps: float | str | None, loaded: LoadedModel, config: dict[str, Any]) -> ThreatOptions:
    """The threat that was asked for; what was not given is the run's, or what the weights were trained for."""
    known = config.get("threat") or loaded.metadata.get("threat") or {}
    if not isinstance(known, Mapping):
        raise RunError(f"the weights name {known!r} as their threat: give --norm and --eps")
    radius = eps if eps is not None else known.get("eps")
    if radius is None:
        raise OptionError("eps is missing: give the radius of the threat, such as --eps 8/255")
    own = known.get("norm") or "linf"
    if eps is None and norm is not None and norm != str(own).lower():
        raise OptionError(f"norm is '{norm}' and eps {radius} is the {own} radius of the training: give --eps as well")
    wanted = {"threat": {"norm": norm or own, "eps": radius}}
    threat: ThreatOptions = override({"threat": ThreatOptions()}, wanted, "the weights' threat")["threat"]
    return threat


def chosen_images(loaded: LoadedModel, source: Source, split_name: str, count: int | None) -> tuple[torch.Tensor, Split]:
    """Positions in a split (`test` or `validation`) of the images to use, and those images, seen to run through the model.

    Args:
        count: how many, drawn by a fixed seed; None for all.

    Raises:
        AalpError: the model does not fit the data.
    """
    classifier = loaded.classifier
    if classifier.num_classes != len(source.classes):
        raise AalpError(
            f"the model has {classifier.num_classes} classes and '{source.name}' has {len(source.classes)}: "
            "evaluate on the data that the model was trained for"
        )
    trained_on = tuple(loaded.metadata.get("image_shape", source.image_shape))
    if trained_on != source.image_shape:
        sizes = ["x".join(map(str, shape)) for shape in (trained_on, source.image_shape)]
        remedy = _brought_to(trained_on, source.image_shape)
        raise AalpError(f"the model takes images of {sizes[0]} and '{source.name}' has {sizes[1]}: {remedy}")
    indices, split = sampled(whole_split(source, split_name), count)
    verify_on(classifier, split, str(loaded.metadata.get("model", "given")), counts=(2, 1))  # few images may be left to attack
    return indices, split


def _brought_to(wanted: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What makes images of one shape those of another, (channels, height, width), where an option does."""
    channels = [] if wanted[0] == shape[0] else [f"--data_options.channels {wanted[0]}"]
    size = [] if wanted[1:] == shape[1:] else [f"--data_options.size {wanted[1]}"]
    able = (not channels or {wanted[0], shape[0]} == {1, 3}) and (not size or wanted[1] == wanted[2])
    return f"bring it to that with {' '.join(channels + size)}" if able else "use data of that size"


def whole_split(source: Source, split_name: str) -> Split:
    """The split `test` or `validation`.

    Raises:
        DataError: no image was held out for it.
    """
    split = source.test if split_name == "test" else source.validation
    if len(split) == 0:
        raise DataError(f"'{source.name}' has no {split_name} images: hold some out with --data_options.validation")
    return split


def sampled(split: Split, wanted: int | None) -> tuple[torch.Tensor, Split]:
    """Positions of the images used, and those: all, or a sample by a fixed seed, since stored orders are often by class."""
    if wanted is None or wanted >= len(split):
        return torch.arange(len(split)), split  # not a subset, which is a copy of images that are in memory
    generator = torch.Generator().manual_seed(derive_seed("test sample"))
    positions = torch.randperm(len(split), generator=generator)[:wanted].sort().values
    return positions, split.subset(positions)
