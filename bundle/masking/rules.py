# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules that choose which blocks of cells to hide in one sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from bundle.errors import UserError

__all__ = ["AdaptiveBlocks", "MaskRule", "block_numbers"]

Triple = tuple[int, int, int]


class MaskRule(ABC):
    """Chooses the hidden cells of one sample; a new rule says how large its blocks are and how many it hides."""

    @abstractmethod
    def block_size(self, grid: Triple) -> Triple:
        """Cells per block and axis on a grid of `grid` cells."""

    @abstractmethod
    def hidden_count(self, blocks: int) -> int:
        """How many of `blocks` blocks to hide."""

    def __call__(self, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Draws the hidden cells.

        Args:
            valid: bool ``[d, h, w]`` on cells, True where the sample has data. Only blocks with such a cell count.
            generator: all randomness comes from here.

        Returns:
            bool ``[d, h, w]``, True where a cell is valid and hidden.

        Raises:
            UserError: if fewer than two blocks have data, so that nothing can be hidden and something still seen.
        """
        grid = _triple(valid.shape)
        size = self.block_size(grid)
        blocks = block_numbers(grid, size)[valid].unique()
        while len(blocks) < 2 and max(size) > 1:  # a small volume in a large crop: finer blocks
            size = _triple(max(1, s // 2) for s in size)
            blocks = block_numbers(grid, size)[valid].unique()
        if len(blocks) < 2:
            raise UserError(
                f"cannot mask a grid of {list(grid)} cells with data in {int(valid.sum())} of them: at least two are "
                "needed; enlarge --crop_size, or leave out volumes smaller than two cells of the encoder's stride"
            )
        hide = min(max(self.hidden_count(len(blocks)), 1), len(blocks) - 1)
        chosen = blocks[torch.randperm(len(blocks), generator=generator)[:hide]]
        return torch.isin(block_numbers(grid, size), chosen) & valid


class AdaptiveBlocks(MaskRule):
    """Blocks that grow with the grid, so that the hidden part is neither trivial nor everything at any crop size.

    A block is 1 cell wide if the grid's smallest side is at most 2, 2 if at most 4, 3 if at most 8, else 4; the last
    block on an axis may be smaller. Of ``n`` blocks, ``int(n * ratio)`` are hidden, at least `min_masked` and at most
    ``max(1, n - min_unmasked)``. Rounding down and unequal blocks make the realised ratio differ from `ratio` (50 %
    hidden on grids of 2^3 and 4^3 cells, about 59 % on 8^3, at ratio 0.6); it is logged as ``mask_ratio``.

    Args:
        ratio: share of blocks to hide, between 0 and 1.
        min_masked: hide at least this many blocks.
        min_unmasked: leave at least this many blocks visible where there are more than that.
    """

    def __init__(self, *, ratio: float = 0.6, min_masked: int = 1, min_unmasked: int = 2) -> None:
        if not 0 < ratio < 1:
            raise UserError(f"mask ratio {ratio} is not between 0 and 1: set --mask_ratio, for example to 0.6")
        self.ratio, self.min_masked, self.min_unmasked = ratio, min_masked, min_unmasked

    def block_size(self, grid: Triple) -> Triple:
        side = min(grid)
        size = 1 if side <= 2 else 2 if side <= 4 else 3 if side <= 8 else 4
        return size, size, size

    def hidden_count(self, blocks: int) -> int:
        most = max(1, blocks - self.min_unmasked)
        return min(max(int(blocks * self.ratio), self.min_masked), most)


def block_numbers(grid: Triple, size: Triple) -> Tensor:
    """int64 ``[d, h, w]``: the number of the block that each cell of a grid belongs to."""
    d, h, w = (torch.arange(g) // s for g, s in zip(grid, size))
    blocks_h, blocks_w = -(-grid[1] // size[1]), -(-grid[2] // size[2])
    return (d[:, None, None] * blocks_h + h[:, None]) * blocks_w + w


def _triple(values: Iterable[int]) -> Triple:
    a, b, c = values
    return a, b, c
