# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules for functions that treat every site alone, and for sums and products.

A rule takes the torch function's arguments and says what it means on a `SparseVolume` in terms of the few things that
an executor can do. To add one, write it under ``@rule(torch.function, ...)``, in a file of this folder or of yours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.sparse.unsupported import UnsupportedOperation, calling_module
from bundle.sparse.volume import SparseVolume, rule

__all__ = ["BINARY", "SITE_BY_SITE", "dense_beside", "require_same_level"]

#: functions that treat every value alone, and those of two operands: also for a `ChannelsLastVolume`
SITE_BY_SITE: set[Callable[..., Any]] = set()
BINARY: set[Callable[..., Any]] = set()

# ---- site by site ------------------------------------------------------------------------------------------------


def _site_by_site(function: Callable[..., Tensor]) -> None:
    SITE_BY_SITE.add(function)

    @rule(function)
    def pointwise(volume: SparseVolume, *args: Any, **kwargs: Any) -> SparseVolume:
        if not isinstance(volume, SparseVolume) or any(isinstance(one, SparseVolume) for one in args):
            name = getattr(function, "__name__", str(function))
            raise UnsupportedOperation(
                f"{name} with a sparse volume among its further arguments, called by {calling_module()}: only its "
                "first one can be one"
            )
        given = [*args, *kwargs.values()]
        if function not in _TAKE_TENSORS_AS_THEY_ARE:
            given = [_beside(volume, one) for one in given]
        maps = {place: one for place, one in enumerate(given) if isinstance(one, SparseVolume)}
        for one in maps.values():
            require_same_level(volume, one)

        def of_features(features: Tensor, *beside: Tensor) -> Tensor:
            values = list(given)
            for place, one in zip(maps, beside):
                values[place] = one
            return function(features, *values[: len(args)], **dict(zip(kwargs, values[len(args) :])))

        return volume.pointwise(of_features, *maps.values())


#: a weight per channel, and a tensor that lends its data type and device: nothing that broadcasts over sites
_TAKE_TENSORS_AS_THEY_ARE = {F.prelu, Tensor.to}


for _function in (
    *(F.relu, torch.relu, torch.relu_, F.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh),
    *(F.leaky_relu, F.leaky_relu_, F.rrelu, F.prelu, F.elu, F.elu_, F.celu, F.selu, F.gelu, F.silu, F.mish),
    *(F.hardswish, F.hardsigmoid, F.softplus, F.logsigmoid),
    *(torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, F.tanh),
    *(torch.neg, Tensor.neg, torch.abs, Tensor.abs, torch.square, Tensor.square, torch.sqrt, Tensor.sqrt),
    *(torch.pow, Tensor.pow, Tensor.pow_, torch.clamp, Tensor.clamp),
    *(F.dropout, torch.dropout, Tensor.contiguous, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double),
    *(Tensor.to, Tensor.clone, torch.clone, Tensor.detach),
):
    _site_by_site(_function)


# ---- sums and products --------------------------------------------------------------------------------------------


def _binary(function: Callable[..., Tensor], *names: Callable[..., Any]) -> None:
    BINARY.update(names)

    @rule(*names)
    def combine(first: Any, other: Any, **kwargs: Any) -> SparseVolume:
        if isinstance(first, SparseVolume):
            return _combine(first, other, partial(function, **kwargs))
        return _combine(other, first, lambda b, a: function(a, b, **kwargs))


def _combine(volume: SparseVolume, other: Any, function: Callable[..., Tensor]) -> SparseVolume:
    """`function` of the volume and what stands beside it, which broadcasts as it would with a dense tensor."""
    other = _beside(volume, other)
    if not isinstance(other, SparseVolume):
        return volume.pointwise(lambda features: function(features, other))
    require_same_level(volume, other)
    return volume.pointwise(function, other)


def _beside(volume: SparseVolume, other: Any) -> Any:
    """A tensor as it stands beside the stored features, or as a volume if it is a map; what is no tensor as it is."""
    if not isinstance(other, Tensor) or other.ndim == 0:
        return other
    other = other.view((1,) * (5 - other.ndim) + tuple(other.shape))
    if other.shape[2:] != (1, 1, 1):
        return dense_beside(volume, other)
    if other.shape[0] not in (1, volume.shape[0]):  # a value per sample or channel: a gate, drop path, a layer's scale
        raise UnsupportedOperation(
            f"a tensor {list(other.shape)} beside a sparse volume {list(volume.shape)}, given by {calling_module()}: "
            f"it must have {volume.shape[0]} or 1 on the first axis"
        )
    return volume.spread(other)


def dense_beside(volume: SparseVolume, dense: Tensor) -> SparseVolume:
    """The visible part of a dense map of the volume's size and level.

    Raises:
        UnsupportedOperation: if the map has another size.
    """
    if dense.shape[2:] != volume.shape[2:] or dense.shape[0] not in (1, volume.shape[0]):
        raise UnsupportedOperation(
            f"a dense tensor {list(dense.shape)} beside a sparse volume {list(volume.shape)}, given by "
            f"{calling_module()}: it must have the volume's size, or 1 on each spatial axis"
        )
    dense = dense.expand(volume.shape[0], *dense.shape[1:])
    return SparseVolume.from_dense(dense, volume.layout, volume.name)


def require_same_level(first: SparseVolume, second: SparseVolume) -> None:
    """Checks that two volumes have the same layout and cell shape.

    Raises:
        ValueError: if not.
    """
    if first.layout is not second.layout or first.cell_shape != second.cell_shape:
        raise ValueError(f"{first!r} and {second!r} do not share mask and level")


_binary(torch.add, torch.add, Tensor.add)
_binary(torch.sub, torch.sub, Tensor.sub)
_binary(torch.mul, torch.mul, Tensor.mul)
_binary(torch.div, torch.div, torch.true_divide, Tensor.div)


def _in_place(function: Callable[..., Tensor]) -> None:
    BINARY.add(function)

    @rule(function)
    def combine(first: Any, other: Any, **kwargs: Any) -> SparseVolume:
        if not isinstance(first, SparseVolume):
            raise UnsupportedOperation("a sparse volume written into a dense tensor: add to the volume instead")
        return _combine(first, other, partial(function, **kwargs))


_in_place(Tensor.add_)
_in_place(Tensor.sub_)
_in_place(Tensor.mul_)
_in_place(Tensor.div_)


# ---- new dense tensors beside a volume --------------------------------------------------------------------------


def _new(function: Callable[..., Tensor]) -> None:
    @rule(function)
    def new(volume: SparseVolume, *args: Any, **kwargs: Any) -> Tensor:
        return function(volume.features, *args, **kwargs)


for _factory in (Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_tensor):
    _new(_factory)


@rule(F.dropout2d, F.dropout3d, torch.feature_dropout)
def _channel_dropout(
    volume: SparseVolume, p: float = 0.5, training: bool = True, inplace: bool = False
) -> SparseVolume:
    return volume * F.dropout(volume.features.new_ones(*volume.shape[:2], 1, 1, 1), p, training)
