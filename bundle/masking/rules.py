# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules that choose which blocks of cells to hide in one sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bundle.cells import Triple, triple
from bundle.errors import UserError

__all__ = ["AdaptiveBlocks", "MaskRule", "PhysicalBlocks", "UniformCells", "block_numbers"]

Ratio = float | Sequence[float]


class MaskRule(ABC):
    """Chooses the hidden cells of one sample; a new rule says how large its blocks are and how many it hides.

    Args:
        ratio: share of blocks to hide, between 0 and 1, or the two ends of a range from which each sample draws its
            own, evenly.

    Raises:
        UserError: if the ratio is not between 0 and 1.
    """

    def __init__(self, ratio: Ratio = 0.6) -> None:
        ends = (ratio, ratio) if isinstance(ratio, (int, float)) else tuple(ratio)
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] < 1:
            raise UserError(
                f"mask ratio {ratio} is not between 0 and 1: set --mask_ratio to a share such as 0.6 or to a range "
                "such as [0.6, 0.9]"
            )
        self.ratio: tuple[float, float] = (float(ends[0]), float(ends[1]))

    @abstractmethod
    def block_size(self, grid: Triple, cell_mm: Sequence[float]) -> Triple:
        """Cells per block and axis on a grid of `grid` cells that are `cell_mm` wide."""

    @abstractmethod
    def hidden_count(self, blocks: int, ratio: float) -> int:
        """How many of `blocks` blocks to hide."""

    def __call__(
        self,
        valid: Tensor,
        generator: torch.Generator,
        cell_mm: Sequence[float] = (1.0, 1.0, 1.0),
        weight: Tensor | None = None,
    ) -> Tensor:
        """Draws the hidden cells.

        Args:
            valid: bool ``[d, h, w]`` on cells, True where the sample has data. Only blocks with such a cell count.
            generator: all randomness comes from here.
            cell_mm: width of a cell on each axis.
            weight: float ``[d, h, w]``, none negative: blocks are drawn one after the other with chances in proportion
                to the mean weight of their valid cells; None draws evenly.

        Returns:
            bool ``[d, h, w]``, True where a cell is valid and hidden.

        Raises:
            UserError: if fewer than two blocks have data, so that nothing can be hidden and something still seen.
        """
        grid = triple(valid.shape)
        size = self.block_size(grid, cell_mm)
        blocks = block_numbers(grid, size)[valid].unique()
        while len(blocks) < 2 and max(size) > 1:  # a small volume in a large crop: finer blocks
            size = triple(max(1, s // 2) for s in size)
            blocks = block_numbers(grid, size)[valid].unique()
        if len(blocks) < 2:
            raise UserError(
                f"cannot mask a grid of {list(grid)} cells with data in {int(valid.sum())} of them: at least two are "
                "needed; enlarge --crop_size, or leave out volumes smaller than two cells of the encoder's stride"
            )
        numbers = block_numbers(grid, size)
        hide = min(max(self.hidden_count(len(blocks), self._draw_ratio(generator)), 1), len(blocks) - 1)
        if weight is None:
            order = torch.randperm(len(blocks), generator=generator)
        else:
            order = _weighted_order(_block_means(numbers, blocks, valid, weight), generator)
        return torch.isin(numbers, blocks[order[:hide]]) & valid

    def _draw_ratio(self, generator: torch.Generator) -> float:
        low, high = self.ratio
        return low if low == high else low + (high - low) * torch.rand((), generator=generator).item()


class AdaptiveBlocks(MaskRule):
    """Blocks that grow with the grid, so that the hidden part is neither trivial nor everything at any crop size.

    A block is 1 cell wide if the grid's smallest side is at most 2, 2 if at most 4, 3 if at most 8, else 4; the last
    block on an axis may be smaller. Of ``n`` blocks, ``int(n * ratio)`` are hidden, at least `min_masked` and at most
    ``max(1, n - min_unmasked)``. Rounding down and unequal blocks make the realised ratio differ from `ratio` (50 %
    hidden on grids of 2^3 and 4^3 cells, about 59 % on 8^3, at ratio 0.6); it is logged as ``mask_ratio``.

    Args:
        ratio: share of blocks to hide, or a range of shares.
        min_masked: hide at least this many blocks.
        min_unmasked: leave at least this many blocks visible where there are more than that.

    Examples:
        >>> rule = AdaptiveBlocks(ratio=0.6)
        >>> rule.block_size((6, 6, 6))  # of a 96^3 crop with cells of 16^3 voxels
        (3, 3, 3)
        >>> valid = torch.ones(6, 6, 6, dtype=torch.bool)
        >>> hidden = rule(valid, torch.Generator().manual_seed(0))
        >>> int(hidden.sum()) == 4 * 27  # int(8 * 0.6) of 8 blocks
        True
    """

    def __init__(self, *, ratio: Ratio = 0.6, min_masked: int = 1, min_unmasked: int = 2) -> None:
        super().__init__(ratio)
        self.min_masked, self.min_unmasked = min_masked, min_unmasked

    def block_size(self, grid: Triple, cell_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Triple:  # noqa: ARG002
        side = min(grid)
        size = 1 if side <= 2 else 2 if side <= 4 else 3 if side <= 8 else 4
        return size, size, size

    def hidden_count(self, blocks: int, ratio: float) -> int:
        most = max(1, blocks - self.min_unmasked)
        return min(max(int(blocks * ratio), self.min_masked), most)


class PhysicalBlocks(MaskRule):
    """Blocks of a size in mm, so that anisotropic volumes are hidden in pieces as wide as high.

    On each axis a block is as many cells as come closest to `block_mm`, at least one, and at most so many that the
    axis has two blocks, where it has two cells. Of ``n`` blocks, ``round(n * ratio)`` are hidden.

    Args:
        block_mm: width of a block, on all axes or on each.
        ratio: share of blocks to hide, or a range of shares.

    Examples:
        >>> rule = PhysicalBlocks(block_mm=32, ratio=0.5)
        >>> rule.block_size((8, 8, 8), cell_mm=(8, 8, 40))  # thick slices: one cell is wide enough
        (4, 4, 1)
        >>> valid = torch.ones(8, 8, 8, dtype=torch.bool)
        >>> hidden = rule(valid, torch.Generator().manual_seed(0), cell_mm=(8, 8, 40))
        >>> hidden.float().mean().item()
        0.5
    """

    def __init__(self, *, block_mm: float | Sequence[float] = 32.0, ratio: Ratio = 0.6) -> None:
        super().__init__(ratio)
        widths = (block_mm,) * 3 if isinstance(block_mm, (int, float)) else tuple(block_mm)
        if len(widths) != 3 or min(widths) <= 0:
            raise UserError(f"block_mm {block_mm} does not fit: give a width in mm such as 32, or one per axis")
        self.block_mm = widths

    def block_size(self, grid: Triple, cell_mm: Sequence[float]) -> Triple:
        return triple(
            min(max(1, round(wanted / mm)), max(1, -(-cells // 2)))
            for wanted, mm, cells in zip(self.block_mm, cell_mm, grid)
        )

    def hidden_count(self, blocks: int, ratio: float) -> int:
        return round(blocks * ratio)


class UniformCells(MaskRule):
    """Single cells, ``round(n * ratio)`` of them (SparK, arXiv:2301.03580, section 3.1).

    Args:
        ratio: share of cells to hide, or a range of shares.

    Examples:
        >>> rule = UniformCells(ratio=0.6)
        >>> valid = torch.ones(4, 4, 4, dtype=torch.bool)
        >>> valid[0] = False  # padding is never hidden
        >>> hidden = rule(valid, torch.Generator().manual_seed(0))
        >>> int(hidden.sum()), bool(hidden[0].any())  # round(48 * 0.6)
        (29, False)
    """

    def __init__(self, *, ratio: Ratio = 0.6) -> None:
        super().__init__(ratio)

    def block_size(self, grid: Triple, cell_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Triple:  # noqa: ARG002
        return 1, 1, 1

    def hidden_count(self, blocks: int, ratio: float) -> int:
        return round(blocks * ratio)


def block_numbers(grid: Triple, size: Triple) -> Tensor:
    """int64 ``[d, h, w]``: the number of the block that each cell of a grid belongs to."""
    d, h, w = (torch.arange(g) // s for g, s in zip(grid, size))
    blocks_h, blocks_w = -(-grid[1] // size[1]), -(-grid[2] // size[2])
    return (d[:, None, None] * blocks_h + h[:, None]) * blocks_w + w


def _block_means(numbers: Tensor, blocks: Tensor, valid: Tensor, weight: Tensor) -> Tensor:
    """``[len(blocks)]``, the mean weight of the valid cells of each block."""
    place = torch.searchsorted(blocks, numbers[valid])
    totals = torch.zeros(len(blocks), dtype=torch.float64).index_add_(0, place, weight[valid].double())
    return totals / torch.bincount(place, minlength=len(blocks))


def _weighted_order(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Draws without replacement with chances in proportion to `weight`; what weighs nothing comes last, in any order.

    By the ordering of exponential clocks (Efraimidis & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003).
    """
    clock = -torch.rand(len(weight), dtype=torch.float64, generator=generator).clamp(min=1e-300).log()
    return torch.where(weight > 0, clock / weight.clamp(min=1e-300), 1e300 * (1 + clock)).argsort()
