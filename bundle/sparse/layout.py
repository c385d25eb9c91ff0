# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which cells of a batch of volumes are visible, and the index tables that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple, send
from bundle.sparse.places import Places, find_places

__all__ = ["CellLayout", "HaloTable"]

T = TypeVar("T")


@dataclass(frozen=True)
class HaloTable:
    """Where each site of a cell's block, widened by a halo, is read from, for some or all of the visible cells.

    Attributes:
        rows: ``[cells * P]`` int64, for each of the ``P`` sites of a widened block the row of the site in the features
            seen as ``[N * d * h * w, C]``; row 0 stands in where the site is absent.
        absent: ``[K]`` int64, the positions in ``rows`` whose site is absent.
        shape: sites per axis of a widened block, ``P`` in all.
        cells: which of the layout's ``N`` visible cells these are.
    """

    rows: Tensor
    absent: Tensor
    shape: Triple
    cells: slice


class CellLayout:
    """The visible cells of a batch, shared by every level of an encoder.

    A *cell* is one site of the coarsest feature map. At a finer level it covers more sites, for example 8 x 8 x 8
    three strides up: this is its *cell shape* there. A cell is visible or absent at all levels alike.

    Every number that shapes a table is counted on the CPU, and the tables are made on the device. So the host waits for
    a GPU once if the mask lies there, and never if it lies on the CPU. Every table is cached, so a network asks for it
    at no further cost.

    Args:
        visible: bool ``[B, 1, gd, gh, gw]`` or ``[B, gd, gh, gw]``, True where a cell is visible.
        device: where the features are; None for where the mask is.

    Raises:
        ValueError: if `visible` has another shape or type, or shows no cell at all.

    Example:
        >>> visible = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
        >>> visible[..., 1] = True  # the last half of the last axis
        >>> layout = CellLayout(visible)
        >>> len(layout), layout.grid
        (4, (2, 2, 2))
        >>> layout.site_mask((8, 8, 8)).shape  # on the voxels, if a cell is 8 x 8 x 8 of them
        torch.Size([1, 1, 16, 16, 16])
        >>> layout.count_sites((8, 8, 8))
        2048
    """

    def __init__(self, visible: Tensor, device: torch.device | None = None) -> None:
        if visible.ndim == 5 and visible.shape[1] == 1:
            visible = visible[:, 0]
        if visible.ndim != 4 or visible.dtype != torch.bool:
            raise ValueError(
                f"visible must be a bool tensor [B, 1, d, h, w] on cells, not {visible.dtype} {list(visible.shape)}"
            )
        with torch.inference_mode(False):  # as in `cached`
            visible = visible.clone()  # the caller may change it, and it may be of inference
            seen = visible.cpu()  # the one wait
            cells = seen.nonzero()  # sorted by sample
        if len(cells) == 0:
            raise ValueError("no cell is visible in any sample: lower the mask ratio or enlarge the crop")
        device = visible.device if device is None else device
        with torch.inference_mode(False):
            self.visible = send(visible, device)
            self.cells = send(cells, device)  # [N, 4]: sample, and the cell's place on each axis
        self.counts: list[int] = seen.flatten(1).sum(1).tolist()  # visible cells of each sample
        self._seen = seen.numpy()
        self._cache: dict[tuple[object, ...], object] = {}

    @property
    def batch(self) -> int:
        return self.visible.shape[0]

    @property
    def grid(self) -> Triple:
        """Cells per axis."""
        _, d, h, w = self.visible.shape
        return d, h, w

    @property
    def device(self) -> torch.device:
        return self.visible.device

    def __len__(self) -> int:
        """Visible cells in the whole batch."""
        return len(self.cells)

    @property
    def cell_numbers(self) -> Tensor:
        """``[N]`` int64: each visible cell's number among all cells of the batch, in raster order."""
        return self.cached(("cell numbers",), lambda: self._numbers((0, 0, 0)))

    def _numbers(self, reach: Triple) -> Tensor:
        """As `cell_numbers`, in a grid with so many more cells at each end of each axis."""
        sample, z, y, x = self.cells.unbind(1)
        d, h, w = (cells + 2 * more for cells, more in zip(self.grid, reach))
        numbers = torch.add(torch.add(torch.add(x, y, alpha=w), z, alpha=h * w), sample, alpha=d * h * w)
        first = (reach[0] * h + reach[1]) * w + reach[2]
        return numbers + first if first else numbers

    @property
    def slots(self) -> Tensor:
        """``[B, gd, gh, gw]`` int64: each cell's place among the visible ones, -1 where the cell is absent."""
        return self.cached(("places of cells",), self._slots)

    def _slots(self) -> Tensor:
        slots = torch.full(self.visible.shape, -1, dtype=torch.int64, device=self.device)
        slots.view(-1)[self.cell_numbers] = torch.arange(len(self), device=self.device)
        return slots

    def neighbour_cells(self, before: Triple, after: Triple) -> Tensor:
        """``[N, K]`` int32: which of the visible cells a cell's ``K`` neighbours are, itself among them; -1 if absent.

        Args:
            before: cells before each one on each axis.
            after: cells after it.
        """

        def make() -> Tensor:
            places = find_places((1, 1, 1), before, after, self.grid, self.device)  # each cell as if it were a site
            return self._slots_at(places, slice(None)).int()

        return self.cached(("neighbour cells", before, after), make)

    def _slots_at(self, places: Places, part: slice) -> Tensor:
        """``[cells, P]`` int64: in which of the visible cells the sites of widened blocks lie; -1 if absent."""

        def make() -> tuple[Tensor, Tensor]:
            padded = F.pad(self.slots, [r for axis in reversed(places.reach) for r in (axis, axis)], value=-1)
            return padded, self._numbers(places.reach)

        slots, numbers = self.cached(("slots", places.reach), make)
        return slots.take(numbers[part, None] + places.steps)

    def site_mask(self, cell_shape: Triple) -> Tensor:
        """Bool ``[B, 1, D, H, W]`` on the sites of the level whose cells have `cell_shape` sites per axis."""
        return self.cached(("mask", cell_shape), lambda: self._repeat(self.visible[:, None], cell_shape))

    def count_sites(self, cell_shape: Triple) -> int:
        """Visible sites in the whole batch, at the level whose cells have `cell_shape` sites per axis."""
        return len(self) * cell_shape[0] * cell_shape[1] * cell_shape[2]

    @property
    def divisors(self) -> Tensor:
        """``[B]`` int64 on the device: visible cells of each sample, to divide by, so one where there is none."""
        return self.cached(("divisors",), lambda: self.visible.flatten(1).sum(1).clamp(min=1))

    def halo(self, cell_shape: Triple, low: Triple, high: Triple) -> HaloTable:
        """The table that widens every visible cell's block by `low` sites before and `high` sites after it.

        A negative width leaves out that many of the block's sites. Sites outside the volume are absent.
        """
        return self.halos(cell_shape, low, high, parts=1)[0]

    def halos(self, cell_shape: Triple, low: Triple, high: Triple, parts: int) -> list[HaloTable]:
        """As `halo`, in `parts` tables of about as many cells each, in the cells' order."""
        return self.cached(
            ("halos", cell_shape, low, high, parts),
            lambda: [self._halo(part, cell_shape, low, high) for part in self._split(parts)],
        )

    def _split(self, parts: int) -> Iterator[slice]:
        first = 0
        for cells in self.cells.tensor_split(parts):
            yield slice(first, first + len(cells))
            first += len(cells)

    def _halo(self, part: slice, cell_shape: Triple, low: Triple, high: Triple) -> HaloTable:
        places = find_places(cell_shape, low, high, self.grid, self.device)
        # an absent site's slot is -1, and its row negative
        rows = torch.add(places.rows, self._slots_at(places, part), alpha=prod(cell_shape)).flatten()
        read = [[range(-lo, b + hi)] for b, lo, hi in zip(cell_shape, low, high)]
        count = int(self.count_absent(cell_shape, read, part).sum())
        absent = (rows < 0).nonzero_static(size=count)[:, 0]
        return HaloTable(rows.clamp_(min=0), absent, places.shape, part)

    def count_absent(
        self, cell_shape: Triple, sites: Sequence[Sequence[Iterable[int]]], part: slice = slice(None)
    ) -> np.ndarray:
        """How many of the sites that cells read are absent; counted on the CPU, whatever the device.

        Args:
            cell_shape: sites per cell and axis.
            sites: for each axis one or more lists of sites, 0 being the first one of the cell that reads.
            part: of the cells.

        Returns:
            int64 ``[lists, lists, lists]``: for each choice of one list per axis, the absent sites of the grids that
            the lists span, over all cells of the part.
        """
        steps = [[np.array([*one], np.int64) // b for one in axis] for axis, b in zip(sites, cell_shape)]
        reach = [max((int(abs(one).max()) for one in axis if len(one)), default=0) for axis in steps]
        times = [
            np.stack([np.bincount(one + most, minlength=2 * most + 1) for one in axis])
            for axis, most in zip(steps, reach)
        ]
        return np.einsum("zyx,iz,jy,kx->ijk", self._absent_near(tuple(reach), part), *times)

    def _absent_near(self, reach: tuple[int, ...], part: slice) -> np.ndarray:
        """For each step to a cell nearby: of how many of the cells it is absent."""

        def make() -> np.ndarray:
            outside = np.pad(~self._seen, [(0, 0), *((most, most) for most in reach)], constant_values=True)
            size = [2 * most + 1 for most in reach]
            # numpy's stub knows one axis only
            windows = np.lib.stride_tricks.sliding_window_view(outside, size, (1, 2, 3))  # type: ignore[call-overload]
            counts: np.ndarray = windows[self._seen][part].sum(0)
            return counts

        return self.cached(("absent near", reach, part.start, part.stop), make)

    def site_rows(self, sites: Tensor, cell_shape: Triple) -> Tensor:
        """Rows of the given visible sites in features seen as ``[N * d * h * w, C]``.

        Args:
            sites: int64 ``[M, 4]``: sample, and the site's place on each axis of the level's map. All must be visible.
            cell_shape: sites per cell and axis at that level.
        """
        d, h, w = cell_shape
        sample, z, y, x = sites.unbind(1)
        return self.slots[sample, z // d, y // h, x // w] * (d * h * w) + (z % d * h + y % h) * w + x % w

    def draw_sites(self, count: int, cell_shape: Triple, generator: torch.Generator | None = None) -> Tensor:
        """Draws up to `count` different visible sites of a level, evenly over all of them.

        Returns:
            int64 ``[M, 4]``: sample, and the site's place on each axis, ``M = min(count, all visible sites)``.
        """
        d, h, w = cell_shape
        device = self.device if generator is None else generator.device
        picked = torch.randperm(self.count_sites(cell_shape), generator=generator, device=device)[:count].to(
            self.device
        )
        sample, z, y, x = self.cells[torch.div(picked, d * h * w, rounding_mode="floor")].unbind(1)
        inside = picked % (d * h * w)
        return torch.stack([sample, z * d + inside // (h * w), y * h + inside // w % h, x * w + inside % w], dim=1)

    @staticmethod
    def _repeat(cells: Tensor, cell_shape: Sequence[int]) -> Tensor:
        for axis, times in zip((-3, -2, -1), cell_shape):
            cells = cells.repeat_interleave(times, dim=axis)
        return cells

    def cached(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """What `make` returns, made when first asked for under this key: tables are made once per mask."""
        if key not in self._cache:
            with torch.inference_mode(False):  # a table made in that mode could serve no gradient later
                self._cache[key] = make()
        return self._cache[key]  # type: ignore[return-value]  # each key has one type
