# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The `masked` executor: the full dense tensor times the mask. The reference the other executors are held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import frame, zero_absent
from bundle.sparse.volume import SparseVolume, require_two_sites
from bundle.sparse.windows import Window, pool_windows

__all__ = ["MaskedVolume"]


class MaskedVolume(SparseVolume, executor="masked"):
    """Stores ``[B, C, D, H, W]``, zero at absent sites: nothing is saved, everything is plain to see."""

    @classmethod
    def _from_dense(cls, image: Tensor, layout: CellLayout, cell_shape: Triple) -> MaskedVolume:
        return cls(zero_absent(image, layout, cell_shape), layout, cell_shape)

    def to_dense(self, fill: Tensor | None = None) -> Tensor:
        if fill is None:
            return self.features
        return torch.where(self._mask(), self.features, fill.to(self.dtype).view(1, -1, 1, 1, 1))

    def at(self, sites: Tensor) -> Tensor:
        b, z, y, x = sites.unbind(1)
        return self.features[b, :, z, y, x]

    @property
    def channels(self) -> int:
        return self.features.shape[1]

    def pointwise(self, function: Callable[..., Tensor], *others: SparseVolume) -> SparseVolume:
        given, before = self.features, _writes(self.features)
        result = function(given, *(other.features for other in others))
        if result is given and before is not None and _writes(given) == before:
            return self  # nothing was done, as dropout in evaluation: dense, it is the same tensor, too
        masked = self._masked(result, self.cell_shape)
        if result is given:
            # written in place, also where nothing is. To write zeros there would spoil what a gradient needs of it
            self.features = masked.features
            return self
        return masked

    def convolve(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> SparseVolume:
        convolved = F.conv3d(frame(self.features, window), weight, bias, window.stride, 0, window.dilation, groups)
        return self._masked(convolved, window.outputs(self.cell_shape))

    def normalize_batch(
        self,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        use_batch: bool,
        momentum: float,
        eps: float,
    ) -> SparseVolume:
        x, mask = self._statistics_input()
        if use_batch:
            require_two_sites(self)
            count = mask.sum()
            mean, var = _moments(x, mask, dims=(0, 2, 3, 4))
            if running_mean is not None and running_var is not None:
                with torch.no_grad():  # as torch does: the running variance is the unbiased one
                    running_mean.lerp_(mean.flatten().to(running_mean.dtype), momentum)
                    running_var.lerp_((var * count / (count - 1)).flatten().to(running_var.dtype), momentum)
        else:
            assert running_mean is not None  # batch_norm itself demands them
            assert running_var is not None
            mean, var = (stat.to(x.dtype).view(1, -1, 1, 1, 1) for stat in (running_mean, running_var))
        return self._affine((x - mean) * (var + eps).rsqrt(), weight, bias)

    def normalize_sample(
        self, groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> SparseVolume:
        x, mask = self._statistics_input()
        groups = self.channels if groups is None else groups
        grouped = x.view(x.shape[0], groups, -1, *x.shape[2:])  # [B, groups, channels of a group, D, H, W]
        mean, var = _moments(grouped, mask[:, None].expand(-1, -1, grouped.shape[2], -1, -1, -1), dims=(2, 3, 4, 5))
        return self._affine(((grouped - mean) * (var + eps).rsqrt()).view_as(x), weight, bias)

    def pool(self, kind: Literal["max", "sum", "mean"], window: Window) -> SparseVolume:
        features, beyond = (self._or_lowest(), -torch.inf) if kind == "max" else (self.features, 0.0)
        framed = frame(features, window, beyond)
        return self._masked(pool_windows(kind, framed, window), window.outputs(self.cell_shape))

    def sample_sum(self) -> Tensor:
        return self.features.sum((2, 3, 4), dtype=torch.float64 if self.dtype == torch.float64 else torch.float32)

    def sample_max(self) -> Tensor:
        return torch.where(self.layout.visible.flatten(1).any(1)[:, None], self._or_lowest().amax((2, 3, 4)), 0.0)

    def spread(self, samples: Tensor) -> Tensor:
        return samples

    def _or_lowest(self) -> Tensor:
        return torch.where(self._mask(), self.features, -torch.inf)

    def _statistics_input(self) -> tuple[Tensor, Tensor]:
        x = self.features if self.dtype == torch.float64 else self.features.float()
        return x, self._mask().to(x.dtype)

    def _affine(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> SparseVolume:
        if weight is not None:
            x = x * weight.view(1, -1, 1, 1, 1)
        if bias is not None:
            x = x + bias.view(1, -1, 1, 1, 1)
        return self._masked(x.to(self.dtype), self.cell_shape)

    def _mask(self) -> Tensor:
        return self.layout.site_mask(self.cell_shape)

    def _masked(self, features: Tensor, cell_shape: Triple) -> SparseVolume:
        return self._like(zero_absent(features, self.layout, cell_shape), cell_shape)


def _writes(x: Tensor) -> int | None:
    """How often a tensor was written in place; None where inference does not count it."""
    return None if x.is_inference() else x._version  # noqa: SLF001 - torch's documented way to ask


def _moments(x: Tensor, mask: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over `dims` where `mask` is one; both are 0 for a sample with nothing visible."""
    count = mask.sum(dims, keepdim=True).clamp(min=1)
    mean = (x * mask).sum(dims, keepdim=True) / count
    return mean, ((x - mean).square() * mask).sum(dims, keepdim=True) / count
