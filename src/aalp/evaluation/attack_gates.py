"""Gates on the paths of attacks: whether they had converged, and whether they passed over what they look for."""

from __future__ import annotations

import torch
from torch import Tensor

from aalp.evaluation.bench import Path
from aalp.evaluation.findings import Finding, share_finding
from aalp.evaluation.gates import CONVERGED, SILENT

LAST_STEPS = 10
"""Steps at the end of an attack over which its loss should not move any more."""


def converged_gate(paths: list[Path], longer: list[Path]) -> Finding:
    """How far the running-best loss of failed attacks still moves at the end, scaled to [0, 1] image by image.

    Args:
        paths: of the attack.
        longer: of the same with twice the steps, half as large: it counts where the attack itself still moves, since an
            honest loss with ridges in it lets constant steps settle late.
    """
    movement = _last_movement(paths)
    if len(movement) == 0:
        return Finding(0.0, True, "no attack failed")
    mean = float(movement.mean())
    if mean <= CONVERGED.limit:
        return Finding(mean, True, f"mean over {len(movement)} failed attacks")
    later = _last_movement(longer)
    again = float(later.mean()) if len(later) else 0.0
    return Finding(
        again, again <= CONVERGED.limit, f"mean over {len(later)} failed attacks of twice the steps, {mean:.2g} before"
    )


def _last_movement(paths: list[Path]) -> Tensor:
    moves = []
    for path in paths:
        failed = ~path.fooled.any(0)
        best = path.losses[:, failed].cummax(0).values
        window = min(LAST_STEPS, (len(best) - 1) // 2)
        whole = best[-1] - best[0]
        moves.append(torch.where(whole > 0, (best[-1] - best[-1 - window]) / whole.clamp_min(1e-30), 0.0))
    return torch.cat(moves)


def silent_gate(paths: list[Path], total: int) -> Finding:
    """How many images were misclassified on the attack's way and are right where it ends.

    Args:
        total: all images, attacked or not.
    """
    silent = sum(int((path.fooled.any(0) & ~path.fooled[-1]).sum()) for path in paths)
    return share_finding(silent, total, SILENT, "found and lost again")
