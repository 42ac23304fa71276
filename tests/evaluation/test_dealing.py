"""Evaluations and audits whose batches several processes share: the verdicts of one, image by image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import in_ranks

from aalp.distributed import ALONE, Ranks
from aalp.evaluation import audit as audit_module
from aalp.evaluation import robustness
from aalp.evaluation.audit import audit
from aalp.evaluation.bench import Effort
from aalp.evaluation.dealing import deal_batches
from aalp.evaluation.journal import Journal
from aalp.evaluation.robustness import evaluate
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier

SMALL = Effort(steps=4, restarts=1, restart_steps=2, adaptive_steps=2, noises=2, queries=3, stand_in_steps=2)
ATTACKS = ["pgd-3", "autoattack"]


class Killed(BaseException):
    """What a SIGKILL would do, without the process."""


def images_of(classifier: Classifier, count: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that it gets right, but for the last."""
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = classifier(images).argmax(1)
    labels[-1] = (labels[-1] + 1) % 3
    return images, labels


def evaluated(classifier: Classifier, ranks: Ranks = ALONE, **options: Any) -> list[Any]:
    found = evaluate(classifier, *images_of(classifier), Linf(0.02), ATTACKS, batch_size=3, ranks=ranks, **options)
    measures = {name: values.nan_to_num(-1).tolist() for name, values in found.measures.items()}
    standing = [(result.name, result.attacked, result.standing.tolist()) for result in (*found.results, *found.parts)]
    return [found.predictions.tolist(), found.broken_by.tolist(), standing, measures]


def audited(classifier: Classifier, ranks: Ranks = ALONE, **options: Any) -> list[Any]:
    found = audit(classifier, *images_of(classifier), Linf(0.02), effort=SMALL, batch_size=3, ranks=ranks, **options)
    return [found.line, found.robust, *((result.gate.name, result.finding) for result in found.gates)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    # Random parts, one of AutoAttack's own among them, which take no seconds.
    monkeypatch.setattr(robustness, "STANDARD", ("pgd-2", "apgd-ce", "cw-3"))
    monkeypatch.setattr(audit_module, "FEWEST_RIGHT", 1)


def test_several_processes_find_what_one_finds_and_only_the_main_one_keeps_it(
    small_classifier: Callable[..., Classifier], tmp_path: Path
) -> None:
    classifier = small_classifier(3)

    def work(ranks: Ranks) -> list[Any]:
        journals = [Journal(tmp_path / f"{kind}-{ranks.rank}") for kind in ("evaluation", "audit")]
        return [evaluated(classifier, ranks, journal=journals[0]), audited(classifier, ranks, journal=journals[1])]

    alone = [evaluated(classifier), audited(classifier)]
    assert in_ranks(3, work) == [alone] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit-0", "evaluation-0"]
    assert 0 < sum(alone[0][1]) < 10 * 5  # attacks did something


@pytest.mark.parametrize("kill_at", [1, 20])
def test_an_audit_that_was_killed_goes_on_with_the_same_findings_and_attacks_no_batch_twice(
    kill_at: int, small_classifier: Callable[..., Classifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, journal = small_classifier(3), Journal(tmp_path / "partial")
    from aalp.evaluation import bench

    run_attack, calls = bench.run_attack, [0]

    def counted(*arguments: Any) -> Any:
        if calls[0] == limit:
            raise Killed
        calls[0] += 1
        return run_attack(*arguments)

    monkeypatch.setattr(bench, "run_attack", counted)
    limit = -1
    undisturbed, whole = audited(classifier), calls[0]
    assert whole > 30
    limit, calls[0] = kill_at, 0
    with pytest.raises(Killed):
        audited(classifier, journal=journal)
    limit = -1
    assert audited(classifier, journal=journal) == undisturbed
    assert calls[0] == whole
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_batches_and_their_numbers_do_not_hang_on_the_ranks() -> None:
    """Rows 0, 2, 4, 6, 8 in twos, of which the second is known: the rest is dealt out and comes in order."""
    rows = torch.arange(0, 10, 2)
    kept: list[tuple[int, str]] = []
    ticks: list[tuple[str, int, int]] = []
    worked: list[int] = []

    def work(number: int, batch: torch.Tensor) -> str:
        worked.append(number)
        return f"{number}: {batch.tolist()}"

    found = list(
        deal_batches(
            *(rows, 2, "x", lambda *tick: ticks.append(tick), work),
            find=lambda number, batch: "known" if number == 1 else None,
            keep=lambda number, result: kept.append((number, result)),
        )
    )
    assert [(batch.tolist(), result) for batch, result in found] == [([0, 2], "0: [0, 2]"), ([4, 6], "known"), ([8], "2: [8]")]
    assert worked == [0, 2]
    assert kept == [(0, "0: [0, 2]"), (2, "2: [8]")]
    assert ticks == [("x", 0, 5), ("x", 2, 5), ("x", 4, 5), ("x", 5, 5)]
    assert list(deal_batches(rows[:0], 2, "x", lambda *tick: ticks.append(tick), work)) == []
