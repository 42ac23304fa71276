"""`--init-from`: start weights of runs, of our files and of other programs', and what is said of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from aalp.cli import main
from aalp.commands.fine_tuning import start_from
from aalp.commands.loading import load, load_weights
from aalp.errors import ModelError, RunError
from aalp.models.classifier import Classifier
from aalp.models.small_cnn import SmallCNN
from aalp.store.checkpoint import read_tensors, write_tensors

CLASSES = ("0", "1", "2")


@pytest.fixture
def fresh() -> Callable[..., Classifier]:
    """Makes a small-cnn on 8x8 grey images with start weights of another seed than the run's."""

    def make(classes: int = 3, **normalisation: object) -> Classifier:
        torch.manual_seed(99)
        return Classifier(SmallCNN(classes, (1, 8, 8)), **normalisation).eval()  # type: ignore[arg-type]

    return make


def test_a_run_gives_its_best_weights_with_the_normalisation_that_they_were_trained_with(tiny_run, fresh) -> None:
    told: list[str] = []
    classifier = fresh(mean=[0.1], std=[0.9])
    start_from(classifier, tiny_run, True, CLASSES, told.append)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(classifier(images), load(tiny_run)(images))
    assert told == [f"start weights from {tiny_run}/weights/best.safetensors, its head included"]
    kept = fresh(mean=[0.1], std=[0.9])
    start_from(kept, tiny_run, False, CLASSES, told.append)
    assert kept.mean.tolist() == pytest.approx([0.1])


def test_a_head_for_other_classes_is_replaced_and_said_so(tiny_run, fresh) -> None:
    told: list[str] = []
    classifier = fresh(classes=5, mean=[0.1], std=[0.9])
    before = classifier.head_weight.clone()
    start_from(classifier, tiny_run, True, ("a", "b", "c", "d", "e"), told.append)
    assert torch.equal(classifier.head_weight, before)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(classifier.features(images), load(tiny_run).features(images))
    assert told == [
        f"start weights from {tiny_run}/weights/best.safetensors: its head has 3 classes and the data has 5, "
        "so a fresh head takes its place"
    ]


@pytest.mark.parametrize(
    ("classes", "order", "said"),
    [
        (("2", "0", "1"), [2, 0, 1], "has the data's classes in another order: its logits are put in the data's"),
        (("a", "b", "c"), [0, 1, 2], "names other classes than the data ('0' where it has 'a')"),
    ],
)
def test_classes_of_other_names_or_order_are_said(classes, order, said, tiny_run, fresh) -> None:
    told: list[str] = []
    classifier = fresh(mean=[0.1], std=[0.9])
    start_from(classifier, tiny_run, True, classes, told.append)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(classifier(images), load(tiny_run)(images)[:, order])
    assert said in told[1]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "network."])
def test_a_state_dict_of_another_program_is_taken_whatever_it_puts_before_its_names(prefix, fresh, tmp_path) -> None:
    torch.manual_seed(1)
    theirs = SmallCNN(3, (1, 8, 8))
    state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    torch.save({"state_dict": state}, tmp_path / "theirs.pt")
    for name in ("theirs.safetensors", "theirs.pt"):
        classifier = fresh()
        start_from(classifier, tmp_path / name, True, CLASSES, lambda line: None)
        images = torch.rand(4, 1, 8, 8)
        assert torch.equal(classifier(images), theirs(images))


class Inside(nn.Module):
    """A network below a name that is also what wrappers put before names, beside buffers that are named as a Classifier's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
        self.register_buffer("mean", torch.rand(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return next(self.children())(images - self.mean)


@pytest.mark.parametrize("name", ["module", "network", "model"])
def test_a_network_s_own_names_are_taken_as_they_are(name) -> None:
    theirs, ours = Inside(name), Inside(name)
    load_weights(Classifier(ours), theirs.state_dict(), "w.pt")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(ours(images), theirs(images))


def test_an_average_by_torch_is_taken_without_its_count() -> None:
    theirs, ours = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2))
    load_weights(Classifier(ours), AveragedModel(theirs).state_dict(), "w.pt")
    assert torch.equal(ours[1].weight, theirs[1].weight)


def test_weights_that_do_not_fit_are_refused_by_name(fresh, tmp_path) -> None:
    state = SmallCNN(3, (1, 8, 8)).state_dict()
    save_file({name: value for name, value in state.items() if "convolutions.0" not in name}, tmp_path / "few.safetensors")
    save_file({**state, "more": torch.ones(2)}, tmp_path / "more.safetensors")
    save_file(SmallCNN(3, (1, 12, 12)).state_dict(), tmp_path / "large.safetensors")
    write_tensors(tmp_path / "state.safetensors", {"x": torch.ones(1)}, {"kind": "state"})
    for name, message in (
        ("few", r"they lack 'convolutions\.0\.weight'"),
        ("more", "they have 'more'"),
        ("large", r"do not fit the model: .*size mismatch.*; name their own --model, or read .* \(--data_options\.size, "),
        ("state", "they lack"),
    ):
        with pytest.raises(ModelError, match=message):
            start_from(fresh(), tmp_path / f"{name}.safetensors", True, CLASSES, lambda line: None)
    with pytest.raises(RunError, match="does not exist"):
        start_from(fresh(), tmp_path / "missing", True, CLASSES, lambda line: None)


def test_a_run_starts_from_weights_resumes_without_them_and_evaluates(
    tiny_run, train_words, tmp_path, tiny_arrays, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "start.safetensors"
    weights.write_bytes((tiny_run / "weights" / "best.safetensors").read_bytes())
    np.savez(tmp_path / "four.npz", **tiny_arrays(classes=4))
    run = tmp_path / "run"
    words = [word.replace(train_words[2], f"npz:{tmp_path / 'four.npz'}") for word in train_words]
    assert main([*words, "--run", str(run), "--init-from", str(weights), "--training.lr", "1e-9"]) == 0
    err = capfd.readouterr().err
    assert "its head has 3 classes and the data has 4, so a fresh head takes its place" in err
    tuned, start = load(run, "last"), load(tiny_run)
    images = torch.rand(4, 1, 8, 8)
    # At this learning rate the features are still those it started from.
    torch.testing.assert_close(tuned.features(images), start.features(images), atol=1e-3, rtol=1e-3)
    weights.unlink()
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--quiet"]) == 0


def test_a_training_state_gives_the_weights_that_it_would_go_on_with(tiny_run, fresh) -> None:
    state = sorted(tiny_run.glob("states/*"))[-1]
    classifier = fresh(mean=[0.1], std=[0.9])
    start_from(classifier, state, True, CLASSES, lambda line: None)
    tensors, _ = read_tensors(state)
    for name, value in classifier.state_dict().items():
        torch.testing.assert_close(value, tensors[f"model.{name}"])


def test_a_run_that_took_over_one_number_for_all_channels_is_resumed_with_it(image_folder, train_words, tmp_path) -> None:
    run, start = tmp_path / "run", Classifier(SmallCNN(2, (3, 8, 8)), mean=[0.25], std=[0.5])
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    words = [word.replace(train_words[2], f"folder:{image_folder}") for word in train_words]
    assert main([*words, "--run", str(run), "--init-from", str(tmp_path / "start.safetensors")]) == 0
    undisturbed = (run / "weights" / "last.safetensors").read_bytes()
    (run / "weights" / "last.safetensors").unlink()
    sorted(run.glob("states/*"))[-1].unlink()  # as if it had been killed in its second epoch
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    assert (run / "weights" / "last.safetensors").read_bytes() == undisturbed
    assert load(run).mean.tolist() == [0.25]


def test_a_run_killed_before_its_first_state_still_starts_from_the_weights(fresh, train_words, tmp_path) -> None:
    run, start = tmp_path / "run", fresh()
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    words = [*train_words, "--run", str(run), "--init-from", str(tmp_path / "start.safetensors"), "--training.lr", "1e-9"]
    assert main(words) == 0
    for path in (run / "metrics.csv", *run.glob("states/*"), *run.glob("weights/*")):
        path.unlink()
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    # At this learning rate the network is still the one it started from.
    torch.testing.assert_close(load(run, "last").head_weight, start.head_weight, atol=1e-5, rtol=0)


def test_start_weights_are_not_a_thing_to_judge(tiny_run, tiny_npz, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(tiny_run), "--init-from", str(tiny_run), "--attacks", "fgsm", "--data", f"npz:{tiny_npz}"]
    assert main(words) == 2
    assert "it starts a training; name weights to judge in its place" in capfd.readouterr().err
