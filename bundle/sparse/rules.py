# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The sparse form of each torch function that networks call: one small function per operation.

A rule takes the torch function's own arguments and says what it means on a `SparseVolume` in terms of the few things
an executor can do. To add one, write it here under ``@rule(torch.function, ...)`` and add its case to
``tests/sparse/test_rules.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.sparse.layout import Triple
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume, rule


def _triple(value: int | Sequence[int]) -> Triple:
    a, b, c = (value,) * 3 if isinstance(value, int) else tuple(value) * (3 if len(value) == 1 else 1)
    return a, b, c


# ---- site by site ------------------------------------------------------------------------------------------------


def _site_by_site(function: Callable[..., Tensor]) -> None:
    @rule(function)
    def pointwise(volume: SparseVolume, *args: Any, **kwargs: Any) -> SparseVolume:
        return volume.pointwise(partial(_apply, function, args, kwargs))


def _apply(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], features: Tensor) -> Tensor:
    return function(features, *args, **kwargs)


for _function in (
    *(F.relu, torch.relu, torch.relu_, F.relu_, Tensor.relu, Tensor.relu_),
    *(F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.relu6, F.hardtanh, F.hardswish, F.mish, F.gelu, F.silu),
    *(torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, F.softplus),
    *(F.dropout, torch.dropout, Tensor.contiguous, Tensor.float, Tensor.to, Tensor.clone, torch.clone, Tensor.detach),
):
    _site_by_site(_function)


def _binary(function: Callable[..., Tensor], *names: Callable[..., Any]) -> None:
    @rule(*names)
    def combine(volume: Any, other: Any, **kwargs: Any) -> SparseVolume:
        if not isinstance(volume, SparseVolume):  # 2 * volume: both operations commute
            volume, other = other, volume
        if isinstance(other, SparseVolume):
            _same_level(volume, other)
            return volume.pointwise(partial(function, **kwargs), other)
        if isinstance(other, Tensor) and other.numel() > 1:
            raise UnsupportedOperation(
                f"{function.__name__} of a sparse volume and a dense tensor {list(other.shape)}: make it sparse first"
            )
        return volume.pointwise(lambda features: function(features, other, **kwargs))


_binary(torch.add, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
_binary(torch.mul, torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
_binary(Tensor.add_, Tensor.add_, Tensor.__iadd__)
_binary(Tensor.mul_, Tensor.mul_, Tensor.__imul__)


def _same_level(first: SparseVolume, second: SparseVolume) -> None:
    if first.layout is not second.layout or first.block != second.block:
        raise ValueError(f"{first!r} and {second!r} do not share mask and level")


# ---- convolution and pooling -----------------------------------------------------------------------------------


@rule(torch.conv3d, F.conv3d)
def _conv3d(
    volume: SparseVolume,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> SparseVolume:
    stride, dilation = _triple(stride), _triple(dilation)
    kernel = _triple(weight.shape[2:])
    same = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel))
    if isinstance(padding, str):
        padding = same if padding == "same" else 0
    padding = _triple(padding)
    # the map must keep its place on the cells: as many sites out as the stride leaves of each cell
    for k, s, p, d, sites in zip(kernel, stride, padding, dilation, volume.shape[2:]):
        if (sites + 2 * p - d * (k - 1) - 1) // s + 1 != sites // s:
            raise UnsupportedOperation(
                f"a convolution with kernel {k}, stride {s}, padding {p}, dilation {d} moves the map off its cells "
                f"({sites} sites): pad as for an output of {sites // s} sites"
            )
    return volume.convolve(weight, bias, stride, padding, dilation, groups)


@rule(F.avg_pool3d)
def _avg_pool3d(
    volume: SparseVolume,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> SparseVolume:
    kernel = _triple(kernel_size)
    if (stride is not None and _triple(stride) != kernel) or any(_triple(padding)) or divisor_override is not None:
        raise UnsupportedOperation("avg_pool3d needs its kernel equal to its stride, no padding and no own divisor")
    return volume.average_blocks(kernel)


# ---- norms: statistics over visible sites ----------------------------------------------------------------------


@rule(F.batch_norm, torch.batch_norm)
def _batch_norm(
    volume: SparseVolume,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SparseVolume:
    return volume.normalize_batch(running_mean, running_var, weight, bias, training, momentum, eps)


@rule(F.instance_norm, torch.instance_norm)
def _instance_norm(
    volume: SparseVolume,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SparseVolume:
    if running_mean is not None or not use_input_stats:
        raise UnsupportedOperation("instance_norm with running statistics: build the layer without track_running_stats")
    return volume.normalize_sample(None, weight, bias, eps)


@rule(F.group_norm, torch.group_norm)
def _group_norm(
    volume: SparseVolume,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> SparseVolume:
    return volume.normalize_sample(num_groups, weight, bias, eps)
