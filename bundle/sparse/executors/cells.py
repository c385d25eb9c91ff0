# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The `cells` executor: one small dense block per visible cell, and dense convolutions over the batch of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.sparse.convolution.methods import convolve
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_to_dense, blocks_to_rows, channels_last, dense_to_blocks, widen
from bundle.sparse.volume import SparseVolume
from bundle.sparse.windows import Window, pool_windows

__all__ = ["CellsVolume"]


class CellsVolume(SparseVolume, executor="cells"):
    """Stores ``[N, C, d, h, w]``, a block of ``d x h x w`` sites for each of the N visible cells, channels last.

    Nothing is stored or computed for absent cells, so norms and activations are torch's on the blocks, and only
    a convolution wider than one site looks beyond a block, at its halo.
    """

    @classmethod
    def _from_dense(cls, image: Tensor, layout: CellLayout, cell_shape: Triple) -> CellsVolume:
        return cls(dense_to_blocks(image, layout, cell_shape), layout, cell_shape)

    def to_dense(self, fill: Tensor | None = None) -> Tensor:
        return blocks_to_dense(self.features, self.layout, self.cell_shape, fill)

    def at(self, sites: Tensor) -> Tensor:
        return blocks_to_rows(self.features)[self.layout.site_rows(sites, self.cell_shape)]

    @property
    def channels(self) -> int:
        return self.features.shape[1]

    def pointwise(self, function: Callable[..., Tensor], *others: SparseVolume) -> SparseVolume:
        return self._like(function(self.features, *(other.features for other in others)))

    def convolve(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> SparseVolume:
        blocks = self.convolve_blocks(self.features, weight, bias, window, groups)
        return self._like(blocks, window.outputs(self.cell_shape))

    def convolve_blocks(
        self, blocks: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
    ) -> Tensor:
        """The convolution of the stored blocks."""
        return convolve(blocks, weight, bias, self.layout, self.cell_shape, window, groups)

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
        # every stored site is visible and no other is stored: the dense function is the sparse one
        weight, bias = self._float_affine(weight, bias)
        return self._like(
            F.batch_norm(self.features, running_mean, running_var, weight, bias, use_batch, momentum, eps)
        )

    def normalize_sample(
        self, groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> SparseVolume:
        # cells are sorted by sample, so a sample is one slice, and its norm is torch's over that slice
        samples = self.features.split([count for count in self.layout.counts if count])
        weight, bias = self._float_affine(weight, bias)
        if groups is None:
            normal = [torch.batch_norm(s, weight, bias, None, None, True, 0.0, eps, True) for s in samples]
        else:
            normal = [_group_norm(s, groups, weight, bias, eps) for s in samples]
        return self._like(normal[0] if len(normal) == 1 else torch.cat(normal))

    def _float_affine(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """In half precision a norm without scale or shift gets one: torch then keeps the mean in float32, else not."""
        if self.dtype not in {torch.bfloat16, torch.float16}:
            return weight, bias
        channels, device = self.channels, self.device
        weight = torch.ones(channels, device=device) if weight is None else weight
        return weight, torch.zeros(channels, device=device) if bias is None else bias

    def pool(self, kind: Literal["max", "sum", "mean"], window: Window) -> SparseVolume:
        cell_shape, blocks = window.outputs(self.cell_shape), self.features
        if not window.is_side_by_side:
            halo = self.layout.halo(self.cell_shape, window.padding, window.high)
            blocks = widen(blocks_to_rows(blocks), halo, absent=-torch.inf if kind == "max" else 0.0)
        return self._like(pool_windows(kind, blocks, window), cell_shape)

    def sample_sum(self) -> Tensor:
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return torch.stack([s.sum((0, 2, 3, 4), dtype=dtype) for s in self.features.split(self.layout.counts)])

    def sample_max(self) -> Tensor:
        none = self.features.new_zeros(self.channels)
        samples = self.features.split(self.layout.counts)
        return torch.stack([s.amax((0, 2, 3, 4)) if len(s) else none for s in samples])

    def spread(self, samples: Tensor) -> Tensor:
        return samples if len(samples) == 1 else samples[self.layout.cells[:, 0]]


def _group_norm(blocks: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """GroupNorm of one sample, given as its blocks ``[n, C, d, h, w]``: the cells are one more spatial axis."""
    n, c, d, h, w = blocks.shape
    sample = blocks.transpose(0, 1).reshape(1, c, n * d, h, w)
    # torch's own, without the check in Python that refuses a group of one value: a sample may show a single site
    normal = torch.group_norm(sample, groups, weight, bias, eps).view(c, n, d, h, w).transpose(0, 1)
    return channels_last(normal)
