from __future__ import annotations

import gc
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from aalp import cli
from aalp.cli import VERBS, main, presets
from aalp.commands.config import to_plain
from aalp.commands.one_run import check
from aalp.errors import AalpError, DivergedError, InterruptedRunError
from aalp.parsing import build_parser


def parsed(verb: str, *words: str) -> dict[str, Any]:
    """What a verb is called with."""
    return cli.parse(verb, list(words))


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_verb_and_preset(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(name in out for name in (*VERBS, *presets()))


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aalp {metadata.version('aalp')}\n"


@pytest.mark.parametrize(
    "words",
    [["--version"], ["--help"], ["train", "--help"], ["compare", "--help-all"], ["completion", "words", "aalp train --"]],
)
def test_what_only_tells_something_loads_next_to_nothing(words: list[str]) -> None:
    code = (
        "import sys, aalp.cli; code = aalp.cli.main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'jsonargparse', 'rich', 'yaml', 'timm'} & set(sys.modules); "
        "print(sorted(heavy), code, len(sys.modules), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    heavy, ended, modules = process.stderr.rsplit(maxsplit=2)
    assert (heavy, ended) == ("[]", "0")
    assert int(modules) < 220, "a fifth of what torch alone would load is too many"


STAND_IN = """
import torch
from aalp.evaluation.black_box import train_stand_in
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier
classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)))
train_stand_in(classifier, torch.rand(4, 1, 4, 4), Linf(0.1), 0, 2)
"""
"""The one network that an audit trains."""


def test_a_verb_that_does_not_train_loads_nothing_of_training() -> None:
    verbs = ", ".join(f"aalp.commands.{verb}" for verb in ("evaluate", "audit", "analyze", "report", "export", "data"))
    code = f"import sys, {verbs}\n{STAND_IN}\nprint({{'lightning_fabric', 'torch._dynamo', 'scipy.stats'}} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "set()\n", process.stderr or "these take seconds to import"


def test_garbage_is_collected_again_after_the_options_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nothing"]) == 2
    assert main(["train", "--training.nonsense", "1"]) == 2
    assert gc.isenabled()


def test_bad_input_to_the_module_gives_its_exit_code_and_one_line() -> None:
    process = subprocess.run([sys.executable, "-m", "aalp", "evalute"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"aalp: unknown verb 'evalute': did you mean 'evaluate'? known are {', '.join(sorted(VERBS))}\n"


@pytest.mark.parametrize("verb", ["train", "compare"])
@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_parsed_and_makes_sense(name: str, verb: str) -> None:
    words = ["--config", name] + (["--run", "run"] if verb == "compare" else [])
    options = parsed(verb, *words)
    check({"objective": "aalp", **options})
    written = yaml.safe_load(presets()[name].read_text())
    assert written.keys() - options.keys() <= {"objective" if verb == "compare" else "objectives"}  # each for its own verb
    for key in written.keys() & options.keys():
        plain, value = to_plain(options)[key], written[key]
        assert plain == value if not isinstance(value, dict) else plain == {**plain, **value}


def test_the_mnist_preset_says_which_aalp_holds_there_and_words_say_otherwise() -> None:
    assert parsed("train", "--config", "mnist")["objective"] == "aalp-kl"
    assert parsed("train", "--config", "mnist", "--objective", "at")["objective"] == "at"
    assert parsed("compare", "--run", "run", "--config", "mnist")["objectives"].split(", ")[0] == "aalp-kl"
    assert parsed("search", "--run", "run", "--space", "{}", "--config", "mnist")["objective"] == "aalp-kl"


def test_training_without_words_is_the_digits_preset() -> None:
    assert parsed("train") == parsed("train", "--config", "digits")
    assert parsed("train")["data"] == "digits"
    assert parsed("train", "--seed", "3") == {**parsed("train", "--config", "digits"), "seed": 3}


def test_data_without_configuration_starts_from_the_documented_defaults() -> None:
    options = parsed("train", "--data", "npz:some.npz")
    defaults = {key: value for key, value in build_parser("train").get_defaults().as_dict().items() if key == "training"}
    assert to_plain(options)["training"]["epochs"] == defaults["training"]["epochs"]
    assert to_plain(options)["training"]["epochs"] != to_plain(parsed("train"))["training"]["epochs"]


MINE = "data: npz:mine.npz\ntraining: {epochs: 3, lr: 0.2}\nthreat: {eps: 4/255}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "mine.yaml", "--training.epochs", "5", "--seed", "2"],
        ["--training.epochs", "5", "--config", "mine.yaml", "--seed", "2"],
        ["--training.epochs", "5", "--seed", "2", "--config", "mine.yaml"],
        ["--seed=2", "--config=mine.yaml", "--training.epochs=5"],
        ["--training.epochs", "4", "--config", "mine.yaml", "--training.epochs", "5", "--seed", "2"],
    ],
)
@pytest.mark.parametrize("verb", ["train", "compare"])
def test_flags_override_the_configuration_wherever_they_stand(
    verb: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE)
    if verb == "compare":
        words = ["--run", "run", *(word.replace("seed", "seeds") for word in words)]
    options = parsed(verb, *words)
    assert options["data"] == "npz:mine.npz"
    assert (options["training"].epochs, options["training"].lr) == (5, 0.2)
    assert options["training"].batch_size == 128
    assert options["threat"].eps == "4/255"
    assert str(options["seed" if verb == "train" else "seeds"]) == "2"


@pytest.mark.parametrize("words", [["--config", "mnist", "--config", "mine.yaml"], ["--config=mnist", "--config=mine.yaml"]])
def test_a_configuration_overrides_those_before_it(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE)
    options, preset = parsed("train", *words), parsed("train", "--config", "mnist")
    assert (options["data"], options["training"].epochs, options["threat"].eps) == ("npz:mine.npz", 3, "4/255")
    assert (options["objective"], options["training"].clip) == (preset["objective"], preset["training"].clip) == ("aalp-kl", 4)
    swapped = parsed("train", *words[::-1]) if "=" in words[0] else parsed("train", *words[2:], *words[:2])
    assert (swapped["training"].epochs, swapped["threat"].eps) == (preset["training"].epochs, preset["threat"].eps)


def test_a_preset_wins_over_a_file_of_its_name_and_a_path_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text(MINE)
    assert parsed("train", "--config", "digits")["data"] == "digits"
    assert parsed("train", "--config", "./digits")["data"] == "npz:mine.npz"


@pytest.mark.parametrize("words", [["--quiet"], ["--quiet", "--seed", "1"], ["--quiet=true"], ["--quiet", "true"]])
def test_a_switch_needs_no_value_and_may_have_one(words: list[str]) -> None:
    assert parsed("train", *words)["quiet"] is True
    assert parsed("train")["quiet"] is False


@pytest.mark.parametrize("words", [["run", "--quiet"], ["--quiet", "run"], ["run", "--attacks", "fgsm", "--quiet"]])
def test_a_switch_does_not_take_the_path_for_its_value(words: list[str]) -> None:
    options = parsed("evaluate", *words)
    assert options["quiet"] is True
    assert options["path"] == Path("run")


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "RUN"],
        ["--resume=RUN"],
        ["--quiet=true", "--resume", "RUN"],
        ["--resume", "RUN", "--evaluate=true"],
        ["--resume", "RUN", "--evaluate", "--quiet"],
    ],
)
def test_resuming_takes_the_options_that_the_run_was_started_with(words: list[str], tiny_run: Path) -> None:
    options = parsed("train", *(word.replace("RUN", str(tiny_run)) for word in words))
    stored = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert to_plain({name: options[name] for name in stored}) == stored
    assert options["resume"] == tiny_run
    assert options["evaluate"] is any(word.startswith("--evaluate") for word in words)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AalpError("bad"), 2, "aalp: bad"),
        (DivergedError("nan"), 1, "aalp: nan"),
        (
            InterruptedRunError(2, "aalp train --resume r"),
            130,
            "aalp: stopped, and saved: continue with `aalp train --resume r`",
        ),
        (
            InterruptedRunError(15, "aalp train --resume r"),
            143,
            "aalp: stopped, and saved: continue with `aalp train --resume r`",
        ),
        (KeyboardInterrupt(), 130, "aalp: stopped"),
        (AalpError("bad\n  in two lines"), 2, "aalp: bad in two lines"),
    ],
)
def test_every_kind_of_end_has_its_exit_code_and_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "parse", lambda verb, words: {})
    monkeypatch.setattr(cli, "verb_function", lambda verb: fail)
    assert main(["train"]) == code
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (3, 3), (4, 4)])
def test_a_verb_may_say_its_exit_code(given: int | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "parse", lambda verb, words: {})
    monkeypatch.setattr(cli, "verb_function", lambda verb: lambda **options: given)
    assert main(["audit"]) == code


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "parse", lambda verb, words: {})
    monkeypatch.setattr(cli, "verb_function", lambda verb: fail)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


@pytest.mark.parametrize(
    "words",
    [
        ["one", "two", "--quiet"],
        ["--quiet", "one", "two"],
        ["--images", "7", "one", "two"],
        ["one", "two", "--weights", "last"],
    ],
)
def test_analyze_takes_several_runs_before_or_after_its_options(words: list[str]) -> None:
    options = parsed("analyze", *words)
    assert options["runs"] == [Path("one"), Path("two")]
    assert options["quiet"] is ("--quiet" in words)
    assert "--images" not in words or options["images"] == 7


def test_evaluate_takes_single_data_options() -> None:
    assert parsed("evaluate", "run", "--data_options.size", "16")["data_options"].size == 16
    assert parsed("evaluate", "run")["data_options"] is None


@pytest.mark.parametrize("verb", ["evaluate", "audit"])
def test_a_single_option_is_laid_over_the_other_ones_of_the_run(verb: str, copied_run: Path) -> None:
    file = copied_run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data_options"] |= {"split_seed": 5, "test_share": 0.5, "workers": 1}
    config["model_options"] |= {"head": "fc", "arguments": {"width": 6}, "init_from": "start.safetensors"}
    file.write_text(yaml.safe_dump(config))
    # A default is laid over the run's own like any other value, before or after the path.
    options = parsed(verb, "--data_options.workers", "2", str(copied_run), "--model_options.arguments.deep", "true")
    data, model = options["data_options"], options["model_options"]
    assert (data.split_seed, data.test_share, data.workers) == (5, 0.5, 2)
    assert (model.head, model.arguments) == ("fc", {"width": 6, "deep": True})
    assert model.init_from is None  # what the training started from is not asked for
    assert parsed(verb, str(copied_run), "--data_options.split_seed", "0")["data_options"].split_seed == 0
    assert parsed(verb, str(copied_run))["data_options"] is None


def test_a_second_ctrl_c_while_the_first_is_told_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", told)
    with pytest.raises(SystemExit) as left:
        cli.console()
    assert left.value.code == 130


def test_streams_that_are_closed_are_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `>&-` closes is None in Python, and printing a result ended in a traceback."""

    def told() -> int:
        sys.stdout.write("a result")
        sys.stderr.write("a warning")
        return 3

    monkeypatch.setattr(cli, "main", told)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as left:
        cli.console()
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    assert left.value.code == 3
