"""Honest models pass the audit; each known-bad model fails exactly the gates that are made for it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import known_bad
import pytest
import torch
from known_bad_cases import AT_THE_LIMIT, EFFORT, FEWER_STEPS, KNOWN_BAD
from torch import Tensor

import aalp
from aalp.commands.tables import markdown_table
from aalp.data.sources import DataOptions, load_source
from aalp.data.split import as_float
from aalp.errors import DataError, OptionError
from aalp.evaluation.audit import audit
from aalp.evaluation.autoattack_gap import DropUnderAutoAttack
from aalp.evaluation.bench import QUICK
from aalp.evaluation.findings import FEWEST_RIGHT
from aalp.evaluation.first_gates import cheap_gates
from aalp.evaluation.gates import AUTOATTACK_GAP, DETERMINISTIC, GATES
from aalp.evaluation.verdict import Audit
from aalp.method.threat import L2, Linf
from aalp.models.classifier import Classifier

TABLE = Path(__file__).parents[2] / "docs" / "audit-known-bad.md"
REGENERATE = "AALP_REGENERATE_DOCS"

Digits = tuple[Tensor, Tensor]
Runs = Callable[[str], Classifier]

HONEST = ("at", "trades", "aalp")


@pytest.fixture(scope="module")
def digits() -> Digits:
    test = load_source("digits", DataOptions()).test
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[:80]
    return as_float(test.read(rows)), test.labels[rows]


@pytest.fixture(scope="module")
def audited(trained: Runs, digits: Digits) -> Callable[[str], Audit]:
    """The audit of an honest or a known-bad model by name, made once."""
    done: dict[str, Audit] = {}

    def get(name: str) -> Audit:
        if name not in done:
            run, alter, effort, _ = KNOWN_BAD.get(name, (name, lambda run, _: run, EFFORT, set()))
            torch.manual_seed(0)
            done[name] = audit(alter(trained(run), digits[0]), *digits, Linf(0.2), effort=effort)
        return done[name]

    return get


def failed(found: Audit) -> set[str]:
    return {result.gate.name for result in found.gates if result.passed is False}


def seen(found: Audit) -> str:
    return "\n".join(
        f"{r.gate.name}: {r.passed} {r.finding.measured} / {r.gate.limit}: {r.finding.detail}" for r in found.gates
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_honestly_trained_models_pass_every_gate(name: str, audited: Callable[[str], Audit]) -> None:
    found = audited(name)
    assert found.verdict == "pass", seen(found)
    assert found.is_robust
    assert [result.gate for result in found.gates] == list(GATES)
    assert [result.gate for result in found.gates if not result.passed] == [AUTOATTACK_GAP]
    assert found.line.startswith("PASS")
    assert "not robust" not in found.line


def test_a_clean_trained_model_is_not_robust_but_not_masked(audited: Callable[[str], Audit]) -> None:
    found = audited("standard")
    assert found.verdict == "pass", seen(found)
    assert found.clean > 0.9
    assert found.is_robust is False
    assert "not robust" in found.line


@pytest.mark.parametrize(("name", "passed"), [("standard", True), ("at", False)])
def test_the_gap_to_autoattack_of_a_model_that_claims_nothing_is_no_mask(
    name: str, passed: bool, trained: Runs, digits: Digits
) -> None:
    own, reference = DropUnderAutoAttack(0.25, 0.0, 200), DropUnderAutoAttack(0.775, 0.73, 200)
    found = audit(trained(name), *digits, Linf(0.2), effort=FEWER_STEPS, own=own, reference=reference)
    gap = found.gates[-1]
    assert gap.gate is AUTOATTACK_GAP
    assert gap.passed is passed
    assert gap.finding.measured > AUTOATTACK_GAP.limit


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN_BAD)
def test_a_known_bad_model_fails_exactly_the_gates_made_for_it(name: str, audited: Callable[[str], Audit]) -> None:
    found = audited(name)
    assert failed(found) - AT_THE_LIMIT.get(name, set()) == KNOWN_BAD[name][3], seen(found)
    assert found.verdict == "fail"
    assert found.line.startswith("FAIL")


def test_every_gate_has_a_known_bad_model() -> None:
    caught = set().union(*(gates for *_, gates in KNOWN_BAD.values()))
    assert caught | {AUTOATTACK_GAP.name} == {gate.name for gate in GATES}


def cell(gate: str, name: str, fails: set[str]) -> str:
    if gate in AT_THE_LIMIT.get(name, ()):
        return "~"
    return "FAIL" if gate in fails else ""


@pytest.mark.slow
def test_the_table_in_the_documentation_is_what_the_models_come_out_as(audited: Callable[[str], Audit]) -> None:
    names = [*HONEST, "standard", *KNOWN_BAD]
    found = [failed(audited(name)) for name in names]
    rows = []
    for gate in GATES:
        if gate is not AUTOATTACK_GAP:
            rows.append([gate.name, *(cell(gate.name, name, fails) for name, fails in zip(names, found, strict=True))])
    rows.append(["verdict", *(audited(name).verdict for name in names)])
    text = (
        "# Known-bad models against the audit's gates\n\n"
        "Made by tests/evaluation/test_audit.py, which fails when it is stale; to make it anew:\n"
        f"`{REGENERATE}=1 python -m pytest tests/evaluation/test_audit.py`. at, trades and aalp are trained honestly and\n"
        "standard without attacks, all on digits. The other models are these, altered (tests/evaluation/known_bad.py), or\n"
        "audited with an attack that is made weak. Empty: the gate did not fail; ~: so near the\n"
        "limit that a single image decides.\n\n" + markdown_table(["gate", *names], rows) + "\n"
    )
    if os.environ.get(REGENERATE):
        TABLE.write_text(text)
    assert TABLE.read_text() == text, f"docs/{TABLE.name} is stale: run this test with {REGENERATE}=1"


def test_without_a_reference_the_gap_is_not_run_and_the_verdict_stands(audited: Callable[[str], Audit]) -> None:
    last = audited("at").gates[-1]
    assert (last.gate, last.passed, last.finding.measured) == (AUTOATTACK_GAP, None, None)
    assert audited("at").verdict == "pass"


def test_too_few_right_images_leave_the_verdict_open(trained: Runs, digits: Digits) -> None:
    images, labels = digits[0], (digits[1] + 1) % 10  # every answer is wrong now
    found = audit(trained("at"), images, labels, Linf(0.2), effort=EFFORT)
    assert found.verdict == "inconclusive"
    assert found.robust is None
    assert found.line.startswith("INCONCLUSIVE")
    assert str(FEWEST_RIGHT) in found.gates[-2].finding.detail


def test_outputs_that_are_not_finite_fail_and_nothing_else_is_tried(small_classifier: Callable[..., Classifier]) -> None:
    classifier = small_classifier(3)
    classifier.linear.bias.data[1] = float("nan")
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = audit(classifier, images, torch.zeros(40, dtype=torch.int64), Linf(0.1))
    assert failed(found) == {"output is logits"}
    assert found.verdict == "fail"
    assert all(result.passed is None for result in found.gates[1:])
    assert all(result.record()["measured"] is None for result in found.gates[1:])


def test_cheap_gates_are_the_three_without_an_attack(trained: Runs, digits: Digits) -> None:
    results = cheap_gates(trained("at"), *digits, Linf(0.2))
    assert [(result.gate.name, result.passed) for result in results] == [
        ("output is logits", True),
        ("deterministic", True),
        ("gradient exists", True),
    ]
    bad = cheap_gates(known_bad.noisy(trained("at")), *digits, Linf(0.2))
    assert [result.gate for result in bad if result.passed is False] == [DETERMINISTIC]


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_the_gates_on_the_model_see_enough_images_in_any_batch(
    batch_size: int, small_classifier: Callable[..., Classifier]
) -> None:
    classifier = known_bad.quantised_input(small_classifier(3))
    images = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = (classifier(images).argmax(1) + 1) % 3  # all wrong, so that nothing is attacked
    found = audit(classifier, images, labels, Linf(0.02), batch_size=batch_size)
    assert failed(found) == {"gradient exists"}
    assert found.gates[2].finding.detail.endswith(f" of {min(90, max(batch_size, 64))} images")


def test_the_same_seed_gives_the_same_audit_and_the_mode_is_given_back(trained: Runs, digits: Digits) -> None:
    classifier = trained("at").train()
    small = dataclasses.replace(EFFORT, steps=20, restarts=2, queries=20, stand_in_steps=5)
    some = digits[0][:40], digits[1][:40]
    one, other = (audit(classifier, *some, Linf(0.2), effort=small, seed=3) for _ in range(2))
    assert classifier.training
    classifier.eval()
    assert [r.finding for r in one.gates] == [r.finding for r in other.gates]
    # Batches attack with other random starts, but every image is attacked.
    batched = audit(classifier, *some, Linf(0.2), effort=small, batch_size=16)
    assert batched.clean == one.clean
    assert abs((batched.robust or 0) - (one.robust or 0)) <= 0.1


def test_l2_and_the_public_name_work(trained: Runs, digits: Digits) -> None:
    assert aalp.audit is audit
    small = dataclasses.replace(EFFORT, steps=20, restarts=1, queries=20, stand_in_steps=5)
    found = aalp.audit(trained("at"), digits[0][:50], digits[1][:50], L2(0.5), effort=small)
    results = {result.gate.name: result.passed for result in found.gates}
    assert results["unbounded attack wins"] is True
    assert results["gradient exists"] is True
    assert 0 < (found.robust or 0) <= found.clean


def test_an_audit_under_inference_mode_is_the_same(trained: Runs, digits: Digits) -> None:
    small = dataclasses.replace(EFFORT, steps=5, restarts=1, queries=20, stand_in_steps=5, adaptive_steps=5)
    classifier, images, labels = trained("at"), digits[0][:40], digits[1][:40]
    outside = audit(classifier, images, labels, Linf(0.2), effort=small)
    with torch.inference_mode():
        inside = audit(classifier, images.clone(), labels.clone(), Linf(0.2), effort=small)
    assert [result.finding for result in inside.gates] == [result.finding for result in outside.gates]


def test_bad_arguments_are_named(trained: Runs, digits: Digits) -> None:
    classifier = trained("at")
    with pytest.raises(OptionError, match="threat is missing"):
        audit(classifier, *digits)
    with pytest.raises(OptionError, match=r"threat is 0\.2: give one"):
        audit(classifier, *digits, 0.2)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="batch_size is 0"):
        audit(classifier, *digits, Linf(0.2), batch_size=0)
    with pytest.raises(DataError):
        audit(classifier, digits[0] * 255, digits[1], Linf(0.2))


def test_the_default_effort_is_what_the_rules_name() -> None:
    rules = {gate.name: gate.rule for gate in GATES}
    assert f"{QUICK.restarts} restarts" in rules["more restarts"]
    assert f"{QUICK.noises} random points" in rules["white box beats random noise"]
