from __future__ import annotations

import known_bad
import torch
from torch import Tensor, nn

from aalp.evaluation.audit import _larger_eps
from aalp.evaluation.bench import Bench, Effort
from aalp.evaluation.findings import Finding
from aalp.method.losses import cross_entropy
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier

EFFORT = Effort(steps=10)
IMAGES = torch.randint(0, 5, (64, 1, 6, 6), generator=torch.Generator().manual_seed(0)) / 4


def linear() -> Classifier:
    layer = nn.Linear(36, 4, bias=False)
    layer.weight.data = torch.randn(4, 36, generator=torch.Generator().manual_seed(1))
    layer.weight.data -= layer.weight.data.mean(1, keepdim=True)
    return Classifier(nn.Sequential(nn.Flatten(), layer)).eval()


def bench(classifier: Classifier, threat: Threat, labels: Tensor) -> Bench:
    return Bench(classifier, IMAGES, labels, threat, labels >= 0, EFFORT, 0, 64, lambda attack, done, total: None)


@torch.no_grad()
def larger_eps(classifier: Classifier) -> Finding:
    on = bench(classifier, Linf(0.04), linear()(IMAGES).argmax(1))
    return _larger_eps(on, on.run("pgd", on.pgd(cross_entropy), on.right))


def test_a_model_that_knows_the_corners_where_attacks_end_is_found_inside_the_ball() -> None:
    assert larger_eps(linear()).passed is True
    found = larger_eps(known_bad.knowing_corners(linear(), IMAGES, 0.04))
    assert found.passed is False
    assert found.detail.startswith("0.9 eps around points near the images -> eps")


def test_attacks_inside_the_ball_stay_in_it_and_off_its_surface() -> None:
    labels = torch.zeros(64, dtype=torch.int64)
    threats: tuple[Threat, ...] = (Linf(0.1), L2(0.5))
    for threat in threats:
        found = bench(linear(), threat, labels).inside(linear(), IMAGES, labels, threat, 0)
        assert bool(threat.contains(found, IMAGES).all())
        between = (found > 0) & (found < 1)
        assert float((found - IMAGES).abs()[between].mean()) > 0.03
        on_it = ((found - IMAGES).abs() - threat.eps).abs() < 1e-5
        assert int((on_it & between).sum()) <= 1
