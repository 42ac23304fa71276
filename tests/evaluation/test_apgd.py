from __future__ import annotations

import pytest
import torch

from aalp.evaluation.apgd import targeted_dlr

LABEL, LEAST = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_the_targeted_loss_rises_while_the_label_leads_and_the_target_comes_last(classes: int) -> None:
    others = [0.5] * (classes - 2)
    far, near = (torch.tensor([[label, target, *others]]) for label, target in ((2.0, 0.0), (1.0, 0.4)))
    assert targeted_dlr(near, LABEL, LEAST) > targeted_dlr(far, LABEL, LEAST) + 0.01


def test_the_targeted_loss_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    assert targeted_dlr(logits, LABEL, LEAST).item() == pytest.approx((1 - 3) / (3 - 0.5 * (1 + 0)))
    assert targeted_dlr(logits[:, :3], LABEL, LEAST).item() == -2
