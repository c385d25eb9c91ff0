# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the programs read for each site that they write: computed from places and cells, not from lists of sites.

A site is a cell and a place in it. What it reads lies at a fixed distance, so its cell is one of the neighbours of the
site's cell. A table of each cell's neighbours is enough then, however many sites a cell has, and one table serves all
levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

import torch
from torch import Tensor

from bundle.cells import Triple, triple

__all__ = ["HEAD", "PLACE", "Reads", "SiteClass"]

#: numbers in a row of `Reads.table`: before the places, and for each place
HEAD, PLACE = 4, 4


@dataclass(frozen=True)
class SiteClass:
    """Target sites that read the same places of the kernel.

    Attributes:
        first: the place in the cell of the first of them; the others lie whole steps behind it.
        places: for each place of the kernel that they read, where the first of them reads its source, and the place.
    """

    first: Triple
    places: tuple[tuple[Triple, int], ...]


@dataclass(frozen=True, eq=False)
class Reads:
    """From the sites that are written, the targets, to those that are read, the sources.

    The target that is ``l`` steps behind the first one of its class reads the source that is ``l`` steps behind the
    first one's. Without a stride there is one class. The input's gradient of a strided convolution has one class for
    each phase of the stride.

    Attributes:
        target: sites per cell and axis that are written.
        target_step: from one target of a class to the next.
        source: sites per cell and axis that are read.
        source_step: from what one target of a class reads to what the next one reads.
        classes: all of them; each has as many sites.
    """

    target: Triple
    target_step: Triple
    source: Triple
    source_step: Triple
    classes: tuple[SiteClass, ...]

    @cached_property
    def steps(self) -> Triple:
        """Targets per cell and axis in a class."""
        return triple(sites // step for sites, step in zip(self.target, self.target_step))

    @cached_property
    def before(self) -> Triple:
        """Cells before a target's that are read, on each axis."""
        lowest = zip(*(place for one in self.classes for place, _ in one.places))
        return triple(max(0, -(min(places) // sites)) for places, sites in zip(lowest, self.source))

    @cached_property
    def after(self) -> Triple:
        """Cells after a target's that are read, on each axis."""
        highest = zip(*(place for one in self.classes for place, _ in one.places))
        axes = zip(highest, self.source, self.source_step, self.steps)
        return triple(max(0, (max(places) + step * (n - 1)) // sites) for places, sites, step, n in axes)

    @cached_property
    def near(self) -> Triple:
        """Cells that are read, on each axis."""
        return triple(before + 1 + after for before, after in zip(self.before, self.after))

    @cached_property
    def most_places(self) -> int:
        """Places of the kernel that the class with most of them reads."""
        return max(len(one.places) for one in self.classes)

    def table(self, device: torch.device) -> Tensor:
        """int32 ``[classes, HEAD + PLACE * most_places]``: the number of places, the first target, then the places.

        A place is three coordinates and the place of the kernel. The coordinates count from the first cell that is
        read, so none is negative.
        """
        return _make_table(self, device)


@lru_cache(maxsize=1024)
def _make_table(reads: Reads, device: torch.device) -> Tensor:
    """The table, made once per process: to copy it to the device makes the host wait."""
    origin = [cells * sites for cells, sites in zip(reads.before, reads.source)]
    rows = []
    for one in reads.classes:
        places = [(*(a + b for a, b in zip(place, origin)), number) for place, number in one.places]
        row = [len(places), *one.first, *chain.from_iterable(places)]
        rows.append(row + [0] * (HEAD + PLACE * reads.most_places - len(row)))
    return torch.tensor(rows, dtype=torch.int32, device=device)
