"""How a training run is spread over devices, on Lightning Fabric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from aalp.distributed import TIMEOUT, Ranks
from aalp.errors import OptionError, RunError
from aalp.method.pgd import evaluating
from aalp.method.precision import multiplies_bfloat16
from aalp.models.classifier import Classifier
from aalp.models.copies import forget
from aalp.store.run import RunDirectory

Strategy = Literal["ddp", "fsdp"]
"""What ranks that train together share: gradients alone, or the weights and all that belongs to them."""


def make_fabric(
    ranks: Ranks,
    precision: Any,
    loggers: Sequence[Any],
    classifier: Classifier,
    image_shape: tuple[int, int, int],
    strategy: Strategy,
) -> Fabric:
    """Fabric on this process's device, launched; with several ranks and ddp it shares gradients among them.

    With fsdp that is the affair of `sharded_weights`: Fabric's own runs on GPUs only, see docs/decisions/0008.
    """
    # It says on stderr which precision it uses, also where the user wants quiet; `aalp train` says so itself.
    logging.getLogger("lightning_fabric.utilities.rank_zero").addFilter(_is_warning)
    if ranks.size == 1:
        fabric = Fabric(accelerator="auto", devices=1, precision=precision, loggers=list(loggers))
    elif strategy == "fsdp":
        fabric = Fabric(
            accelerator="auto",
            devices=[ranks.local_rank] if torch.cuda.is_available() else 1,
            precision=precision,
            loggers=list(loggers),
            plugins=TorchElasticEnvironment(),
        )
    else:
        fabric = Fabric(
            accelerator="auto",
            devices=ranks.local_size,
            num_nodes=ranks.size // ranks.local_size,
            strategy=DDPStrategy(timeout=TIMEOUT, find_unused_parameters=has_unused(classifier, image_shape)),
            precision=precision,
            loggers=list(loggers),
            plugins=[TorchElasticEnvironment()],
        )
    fabric.launch()
    return fabric


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def resolve_precision(precision: str) -> Any:
    """What `auto` means on this machine: bf16 only where the hardware multiplies it, since emulation is many times slower."""
    if precision != "auto":
        return precision
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16-mixed" if multiplies_bfloat16(device) else "32-true"


def has_unused(classifier: Classifier, image_shape: tuple[int, int, int]) -> bool:
    """Whether the logits leave out some of the trained weights, whose gradients nobody must wait for then."""
    return len(used(classifier, image_shape)) < sum(parameter.requires_grad for parameter in classifier.parameters())


def used(classifier: Classifier, image_shape: tuple[int, int, int]) -> list[str]:
    """The names of the trained weights that the logits are made of; all others never get a gradient."""
    trained = {name: parameter for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    with evaluating(classifier):
        images = classifier.head_weight.new_zeros(2, *image_shape)
        gradients = torch.autograd.grad(classifier(images).sum(), list(trained.values()), allow_unused=True)
        forget(classifier, images)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None]


def check_shares(batch_size: int, ranks: Ranks) -> None:
    """Refuse a batch of which some rank would get nothing.

    Raises:
        OptionError: there are more ranks than images in it.
    """
    if batch_size < ranks.size:
        raise OptionError(
            f"training batch_size is {batch_size} and {ranks.size} processes share each batch: give at least one image to each"
        )


def check_same_step(run: RunDirectory, step: int, ranks: Ranks) -> None:
    """Refuse to go on from different states. Together.

    Raises:
        RunError: a rank found another state than the others, as where machines do not share their disks.
    """
    last, first = ranks.largest(step, -step)
    if last != -first:
        raise RunError(
            f"'{run.path}' is at step {last} on one machine and at step {-first} on another: every machine has to see the same "
            "folder"
        )


def norm_buffers(module: nn.Module) -> list[Tensor]:
    """What the layers of a module that normalise by statistics (BatchNorm, InstanceNorm) keep of the batches so far."""
    return [buffer for layer in module.modules() if isinstance(layer, _NormBase) for buffer in layer.buffers(recurse=False)]


def batch_statistics(module: nn.Module) -> list[Tensor]:
    """Their running means and variances alone."""
    return [buffer for buffer in norm_buffers(module) if buffer.is_floating_point()]
