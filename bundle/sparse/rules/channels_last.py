# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A sparse volume with its channels on the last axis, as ConvNeXt's blocks have it between two permutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.sparse.operators import Operators, as_torch_takes
from bundle.sparse.rules.pointwise import BINARY, SITE_BY_SITE
from bundle.sparse.unsupported import UnsupportedOperation, unsupported
from bundle.sparse.volume import RULES, SparseVolume, rule

__all__ = ["ChannelsLastVolume"]

_TO_LAST, _TO_FIRST = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class ChannelsLastVolume(Operators):
    """Features ``[B, D, H, W, C]``: what ``volume.permute(0, 2, 3, 4, 1)`` or ``volume.movedim(1, -1)`` gives.

    Between that and the way back a block normalises and mixes the channels of single sites (ConvNeXt, Liu et al. 2022,
    arXiv:2201.03545): LayerNorm and Linear over the channels, activations, sums and products. Nothing is moved in
    memory: each runs on axis 1 of what the executor stores.

    Attributes:
        volume: the same features with channels on axis 1.
    """

    volume: SparseVolume

    @property
    def shape(self) -> torch.Size:
        b, c, *sites = self.volume.shape
        return torch.Size((b, *sites, c))

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return len(self.volume)

    ndim = 5
    dtype = property(lambda self: self.volume.dtype)
    device = property(lambda self: self.volume.device)

    def permute(self, *dims: Any) -> SparseVolume:
        return _permute(self, *dims)

    def movedim(self, source: int, destination: int) -> SparseVolume:
        return _movedim(self, source, destination)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.__torch_function__(getattr(Tensor, name), (), (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = as_torch_takes(function, args, kwargs or {})
        if function in _WAYS:
            return _WAYS[function](*args, **kwargs)
        # a weight of prelu belongs to axis 1, which are no channels here
        if (function in SITE_BY_SITE and function is not F.prelu) or function in BINARY:
            named = {name: _channels_first(value) for name, value in kwargs.items()}
            return cls(RULES[function](*map(_channels_first, args), **named))
        raise unsupported(function, "channels_last.py")


def _channels_first(operand: Any) -> Any:
    """What stands beside a volume, with its channels on axis 1 too."""
    if isinstance(operand, ChannelsLastVolume):
        return operand.volume
    if isinstance(operand, Tensor) and 0 < operand.ndim <= 5:
        return operand.view((1,) * (5 - operand.ndim) + tuple(operand.shape)).permute(_TO_FIRST)
    return operand


@rule(torch.permute, Tensor.permute)
def _permute(volume: SparseVolume | ChannelsLastVolume, *dims: Any) -> SparseVolume | ChannelsLastVolume:
    order = tuple(d % 5 for d in (dims[0] if len(dims) == 1 else dims))
    if isinstance(volume, SparseVolume) and order == _TO_LAST:
        return ChannelsLastVolume(volume)
    if isinstance(volume, ChannelsLastVolume) and order == _TO_FIRST:
        return volume.volume
    raise UnsupportedOperation(
        f"permute {list(order)} of a sparse volume {list(volume.shape)}: only its channels can move, from axis 1 to "
        "the last and back"
    )


@rule(torch.movedim, torch.moveaxis, Tensor.movedim, Tensor.moveaxis)
def _movedim(
    volume: SparseVolume | ChannelsLastVolume, source: int, destination: int
) -> SparseVolume | ChannelsLastVolume:
    order = [axis for axis in range(5) if axis != source % 5]
    order.insert(destination % 5, source % 5)
    return _permute(volume, order)


def _layer_norm(
    volume: ChannelsLastVolume,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> ChannelsLastVolume:
    if tuple(normalized_shape) != tuple(volume.shape[-1:]):
        raise UnsupportedOperation(
            f"layer_norm over {list(normalized_shape)} of a sparse volume with its channels last, "
            f"{list(volume.shape)}: only over the channels"
        )
    return _over_channels(volume, lambda rows: F.layer_norm(rows, normalized_shape, weight, bias, eps))


def _linear(volume: ChannelsLastVolume, weight: Tensor, bias: Tensor | None = None) -> ChannelsLastVolume:
    return _over_channels(volume, lambda rows: F.linear(rows, weight, bias))


def _over_channels(volume: ChannelsLastVolume, function: Callable[[Tensor], Tensor]) -> ChannelsLastVolume:
    """`function` of the channels of each site on the last axis."""
    return ChannelsLastVolume(volume.volume.pointwise(lambda x: function(x.movedim(1, -1)).movedim(-1, 1)))


#: what a channels-last volume can do beyond the rules that run site by site
_WAYS: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((torch.permute, Tensor.permute), _permute),
    **dict.fromkeys((torch.movedim, torch.moveaxis, Tensor.movedim, Tensor.moveaxis), _movedim),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), _layer_norm),
    F.linear: _linear,
}
