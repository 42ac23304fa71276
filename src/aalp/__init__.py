"""Adaptive Adversarial Logits Pairing and its baselines: train robust image classifiers, and prove that they are."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aalp.commands.loading import load
    from aalp.errors import AalpError
    from aalp.evaluation.audit import audit
    from aalp.evaluation.outcome import Evaluation
    from aalp.evaluation.robustness import evaluate
    from aalp.evaluation.verdict import Audit
    from aalp.method.aalp import AALP
    from aalp.method.guided_dropout import GuidedDropout
    from aalp.method.objective_base import LossParts, Objective
    from aalp.method.objectives import ALP, AT, CLP, MART, TRADES, Standard
    from aalp.method.pgd import perturb
    from aalp.method.sample_weights import SampleWeights
    from aalp.method.threat import L2, Linf, Threat
    from aalp.models.classifier import Classifier

__all__ = [
    "AALP",
    "ALP",
    "AT",
    "CLP",
    "L2",
    "MART",
    "TRADES",
    "AalpError",
    "Audit",
    "Classifier",
    "Evaluation",
    "GuidedDropout",
    "Linf",
    "LossParts",
    "Objective",
    "SampleWeights",
    "Standard",
    "Threat",
    "audit",
    "evaluate",
    "load",
    "perturb",
]

_HOMES = {
    "aalp.commands.loading": ("load",),
    "aalp.errors": ("AalpError",),
    "aalp.evaluation.audit": ("audit",),
    "aalp.evaluation.outcome": ("Evaluation",),
    "aalp.evaluation.robustness": ("evaluate",),
    "aalp.evaluation.verdict": ("Audit",),
    "aalp.method.guided_dropout": ("GuidedDropout",),
    "aalp.method.aalp": ("AALP",),
    "aalp.method.objective_base": ("LossParts", "Objective"),
    "aalp.method.objectives": ("ALP", "AT", "CLP", "MART", "TRADES", "Standard"),
    "aalp.method.pgd": ("perturb",),
    "aalp.method.sample_weights": ("SampleWeights",),
    "aalp.method.threat": ("L2", "Linf", "Threat"),
    "aalp.models.classifier": ("Classifier",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch takes seconds, and `aalp --help` does not need it."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module 'aalp' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, those that are not imported yet too, for completion."""
    return sorted(__all__)
