"""A second device that every machine has: tensors that lie elsewhere, and do not mix with those of the CPU.

What a GPU does not forgive is an error here, too: an index, a mask, a generator or a network that was left on the CPU.
What it computes is what the CPU computes, bit for bit, so that verdicts can be compared. Its tensors say that they lie
on `meta`, since only a device that torch knows can be named; inside they hold a tensor of the CPU.

What it cannot tell: whether a kernel exists on a GPU, autocast, and whatever asks for the type `cuda` by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")

aten = torch.ops.aten
ACROSS = (aten._to_copy.default, aten.copy_.default)
"""What copies from one device to another."""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""What takes indices of the CPU for values of a GPU, but not the other way round."""
JOINING = (aten.cat.default, aten.stack.default)
"""What does not even take single numbers of another device."""


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Inside, tensors can be made on and moved to the device that this gives."""
    with mock.patch.object(torch, "Generator", _Generator), _Making(), _Computing():
        yield ELSEWHERE


class _Elsewhere(Tensor):
    """A tensor that says it lies on the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Elsewhere:
        made: _Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=ELSEWHERE,
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"elsewhere: {self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Computing(TorchDispatchMode):
    """Sees what has no tensor of the other device yet: what makes one, and what moves one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Making(TorchFunctionMode):
    """What reaches no dispatcher: values given as Python numbers, and values taken back as such."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if args and isinstance(args[0], _Elsewhere):
            if func is Tensor.new_tensor:
                return args[0].inner.new_tensor(*args[1:], **kwargs).to(ELSEWHERE)
            if func is Tensor.tolist:
                return args[0].detach().cpu().tolist()
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("a tensor of another device is no NumPy array: call .cpu() first")
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """A generator that remembers where it was made for; the CPU's own numbers come from it."""

    ELSEWHERE: ClassVar[dict[int, torch.Generator]] = {}
    """By what torch hands on of a generator, which is not this object; held, so that no other takes the number."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        if torch.device(device) == ELSEWHERE:
            cls.ELSEWHERE[made._cdata] = made
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, _Elsewhere) for tensor in tensors)
    _check_one_device(func, args, tensors, there)
    inside = tree_map_only(_Elsewhere, lambda tensor: tensor.inner, (args, kwargs))
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == ELSEWHERE
        inside[1]["device"] = torch.device("cpu")
    elif func is aten.copy_.default:
        there = isinstance(args[0], _Elsewhere)
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in _Generator.ELSEWHERE) != there:
        raise RuntimeError(f"{func}: a generator of another device than its numbers")
    result = func(*inside[0], **inside[1])
    if not there:
        return result
    result = tree_map_only(Tensor, _Elsewhere, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if tensors else result


def _check_one_device(func: Any, args: Any, tensors: list[Tensor], there: bool) -> None:
    if not there or func in ACROSS:
        return
    if func in INDEXING:  # the indices may lie on the CPU; values and what is put there may not
        tensors = [args[0], *args[2:3]]
    # A single number of the CPU goes with everything else.
    counted = [tensor for tensor in tensors if tensor.dim() > 0 or func in JOINING]
    if not all(isinstance(tensor, _Elsewhere) for tensor in counted):
        raise RuntimeError(f"{func}: tensors of two devices")
