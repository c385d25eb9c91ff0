# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The sparse form of each torch function that networks call: one small function per operation.

A rule takes the torch function's own arguments and says what it means on a `SparseVolume` in terms of the few things
an executor can do. To add one, write it here, or in `rules_pooling.py`, `rules_norms.py` or `channels_last.py`, under
``@rule(torch.function, ...)`` and add its case to ``tests/sparse/rules/test_pointwise.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import triple
from bundle.sparse.rules.padded import PaddedVolume
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume, rule
from bundle.sparse.windows import require_whole_cells

#: functions that treat every value alone, and those of two operands: also for a `ChannelsLastVolume`
SITE_BY_SITE: set[Callable[..., Any]] = set()
BINARY: set[Callable[..., Any]] = set()

# ---- site by site ------------------------------------------------------------------------------------------------


def _site_by_site(function: Callable[..., Tensor]) -> None:
    SITE_BY_SITE.add(function)

    @rule(function)
    def pointwise(volume: SparseVolume, *args: Any, **kwargs: Any) -> SparseVolume:
        return volume.pointwise(partial(_apply, function, args, kwargs))


def _apply(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], features: Tensor) -> Tensor:
    return function(features, *args, **kwargs)


for _function in (
    *(F.relu, torch.relu, torch.relu_, F.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh),
    *(F.leaky_relu, F.leaky_relu_, F.rrelu, F.prelu, F.elu, F.elu_, F.celu, F.selu, F.gelu, F.silu, F.mish),
    *(F.hardswish, F.hardsigmoid, F.softplus, F.logsigmoid),
    *(torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, F.tanh),
    *(torch.neg, Tensor.neg, torch.abs, Tensor.abs, torch.square, Tensor.square, torch.sqrt, Tensor.sqrt),
    *(torch.pow, Tensor.pow, torch.clamp, Tensor.clamp),
    *(F.dropout, torch.dropout, Tensor.contiguous, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double),
    *(Tensor.to, Tensor.clone, torch.clone, Tensor.detach),
):
    _site_by_site(_function)


# ---- sums and products --------------------------------------------------------------------------------------------


def _binary(function: Callable[..., Tensor], *names: Callable[..., Any]) -> None:
    BINARY.update(names)

    @rule(*names)
    def combine(first: Any, second: Any, **kwargs: Any) -> SparseVolume:
        if isinstance(first, SparseVolume):
            return _combine(first, second, partial(function, **kwargs))
        return _combine(second, first, lambda b, a: function(a, b, **kwargs))


def _combine(volume: SparseVolume, other: Any, function: Callable[..., Tensor]) -> SparseVolume:
    """`function` of the volume and what stands beside it, which broadcasts as it would with a dense tensor."""
    if not isinstance(other, (SparseVolume, Tensor)) or (isinstance(other, Tensor) and other.ndim == 0):
        return volume.pointwise(lambda features: function(features, other))
    if isinstance(other, Tensor):
        shape = (1,) * (5 - other.ndim) + tuple(other.shape)
        if shape[2:] == (1, 1, 1):  # a value per sample or channel, such as a gate, a drop-path mask, a layer's scale
            return volume.pointwise(lambda features: function(features, volume.spread(other.view(shape))))
        other = _dense_beside(volume, other.view(shape))
    _same_level(volume, other)
    return volume.pointwise(function, other)


def _dense_beside(volume: SparseVolume, dense: Tensor) -> SparseVolume:
    """The visible part of a dense map of the volume's size and level."""
    if dense.shape[2:] != volume.shape[2:] or dense.shape[0] not in (1, volume.shape[0]):
        raise UnsupportedOperation(
            f"a dense tensor {list(dense.shape)} beside a sparse volume {list(volume.shape)}: it must have the "
            "volume's own size, or 1 on each spatial axis"
        )
    dense = dense.expand(volume.shape[0], *dense.shape[1:])
    return SparseVolume.from_dense(dense, volume.layout, volume.name)


def _same_level(first: SparseVolume, second: SparseVolume) -> None:
    if first.layout is not second.layout or first.block != second.block:
        raise ValueError(f"{first!r} and {second!r} do not share mask and level")


_binary(torch.add, torch.add, Tensor.add)
_binary(torch.sub, torch.sub, Tensor.sub)
_binary(torch.mul, torch.mul, Tensor.mul)
_binary(torch.div, torch.div, torch.true_divide, Tensor.div)
_binary(Tensor.add_, Tensor.add_)
_binary(Tensor.mul_, Tensor.mul_)


# ---- channels -----------------------------------------------------------------------------------------------------


def _require_channel_axis(name: str, dim: int) -> None:
    if dim not in (1, -4):
        raise UnsupportedOperation(f"{name} of a sparse volume along axis {dim}: only along the channels, axis 1")


@rule(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors: Sequence[SparseVolume | Tensor], dim: int = 0) -> SparseVolume:
    _require_channel_axis("torch.cat", dim)
    volume = next(t for t in tensors if isinstance(t, SparseVolume))
    parts = [t if isinstance(t, SparseVolume) else _dense_beside(volume, t) for t in tensors]
    for part in parts:
        _same_level(volume, part)
    return parts[0].pointwise(lambda *features: torch.cat(features, dim=1), *parts[1:])


@rule(torch.chunk, Tensor.chunk)
def _chunk(volume: SparseVolume, chunks: int, dim: int = 0) -> tuple[SparseVolume, ...]:
    return _split(volume, -(-volume.channels // chunks), dim)


@rule(torch.split, Tensor.split)
def _split(volume: SparseVolume, split_size: int | Sequence[int], dim: int = 0) -> tuple[SparseVolume, ...]:
    _require_channel_axis("torch.split", dim)
    parts = -(-volume.channels // split_size) if isinstance(split_size, int) else len(split_size)
    return tuple(volume.pointwise(partial(_part, split_size=split_size, index=i)) for i in range(parts))


def _part(features: Tensor, *, split_size: int | Sequence[int], index: int) -> Tensor:
    return features.split(split_size, dim=1)[index]


@rule(Tensor.repeat)
def _repeat(volume: SparseVolume, *repeats: Any) -> SparseVolume:
    b, times, d, h, w = repeats[0] if len(repeats) == 1 else repeats
    if (b, d, h, w) != (1, 1, 1, 1):
        raise UnsupportedOperation(f"repeat {(b, times, d, h, w)} of a sparse volume: only its channels can repeat")
    return volume.pointwise(lambda features: torch.cat([features] * times, dim=1))


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


# ---- convolution --------------------------------------------------------------------------------------------------


@rule(torch.conv3d, F.conv3d)
def _conv3d(
    volume: SparseVolume | PaddedVolume,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> SparseVolume:
    stride, dilation, kernel = triple(stride), triple(dilation), triple(weight.shape[2:])
    if isinstance(padding, str):
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel)]
    low = high = triple(padding)
    if isinstance(volume, PaddedVolume):
        low, high = triple([a + b for a, b in zip(low, volume.low)]), triple([a + b for a, b in zip(high, volume.high)])
        volume = volume.volume
    require_whole_cells(volume.shape[2:], kernel, stride, low, high, dilation)
    return volume.convolve(weight, bias, stride, low, dilation, groups)


@rule(F.pad)
def _pad(
    volume: SparseVolume, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> SparseVolume | PaddedVolume:
    widths = [*pad, *[0] * (6 - len(pad))]
    if not any(widths):
        return volume
    if mode != "constant" or value or len(widths) > 6:
        raise UnsupportedOperation(f"a sparse volume can be padded with zeros on its spatial axes, not {pad}, {mode}")
    return PaddedVolume(volume, low=triple(widths[4::-2]), high=triple(widths[5::-2]))
