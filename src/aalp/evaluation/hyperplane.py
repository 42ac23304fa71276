"""The nearest point of a hyperplane inside the box [0, 1], in Linf and L2: what a step of FAB goes by.

Each coordinate goes towards the plane until its room in the box is used up, all at one speed (Linf) or at that of their
weights (L2). How far in all is one number a point, the root of a concave, piecewise linear function: Newton's method
meets it after a few passes, where sorting the coordinates, as pyautoattack does, takes longer than the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aalp.method.threat import Threat

FAR = 1e12
"""A length that uses up all room."""


@torch.no_grad()
def shortest_change(points: Tensor, normals: Tensor, offsets: Tensor, threat: Threat) -> Tensor:
    """The shortest changes (N, D) onto the planes <normal, point> = offset; as far as there is room where none is reached.

    Args:
        points: (N, D) in [0, 1].
        normals: (N, D).
        offsets: (N,).
    """
    distance = (normals * points).sum(1) - offsets
    # Towards the plane: against the normal where the point is above it.
    direction = torch.where(distance >= 0, -1.0, 1.0)[:, None] * normals
    room = torch.where(direction < 0, points, 1 - points)
    weights, distance = normals.abs(), distance.abs()
    speed = weights if threat.norm == "L2" else torch.ones((), device=points.device)
    gain, most = weights * speed, weights * room
    rest, rate, length = distance, gain.sum(1), torch.zeros_like(distance)
    least = torch.finfo(rate.dtype).tiny
    while True:
        # Where nothing is left to do and nothing to do it with, 0 / 0 would be no number.
        ahead = (rest / rate.clamp_min(least)).clamp_max(FAR)
        if not bool((ahead > length).any()):
            return direction.sign() * torch.minimum(length[:, None] * speed, room)
        length = torch.maximum(length, ahead)
        full = length[:, None] * speed >= room
        rest = distance - torch.where(full, most, 0).sum(1)
        rate = torch.where(full, 0, gain).sum(1)
