from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aalp.errors import RunError
from aalp.evaluation import robustness
from aalp.evaluation.journal import AttackedBatch, Journal
from aalp.evaluation.outcome import Evaluation
from aalp.evaluation.robustness import evaluate
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier

ATTACKS = ["fgsm", "pgd-3", "cw-5", "autoattack"]


class Killed(BaseException):
    """What a SIGKILL would do, without the process."""


@pytest.fixture
def judged(small_classifier: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Evaluation]:
    """Evaluates an untrained network on nine images that it gets right, three at a time."""
    # Parts that take three steps, one of which also runs alone.
    monkeypatch.setattr(robustness, "STANDARD", ("pgd-3", "cw-3"))
    classifier = small_classifier(3)
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = classifier(images).argmax(1)

    def judge(attacks: list[str] = ATTACKS, **options: Any) -> Evaluation:
        return evaluate(classifier, images, labels, Linf(0.02), attacks, batch_size=3, **options)

    return judge


def verdicts(evaluation: Evaluation) -> list[Any]:
    results = [*evaluation.results, *evaluation.parts]
    measures = {name: values.tolist() for name, values in evaluation.measures.items() if not values.isnan().any()}
    return [
        *((result.name, result.attacked, result.standing.tolist()) for result in results),
        *(evaluation.broken_by.tolist(), evaluation.names, evaluation.measured_on, measures),
    ]


def attacked(monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> list[str]:
    """The batches that are really attacked, by the attack's name; killed at that one, if any."""
    calls: list[str] = []
    run_attack = robustness.run_attack

    def counted(attack: Any, *arguments: Any) -> Any:
        if len(calls) == kill_at:
            raise Killed
        calls.append(attack.name)
        return run_attack(attack, *arguments)

    monkeypatch.setattr(robustness, "run_attack", counted)
    return calls


@pytest.mark.parametrize("kill_at", [0, 1, 4, 8, 10])
def test_an_evaluation_that_was_killed_goes_on_with_the_same_verdicts_and_attacks_no_batch_twice(
    kill_at: int, judged: Callable[..., Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / ".partial")
    with monkeypatch.context() as patched:
        whole = attacked(patched)
        undisturbed = judged()
    with monkeypatch.context() as patched:
        first = attacked(patched, kill_at)
        with pytest.raises(Killed):
            judged(journal=journal)
    with monkeypatch.context() as patched:
        second = attacked(patched)
        resumed = judged(journal=journal)
    assert verdicts(resumed) == verdicts(undisturbed)
    assert len(first) == kill_at
    assert first + second == whole
    assert len(whole) > 10
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_batch_is_attacked_again(
    judged: Callable[..., Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "partial")
    undisturbed = judged(["pgd-3"], journal=journal)
    files = sorted(journal.folder.iterdir())
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].write_bytes(b"")
    calls = attacked(monkeypatch)
    assert verdicts(judged(["pgd-3"], journal=journal)) == verdicts(undisturbed)
    assert calls == ["pgd-3"] * 2


BATCH = AttackedBatch(torch.tensor([3, 5]), torch.tensor([True, False]), {"n90": torch.tensor([1.0, 2.0])}, 0.5)


def test_a_batch_comes_back_for_its_own_images_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "partial")
    assert journal.read("01-fgsm", 0, BATCH.rows) is None
    journal.write("01-fgsm", 0, BATCH)
    read = journal.read("01-fgsm", 0, BATCH.rows)
    assert read is not None
    assert torch.equal(read.fooled, BATCH.fooled)
    assert torch.equal(read.measures["n90"], BATCH.measures["n90"])
    assert read.seconds == 0.5
    assert journal.read("01-fgsm", 0, torch.tensor([3, 6])) is None
    assert journal.read("01-fgsm", 1, BATCH.rows) is None
    assert journal.read("02-fgsm", 0, BATCH.rows) is None


def test_what_is_not_of_the_journal_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "partial")
    journal.write("01-fgsm", 0, BATCH)
    (journal.folder / "notes.txt").write_text("mine")
    journal.remove()
    assert [path.name for path in journal.folder.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_to_ends_the_evaluation_at_its_first_batch(
    judged: Callable[..., Evaluation], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not be written: Not a directory; free space or choose another folder"):
        judged(journal=Journal(tmp_path / "file" / "partial"))
