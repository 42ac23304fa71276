"""The nearest point of a hyperplane in the box, against pyautoattack's sorting projections and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pyautoattack import fab_projections
from torch import Tensor

from aalp.evaluation.hyperplane import shortest_change
from aalp.method.threat import L2, Linf, Threat

THEIRS: list[tuple[Threat, Callable[..., Tensor]]] = [
    (Linf(0.1), fab_projections.projection_linf),
    (L2(0.1), fab_projections.projection_l2),
]


@pytest.mark.parametrize(("threat", "theirs"), THEIRS, ids=["linf", "l2"])
@pytest.mark.parametrize("far", [0.01, 1.0, 10.0, 100.0], ids=lambda far: f"offset-{far}")
def test_it_is_the_projection_of_the_package(far: float, threat: Threat, theirs: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(40, 64, generator=generator) * 1.2 - 0.1).clamp(0, 1)  # some have no room on one side
    normals = torch.randn(40, 64, generator=generator)
    normals[:, :10] = 0
    offsets = (normals * points).sum(1) + far * torch.randn(40, generator=generator)
    change = shortest_change(points, normals, offsets, threat)
    torch.testing.assert_close(change, theirs(points, normals, offsets), rtol=0, atol=1e-4)
    assert bool(((points + change >= -1e-7) & (points + change <= 1 + 1e-7)).all())


def test_a_coordinate_without_room_leaves_the_rest_to_the_others() -> None:
    points, normals = torch.tensor([[0.9, 0.5]]), torch.tensor([[1.0, 2.0]])
    # The plane is 0.7 away in <normal, point>: 0.1 from the first and its room is used up, 2 * 0.3 from the second.
    linf = shortest_change(points, normals, torch.tensor([2.6]), Linf(0.1))
    torch.testing.assert_close(linf, torch.tensor([[0.1, 0.3]]))
    # In L2 they would move by t and 2t, with t + 4t = 0.7: the first by 0.14, for which there is no room either.
    l2 = shortest_change(points, normals, torch.tensor([2.6]), L2(0.1))
    torch.testing.assert_close(l2, torch.tensor([[0.1, 0.3]]))
    torch.testing.assert_close(shortest_change(points, normals, torch.tensor([2.4]), L2(0.1)), torch.tensor([[0.1, 0.2]]))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1)], ids=["linf", "l2"])
def test_a_plane_out_of_reach_and_a_normal_that_is_none(threat: Threat) -> None:
    points = torch.tensor([[0.2, 0.7], [0.2, 0.7], [0.2, 0.7]])
    normals = torch.tensor([[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]])
    change = shortest_change(points, normals, torch.tensor([9.0, 1.0, 1.0]), threat)
    torch.testing.assert_close(change[0], torch.tensor([0.8, -0.7]))
    assert change[1].tolist() == [0, 0]
    # What is not a number comes out as one that is not, and does not go on for ever.
    assert bool(change[2].isnan().any())


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1)], ids=["linf", "l2"])
def test_a_point_on_no_plane_at_all_stays_beside_one_that_moves(threat: Threat) -> None:
    points, normals = torch.tensor([[0.2, 0.7], [0.9, 0.5]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    change = shortest_change(points, normals, torch.tensor([0.0, 2.6]), threat)
    torch.testing.assert_close(change, torch.tensor([[0.0, 0.0], [0.1, 0.3]]))
