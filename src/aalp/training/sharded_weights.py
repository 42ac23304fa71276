"""Weights of which each rank keeps a share (`--strategy fsdp`), whole only while a network runs.

Fully sharded data parallelism of the kind that keeps the weights from the first forward pass of a step to its backward
one (ZeRO, arXiv 1910.02054; SHARD_GRAD_OP in FSDP, arXiv 2304.11277). An attack runs the same weights forth and back
many times, so they are fetched once a step, and the gradients sent once: what travels is what DDP sends. Gradients,
momentum and average are never whole. See docs/decisions/0008.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from aalp.distributed import ALONE, Ranks

BUCKET = 2**23
"""Numbers that travel at once (32 MB in float32): as much of the gradients is whole at a time, or one large parameter."""

ALIGNMENT = 64
"""Numbers to a multiple of which a parameter's place in its bucket is rounded up: kernels are fast on aligned memory."""


class Weights:
    """A module's parameters, of which some are shared out to the ranks: each keeps 1 / size of the numbers.

    Between steps a shared parameter has its shape and nothing in it but NaN, so that whoever uses it notices.

    Args:
        module: the same on every rank; its parameters and buffers are brought to `device`.
        device: where the shares lie; by default where the parameters are.
        ranks: who shares them.
        shared: names of the parameters to share out; with none, every rank keeps all, and nothing here is sent.
        bucket: numbers that travel at once.

    Attributes:
        parameters: what an optimizer moves: this rank's shares, and the parameters that it keeps whole.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | None = None,
        ranks: Ranks = ALONE,
        shared: Collection[str] = (),
        bucket: int = BUCKET,
    ) -> None:
        self.module, self.ranks = module, ranks
        named = {name: parameter for name, parameter in module.named_parameters() if name in set(shared)}
        self._buckets = [_Bucket(part, device, ranks) for part in _parts(named, bucket)]
        if device is not None:
            module.to(device)
        self.parameters = [each.share for each in self._buckets]
        self._kept = [parameter for name, parameter in module.named_parameters() if name not in named]
        self.parameters += self._kept
        self._shared = set(named)
        # Sent from the last to the first, on every rank alike, however its backward pass comes by them.
        self._to_send = list(self._buckets)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, each, number))  # type: ignore[no-untyped-call]
            for each in self._buckets
            for number, parameter in enumerate(each.parameters)
            if parameter.requires_grad
        ]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every parameter whole inside the block. Together."""
        if not self._buckets:
            yield
            return
        try:
            for each in self._buckets:
                each.fill(each.gathered(each.share))
            yield
        finally:
            for each in self._buckets:
                each.clear()

    def give_back(self) -> None:
        """Every parameter whole for good; the shares are of no more use. Together."""
        for each in self._buckets:
            each.fill(each.gathered(each.share))
        for hook in self._hooks:
            hook.remove()

    def collect(self) -> None:
        """Send what is left of the gradients after a backward pass; shared parameters without one get zeros. Together."""
        while self._to_send:
            self._to_send.pop().send_gradients()
        self._to_send = list(self._buckets)
        if self._buckets and self._kept:
            # Whole parameters that got one on some rank after all, as in a branch that is taken in training only.
            found = self.ranks.largest(*(int(parameter.grad is not None) for parameter in self._kept))
            used = [parameter for parameter, anywhere in zip(self._kept, found, strict=True) if anywhere]
            for parameter in used:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.ranks.average([parameter.grad for parameter in used if parameter.grad is not None])

    def clip(self, longest: float) -> None:
        """Scale the gradients of all parameters down to a norm of `longest`, if theirs is larger. Together."""
        shares = {id(each.share) for each in self._buckets}
        of_shares, of_kept = (
            get_total_norm([each.grad for each in self.parameters if each.grad is not None and (id(each) in shares) is split])
            for split in (True, False)
        )
        norm = of_kept
        if self._buckets:
            square = of_shares.double().square()
            dist.all_reduce(square)
            # What every rank has whole counts once.
            norm = (square + of_kept.double().square()).sqrt().to(of_shares.dtype)
        clip_grads_with_norm_(self.parameters, longest, norm)

    def values(self) -> list[Tensor]:
        """This rank's shares, then each whole parameter and buffer once: in the same order for a copy of the module."""
        shared = {id(parameter) for each in self._buckets for parameter in each.parameters}
        state = {id(value): value for value in self.module.state_dict(keep_vars=True).values()}  # tied ones have two names
        return [each.share for each in self._buckets] + [value for key, value in state.items() if key not in shared]

    def state(self) -> dict[str, Tensor]:
        """The module's state dict, whole, on the CPU of the main rank; nothing elsewhere. Together."""
        with self.whole():
            return {name: value.cpu() for name, value in self.module.state_dict().items()} if self.ranks.is_main else {}

    def joined(self, belonging_to: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
        """What belongs to each parameter, such as its momentum, whole, by the parameter's name. Together.

        Args:
            belonging_to: one of `parameters` -> a tensor of its shape, or None, which is then left out.
        """
        named = self.module.named_parameters()
        found = {name: belonging_to(parameter) for name, parameter in named if name not in self._shared}
        for each in self._buckets:
            if (share := belonging_to(each.share)) is not None:
                found |= each.named(each.gathered(share))
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def set_momenta(self, optimizer: torch.optim.Optimizer, momenta: Mapping[str, Tensor]) -> None:
        """Bring an SGD optimizer of `parameters` to whole momenta, by the parameters' names."""
        for name, parameter in self.module.named_parameters():
            if name in momenta and name not in self._shared:
                # As the optimizer makes it: on the parameter's device, in its memory layout.
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momenta[name])
        for each in self._buckets:
            if momenta.keys() & set(each.names):
                # A momentum that is 0 is none.
                whole = {name: torch.zeros_like(parameter) for name, parameter in zip(each.names, each.parameters, strict=True)}
                optimizer.state[each.share]["momentum_buffer"] = each.own({**whole, **momenta}).to(each.share.device)

    def _arrived(self, bucket: _Bucket, number: int, parameter: Tensor) -> None:
        bucket.take_gradient(number, parameter)
        while self._to_send and self._to_send[-1].is_complete:
            self._to_send.pop().send_gradients()


class _Bucket:
    """Parameters of one number format in one row of numbers, cut into equal shares, one a rank."""

    def __init__(self, named: Mapping[str, nn.Parameter], device: torch.device | None, ranks: Ranks) -> None:
        self.names, self.parameters = list(named), list(named.values())
        self._ranks = ranks
        # Start in the row, shape, strides: each parameter keeps its memory layout.
        self._places: list[tuple[int, torch.Size, tuple[int, ...]]] = []
        end = 0
        for parameter in self.parameters:
            self._places.append((end, parameter.shape, torch.empty_like(parameter).stride()))
            end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self._length = -(-end // ranks.size) * ranks.size
        first = self.parameters[0]
        with torch.no_grad():
            self.share = nn.Parameter(self.own(named).to(device), requires_grad=first.requires_grad)
        self._empty = self.share.new_full((), float("nan"))
        self._gradients: Tensor | None = None
        self._missing = len(self.parameters)
        self.clear()

    @property
    def is_complete(self) -> bool:
        return self._missing == 0

    def own(self, named: Mapping[str, Tensor]) -> Tensor:
        """This rank's share of a row of whole tensors."""
        row = named[self.names[0]].new_zeros(self._length)
        for place, name in zip(self._views(row), self.names, strict=True):
            place.copy_(named[name])
        size = self._length // self._ranks.size
        return row[self._ranks.rank * size :][:size].clone()

    def gathered(self, share: Tensor) -> Tensor:
        """The row of which every rank has a share. Together."""
        row = share.new_empty(self._length)
        dist.all_gather_into_tensor(row, share.detach())
        return row

    def named(self, row: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self._views(row), strict=True))

    def fill(self, row: Tensor) -> None:
        for parameter, place in zip(self.parameters, self._views(row), strict=True):
            parameter.data = place

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.data = self._empty.expand(parameter.shape)

    def take_gradient(self, number: int, parameter: Tensor) -> None:
        """Move the gradient of one of the parameters into the row of gradients."""
        assert parameter.grad is not None
        if self._gradients is None:
            self._gradients = parameter.grad.new_zeros(self._length)
        self._view(self._gradients, number).copy_(parameter.grad)
        parameter.grad = None
        self._missing -= 1

    def send_gradients(self) -> None:
        """The mean over ranks of the gradients of this rank's share, as its gradient. Together."""
        row = self.share.new_zeros(self._length) if self._gradients is None else self._gradients
        mine = torch.empty_like(self.share)
        dist.reduce_scatter_tensor(mine, row)
        self.share.grad = mine.div_(self._ranks.size)
        self._gradients, self._missing = None, len(self.parameters)

    def _views(self, row: Tensor) -> list[Tensor]:
        return [self._view(row, number) for number in range(len(self._places))]

    def _view(self, row: Tensor, number: int) -> Tensor:
        start, shape, strides = self._places[number]
        return row.as_strided(shape, strides, start)


def _parts(named: Mapping[str, nn.Parameter], largest: int) -> Iterator[dict[str, nn.Parameter]]:
    """Parameters in their order, in runs of one number format and at most `largest` numbers, or of one parameter."""
    part: dict[str, nn.Parameter] = {}
    count = 0
    kind: torch.dtype | None = None
    for name, parameter in named.items():
        if part and (kind != parameter.dtype or count + parameter.numel() > largest):
            yield part
            part, count = {}, 0
        part[name], kind = parameter, parameter.dtype
        count += parameter.numel()
    if part:
        yield part
