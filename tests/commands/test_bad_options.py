"""Options that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import COMPARE, ON_TINY, SEARCH, Case, refused, yaml_file

BAD_OPTIONS: dict[str, Case] = {
    "unknown flag": (None, ON_TINY + "--training.epoch 3", ("--training.epoch:", "did you mean --training.epochs?")),
    "unknown flag with =": (None, ON_TINY + "--objektive=at", ("--objektive:", "did you mean --objective?")),
    "unknown flag like none": (None, ON_TINY + "--xyzzy 3", ("--xyzzy", "aalp train --help")),
    "unknown flag to evaluate": (None, "evaluate done --atacks fgsm", ("--atacks", "did you mean --attacks?")),
    "a word too many": (None, ON_TINY + "more", ("more", "--help")),
    "unknown option in YAML": (
        yaml_file("data: npz:tiny.npz\ntraining: {epoch: 3}"),
        "train --run run --config my.yaml",
        ("training.epoch:", "did you mean training.epochs?"),
    ),
    "unknown top option in YAML": (
        yaml_file("data: npz:tiny.npz\nmodle: small-cnn"),
        "train --run run --config my.yaml",
        ("modle:", "did you mean model?"),
    ),
    "a flag's name in YAML": (
        yaml_file("data: npz:tiny.npz\nmethod.dropout.fraction: 0.5"),
        "train --run run --config my.yaml",
        ("unknown option method.dropout.fraction: nest it, method: {dropout: {fraction: ...}}",),
    ),
    "ill-typed flag": (None, ON_TINY + "--training.epochs three", ("--training.epochs", "three", "--help")),
    "ill-typed choice": (None, ON_TINY + "--training.schedule cosine", ("--training.schedule", "cosine", "one-cycle")),
    "ill-typed option in YAML": (
        yaml_file("data: npz:tiny.npz\ntraining: {lr: fast}"),
        "train --run run --config my.yaml",
        ("training.lr", "fast", "--help"),
    ),
    "a list in YAML where a number goes": (
        yaml_file("data: npz:tiny.npz\nseed: [1, 2]"),
        "train --run run --config my.yaml",
        ("seed", "[1, 2]"),
    ),
    "null in YAML where a group of options goes": (
        yaml_file("data: npz:tiny.npz\nmethod: {dropout: null}"),
        "train --run run --config my.yaml",
        ("my.yaml", "method.dropout is null", "mapping"),
    ),
    "an option without value in YAML": (
        yaml_file("data: npz:tiny.npz\nmodel:\nseed: 1"),
        "train --run run --config my.yaml",
        ("my.yaml", "model is null", "leave it out"),
    ),
    "an option without value in a group in YAML": (
        yaml_file("data: npz:tiny.npz\nattack: {project: null, step_size: null}"),
        "train --run run --config my.yaml",
        ("my.yaml", "attack.project is null", "leave it out"),
    ),
    "an option without value in a variant": (
        yaml_file("data: npz:tiny.npz\nobjectives: at\nvariants: {bare: {objective: aalp, training: {lr: null}}}"),
        "compare --run run --config my.yaml",
        ("bare", "training.lr is null", "leave it out"),
    ),
    "a group twice in YAML": (
        yaml_file("data: npz:tiny.npz\ntraining: {epochs: 1}\nseed: 1\ntraining: {lr: 0.1}"),
        "train --run run --config my.yaml",
        ("my.yaml", "'training' is there twice", "line 4"),
    ),
    "null in a variant where a group of options goes": (
        yaml_file("data: npz:tiny.npz\nobjectives: at\nvariants: {bare: {objective: aalp, method: {dropout: null}}}"),
        "compare --run run --config my.yaml",
        ("bare", "method.dropout is null", "mapping"),
    ),
    "broken YAML": (yaml_file("data: [digits\nseed: 1"), "train --run run --config my.yaml", ("my.yaml",)),
    "YAML that is no mapping": (yaml_file("- data\n- digits"), "train --run run --config my.yaml", ("my.yaml",)),
    "YAML that is binary": (
        lambda folder: (folder / "my.yaml").write_bytes(b"\xff\xfe\x00\x93"),
        "train --run run --config my.yaml",
        ("my.yaml",),
    ),
    "flag without value": (None, ON_TINY + "--objective", ("objective", "expected one argument")),
    "evaluate without path": (None, "evaluate", ("path", "--help")),
    "no jobs to compare": (None, COMPARE + "--objectives at --jobs 0", ("jobs is 0", "at least 1")),
    "compare without run": (None, "compare --data npz:tiny.npz", ("run", "--help")),
    "eps of zero": (None, ON_TINY + "--threat.eps 0", ("eps is 0", "positive number", "8/255")),
    "eps below zero": (None, ON_TINY + "--threat.eps=-0.1", ("eps is -0.1", "positive number", "8/255")),
    "eps that is no number": (None, ON_TINY + "--threat.eps much", ("eps is 'much'", "8/255")),
    "eps of nan": (None, ON_TINY + "--threat.eps nan", ("eps is 'nan'", "8/255")),
    "eps over zero": (None, ON_TINY + "--threat.eps 8/0", ("eps is '8/0'", "8/255")),
    "infinite eps": (None, ON_TINY + "--threat.eps inf", ("eps is inf", "positive number")),
    "eps below zero to evaluate": (None, "evaluate done --attacks fgsm --eps=-1/255", ("eps is -0.0039", "positive")),
    "eps that is no number to evaluate": (None, "evaluate done --attacks fgsm --eps much", ("eps is 'much'", "8/255")),
    "unknown norm": (None, ON_TINY + "--threat.norm l1", ("norm", "l1", "linf")),
    "probability of one": (
        None,
        ON_TINY + "--method.dropout.probability 1",
        ("dropout probability is 1", "[0, 1)"),
    ),
    "probability of one in YAML": (
        yaml_file("data: npz:tiny.npz\nmethod: {dropout: {probability: 1.5}}"),
        "train --run run --config my.yaml",
        ("dropout probability is 1.5", "[0, 1)"),
    ),
    "unknown rule": (None, ON_TINY + "--method.weights.rule sure", ("rule", "sure", "confidence")),
    "a negative weight": (None, ON_TINY + "--method.pairing_weight=-1", ("pairing_weight is -1", "at least 0")),
    "a number of another objective": (
        None,
        ON_TINY + "--objective at --method.beta 6",
        ("method beta", "objective 'at'", "no numbers"),
    ),
    "a module of another objective": (
        None,
        ON_TINY + "--objective at --method.dropout.probability 0.3",
        ("dropout", "objective 'at'"),
    ),
    "no epochs": (None, ON_TINY + "--training.epochs 0", ("epochs is 0", "at least 1")),
    "an endless learning rate": (None, ON_TINY + "--training.lr inf", ("training.lr", "inf")),
    "an average that never moves": (None, ON_TINY + "--training.ema 1", ("ema is 1", "[0, 1)")),
    "milestones that fall": (
        None,
        ON_TINY + "--training.milestones [0.7,0.5]",
        ("milestones is [0.7, 0.5]", "rising"),
    ),
    "a start where the loss has no gradient": (
        None,
        ON_TINY + "--objective trades --attack.random_start 0",
        ("random_start is 0", "no gradient", "start at random"),
    ),
    "no attack steps": (None, ON_TINY.replace("--attack.steps 1", "--attack.steps 0"), ("steps is 0", "at least 1")),
    "no images to evaluate": (None, "evaluate done --attacks fgsm --images 0", ("images is 0", "at least 1")),
    "no batch to evaluate": (None, "evaluate done --attacks fgsm --batch_size 0", ("batch_size is 0", "at least 1")),
    "another norm without its radius": (
        None,
        "evaluate done --attacks fgsm --norm l2",
        ("norm is 'l2' and eps 0.1 is the linf radius of the training", "give --eps"),
    ),
    "another norm to audit without its radius": (None, "audit done --norm l2", ("norm is 'l2'", "give --eps")),
    "seeds that are no numbers": (None, COMPARE + "--objectives at --seeds 0,x", ("seeds is '0,x'", "0,1,2")),
    "no seeds": (None, COMPARE + "--objectives at --seeds=,", ("seeds is ','", "0,1,2")),
    "no objectives": (None, COMPARE + "--objectives=,", ("objectives", "at least one")),
    "a seed that is no number": (None, ON_TINY + "--seed one", ("seed", "one", "--help")),
    "an option that may be none": (None, ON_TINY + "--training.clip x", ("--training.clip is 'x': give a number;",)),
    "images that are no number": (None, "evaluate done --images ten", ("--images is 'ten': give a whole number;",)),
    "unknown tracker": (None, ON_TINY + "--tracker tape", ("--tracker is 'tape': choose tensorboard, wandb, mlflow",)),
    "a mean that is no row of numbers": (
        None,
        ON_TINY + "--model_options.mean [0.1,a]",
        ("--model_options.mean is '[0.1, 'a']': give numbers in brackets",),
    ),
    "a word where a group of options goes": (
        None,
        ON_TINY + "--method.dropout off",
        ("--method.dropout is 'off': it is a group of options, give --method.dropout.NAME",),
    ),
    "an option of a group that is the run's own": (
        None,
        "evaluate done --data_options.size big",
        ("--data_options.size is 'big': give a whole number;",),
    ),
    "an option out of range of a group that is the run's own": (
        None,
        "evaluate done --data_options.test_share 1",
        ("aalp: data test_share is 1.0: give a share above 0 and below 1",),
    ),
    "a choice of a group that is the run's own": (
        None,
        "evaluate done --data_options.resizing big",
        ("--data_options.resizing is 'big': choose stretch, crop",),
    ),
    "a word where the run's own group of options goes": (
        None,
        "evaluate done --data_options big",
        ("--data_options is 'big': it is a group of options, give --data_options.NAME",),
    ),
    "an unknown option of a group that is the run's own": (
        None,
        "evaluate done --data_options.sise 8",
        ("unknown option data_options.sise: did you mean data_options",),
    ),
    "a space that is no mapping": (None, SEARCH + "--space lr", ("--space is 'lr': give names with values",)),
    "variants that are no mapping": (None, COMPARE + "--variants 3", ("--variants is '3': give names with values",)),
    "a batch larger than the data": (
        None,
        ON_TINY.replace("batch_size 16", "batch_size 128"),
        ("65 images", "batch of 128", "--training.batch_size"),
    ),
    "a batch larger than the data to compare": (
        None,
        COMPARE.replace("batch_size 16", "batch_size 128") + "--objectives at",
        ("65 images", "batch of 128", "--training.batch_size"),
    ),
    "a mean for other channels": (
        None,
        ON_TINY + "--model_options.mean [0.5,0.5,0.5] --model_options.std [1,1,1]",
        ("3 channels", "(N, channels, height, width)"),
    ),
    "a deviation without mean": (None, ON_TINY + "--model_options.std [0.5]", ("std is (0.5,)", "give both")),
    "a deviation of 0": (
        None,
        ON_TINY + "--model_options.mean [0] --model_options.std [0]",
        ("std is [0.0]", "positive"),
    ),
    "a search of nothing": (None, SEARCH, ("space is empty", "training.lr")),
    "a search of the seed": (None, SEARCH + '--space {"seed":[0,9]}', ("space has seed", "luckiest")),
    "a search of the threat": (None, SEARCH + '--space {"threat.eps":[0.1,0.2]}', ("space has threat.eps", "weakest")),
    "a search of an unknown option": (None, SEARCH + '--space {"training.lrr":[0.1,0.2]}', ("space", "lrr")),
    "a search of an unknown group": (
        None,
        SEARCH + '--space {"trainning.lr":[0.1,0.2]}',
        ("'trainning.lr'", "known are attack"),
    ),
    "a search range that falls": (None, SEARCH + '--space {"training.lr":[0.2,0.1]}', ("training.lr", "LOW < HIGH")),
    "a search range from 0 in logarithms": (None, SEARCH + '--space {"training.lr":[0,0.1,"log"]}', ("training.lr", "LOW > 0")),
    "a search over a bad value": (
        None,
        SEARCH + '--space {"training.lr":[-1,0.1]}',
        ("training lr is -1", "positive"),
    ),
    "a search over a number that the objective lacks": (
        None,
        SEARCH + '--objective at --space {"method.pairing_weight":[0.1,1]}',
        ("pairing_weight does not apply to objective 'at'",),
    ),
    "a search without trials": (None, SEARCH + '--space {"training.lr":[0.1,0.2]} --trials 0', ("trials is 0", "at least 1")),
    "a search where something else is": (
        None,
        SEARCH.replace("--run run", "--run done") + '--space {"training.lr":[0.1,0.2]}',
        ("'done' was begun with another", "choose another --run"),
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_get_one_line_and_change_nothing(case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, folder, capfd)
