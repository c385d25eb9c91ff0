# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The `cells` executor: one small dense block per visible cell, and dense convolutions over the batch of blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.sparse.block_convolution import convolve_blocks
from bundle.sparse.layout import CellLayout, Triple
from bundle.sparse.volume import SparseVolume

__all__ = ["CellsVolume"]


class CellsVolume(SparseVolume, executor="cells"):
    """Stores ``[N, C, d, h, w]``, a block of ``d x h x w`` sites for each of the N visible cells, channels last.

    Nothing is stored or computed for absent cells, so norms and activations are torch's own on the blocks, and only
    a convolution wider than one site looks beyond a block, at its halo.
    """

    @classmethod
    def _from_dense(cls, image: Tensor, layout: CellLayout, block: Triple) -> CellsVolume:
        b, c, _, _, _ = image.shape
        gd, gh, gw = layout.grid
        d, h, w = block
        blocks = image.view(b, c, gd, d, gh, h, gw, w).permute(0, 2, 4, 6, 3, 5, 7, 1)[layout.visible]
        return cls(blocks.permute(0, 4, 1, 2, 3), layout, block)  # [N, C, d, h, w], channels last in memory

    def to_dense(self, fill: Tensor | None = None) -> Tensor:
        b, (gd, gh, gw), (d, h, w) = self.layout.batch, self.layout.grid, self.block
        blocks = self.features.permute(0, 2, 3, 4, 1)
        every = blocks.new_zeros(()) if fill is None else fill.to(self.dtype)
        every = every.expand(b * gd * gh * gw, d, h, w, self.channels).index_copy(0, self.layout.cell_numbers, blocks)
        dense = every.view(b, gd, gh, gw, d, h, w, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return dense.reshape(b, -1, gd * d, gh * h, gw * w)

    def at(self, sites: Tensor) -> Tensor:
        rows = self.features.permute(0, 2, 3, 4, 1).reshape(-1, self.channels)
        return rows[self.layout.site_rows(sites, self.block)]

    @property
    def channels(self) -> int:
        return self.features.shape[1]

    def pointwise(self, function: Callable[..., Tensor], *others: SparseVolume) -> SparseVolume:
        return self._like(function(self.features, *(other.features for other in others)))

    def convolve(
        self, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple, dilation: Triple, groups: int
    ) -> SparseVolume:
        block = self.strided_block(stride)
        features = convolve_blocks(
            self.features, weight, bias, self.layout, self.block, stride, padding, dilation, groups
        )
        return self._like(features, block)

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
        return self._like(
            F.batch_norm(self.features, running_mean, running_var, weight, bias, use_batch, momentum, eps)
        )

    def normalize_sample(
        self, groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> SparseVolume:
        # cells are sorted by sample, so a sample is one slice, and its norm is torch's own over that slice
        samples = self.features.split([count for count in self.layout.counts if count])
        if groups is None:
            normal = [torch.batch_norm(s, weight, bias, None, None, True, 0.0, eps, True) for s in samples]
        else:
            normal = [_group_norm(s, groups, weight, bias, eps) for s in samples]
        return self._like(normal[0] if len(normal) == 1 else torch.cat(normal))

    def average_blocks(self, kernel: Triple) -> SparseVolume:
        return self._like(F.avg_pool3d(self.features, kernel), self.strided_block(kernel))


def _group_norm(blocks: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """GroupNorm of one sample, given as its blocks ``[n, C, d, h, w]``: the cells are one more spatial axis."""
    n, c, d, h, w = blocks.shape
    sample = blocks.transpose(0, 1).reshape(1, c, n * d, h, w)
    normal = F.group_norm(sample, groups, weight, bias, eps).view(c, n, d, h, w).transpose(0, 1)
    return normal.contiguous(memory_format=torch.channels_last_3d)
