# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Python's operators, and the names of torch's arguments, for what stands where a tensor would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bundle.sparse.unsupported import UnsupportedOperation, calling_module

__all__ = ["Operators", "as_torch_takes"]

#: the names that torch takes besides its own, as numpy has them
_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def as_torch_takes(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as rules take them: the input by position, axes as `dim` and `keepdim`.

    Raises:
        UnsupportedOperation: if the result is to be written into `out`.
    """
    if kwargs.get("out") is not None:
        name = getattr(function, "__name__", function)
        raise UnsupportedOperation(
            f"{name} with out= beside a sparse volume, called by {calling_module()}: take what it returns"
        )
    named = {_OTHER_NAMES.get(name, name): value for name, value in kwargs.items()}
    return ((named.pop("input"), *args) if not args and "input" in named else args), named


def _operator(function: Callable[..., Any], *, swapped: bool = False) -> Callable[..., Any]:
    def call(self: Operators, *others: Any) -> Any:
        return self.__torch_function__(function, (), (*others, self) if swapped else (self, *others))

    return call


class Operators:
    """Each operator is the torch function of the same meaning; one without a rule is the same error as the function."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise NotImplementedError

    __add__ = __radd__ = _operator(torch.add)
    __iadd__ = _operator(Tensor.add_)
    __sub__ = _operator(torch.sub)
    __rsub__ = _operator(torch.sub, swapped=True)
    __isub__ = _operator(Tensor.sub_)
    __mul__ = __rmul__ = _operator(torch.mul)
    __imul__ = _operator(Tensor.mul_)
    __truediv__ = _operator(torch.div)
    __rtruediv__ = _operator(torch.div, swapped=True)
    __itruediv__ = _operator(Tensor.div_)
    __pow__ = _operator(torch.pow)
    __rpow__ = _operator(torch.pow, swapped=True)
    __ipow__ = _operator(Tensor.pow_)
    __neg__ = _operator(torch.neg)
    __abs__ = _operator(torch.abs)

    __floordiv__ = _operator(torch.floor_divide)
    __rfloordiv__ = _operator(torch.floor_divide, swapped=True)
    __mod__ = _operator(torch.remainder)
    __matmul__ = _operator(torch.matmul)
    __rmatmul__ = _operator(torch.matmul, swapped=True)
    __lt__, __le__, __gt__, __ge__ = (_operator(function) for function in (torch.lt, torch.le, torch.gt, torch.ge))
    __eq__, __ne__ = (_operator(function) for function in (torch.eq, torch.ne))
    __hash__ = object.__hash__
    __bool__, __float__, __int__ = (_operator(f) for f in (Tensor.__bool__, Tensor.__float__, Tensor.__int__))
    __iter__ = _operator(Tensor.__iter__)
    __dlpack__ = __dlpack_device__ = _operator(torch.as_tensor)  # which looks for these, and past `__torch_function__`
    __getitem__, __setitem__ = _operator(Tensor.__getitem__), _operator(Tensor.__setitem__)
