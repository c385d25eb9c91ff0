# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The viewer of a page: scans with label maps over them, in three planes.

The viewer is NiiVue (https://niivue.com, BSD-2-Clause). Its built file lies in `static/`, compressed, as npm has it,
with its licence and its checksum. It is not a dependency: a page must open years later and without a network, so the
viewer has to be in the page; and PyPI's package of it, ipyniivue, brings Jupyter's widgets for that one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.colors import to_hex

from bundle.data.printable import printable
from bundle.errors import UserError
from bundle.figures.colours import class_colours
from bundle.reports.markup import text
from bundle.reports.volumes import PackedVolume, grey, pack_labels, pack_scan, shrink_to

__all__ = ["Case", "PackedCase", "pack_case", "viewer_markup"]

#: voxels that a telephone can hold twice as a texture of four bytes each
_MOST_VOXELS = 20_000_000
_FEWEST_VOXELS = 100_000


@dataclass(frozen=True)
class Case:
    """A scan and what was found in it.

    Args:
        name: to choose the case by.
        scan: ``[D, H, W]``, intensities.
        affine: [4, 4], from voxels to RAS mm.
        label_maps: ``[D, H, W]`` each, whole numbers on the scan's grid, by what they are, such as "prediction" and
            "reference". The last is on top.
        note: a line to show with it, such as the Dice.
        window: intensities shown as black and white at first; None: the scan's percentiles.
    """

    name: str
    scan: np.ndarray
    affine: np.ndarray
    label_maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for label, found in {"scan": self.scan, **self.label_maps}.items():
            if found.ndim != 3 or found.shape != self.scan.shape:
                raise UserError(
                    f"{self.name}: the {label} has the size {list(found.shape)}, the scan {list(self.scan.shape)}: "
                    "bring both to one grid of three axes"
                )


@dataclass(frozen=True)
class PackedCase:
    """A case as it is in a page."""

    name: str
    note: str
    focus: tuple[float, ...]  # where the viewer looks first, in RAS mm
    scan: PackedVolume
    label_maps: Mapping[str, PackedVolume]

    def __len__(self) -> int:
        return len(self.scan) + sum(len(one) for one in self.label_maps.values())


def pack_case(case: Case, classes: Mapping[str, int], most: int) -> PackedCase:
    """Makes a case small enough: 256 grey levels, then pictures of the slices, then larger voxels.

    Args:
        case: to pack.
        classes: value in the label maps by name.
        most: bytes in the page.
    """
    levels, span = grey(case.scan, case.window)
    spacing = np.linalg.norm(np.asarray(case.affine)[:3, :3], axis=0)
    voxels = _MOST_VOXELS
    while True:
        grid = shrink_to(case.scan.shape, spacing, voxels)
        label_maps = {
            name: pack_labels(found, grid, case.affine, list(classes.values()))
            for name, found in case.label_maps.items()
        }
        rest = most - sum(len(one) for one in label_maps.values())
        scan = pack_scan(levels, grid, case.affine, span, rest, case.window)
        if len(scan) <= rest or voxels <= _FEWEST_VOXELS:
            break
        voxels = int(0.9 * np.prod(grid.shape) * max(0.1, rest / len(scan)))
    notes = [case.note] if case.note else []
    if grid.factor != (1, 1, 1):
        size = " x ".join(f"{f * mm:.2g}" for f, mm in zip(grid.factor, spacing, strict=True))
        notes.append(f"shown with voxels of {size} mm, the files have {' x '.join(f'{mm:.2g}' for mm in spacing)} mm")
    if scan.coding == "webp":
        notes.append("grey values are compressed with loss")
    return PackedCase(case.name, "; ".join(notes), _focus(case, list(classes.values())), scan, label_maps)


def _focus(case: Case, values: Sequence[int]) -> tuple[float, ...]:
    """The slices with the most labelled voxels of the top label map, as the pictures show them; else the middle."""
    index = [(size - 1) / 2 for size in case.scan.shape]
    for labels in list(case.label_maps.values())[-1:]:
        lowest, highest = min(values, default=1), max(values, default=1)
        marked = (labels >= lowest) & (labels <= highest) & (labels != 0)
        for axis in range(3):
            counts = marked.sum(axis=tuple(other for other in range(3) if other != axis))
            if counts.any():
                index[axis] = float(np.flatnonzero(counts == counts.max()).mean())
    return tuple(float(one) for one in (np.asarray(case.affine) @ [*index, 1.0])[:3])


def viewer_markup(cases: Iterable[PackedCase], classes: Mapping[str, int], number: int) -> str:
    """The viewer's part of the page; `static/viewer.js` brings it to life."""
    cases = list(cases)
    about = {
        "classes": [
            {"name": printable(name), "colour": to_hex(colour)}
            for name, colour in zip(classes, class_colours(len(classes)), strict=True)
        ],
        "cases": [
            {
                "name": printable(case.name),
                "note": printable(case.note),
                "focus": case.focus,
                "scan": _about(case.scan, f"volume-{number}-{place}"),
                "labels": [
                    {"name": printable(name), **_about(one, f"volume-{number}-{place}-{layer}")}
                    for layer, (name, one) in enumerate(case.label_maps.items())
                ],
            }
            for place, case in enumerate(cases)
        ],
    }
    volumes = "".join(
        f'<script type="text/plain" id="{name}">{one.voxels}</script>' for name, one in _named(cases, number)
    )
    return (
        f'<div class="viewer" data-about="{text(json.dumps(about))}">'
        '<p class="wait">The viewer needs JavaScript and WebGL 2, which every browser of today has.</p></div>'
        f"{volumes}"
    )


def _about(volume: PackedVolume, name: str) -> dict[str, str]:
    return {"header": volume.header, "coding": volume.coding, "voxels": name}


def _named(cases: Iterable[PackedCase], number: int) -> Iterator[tuple[str, PackedVolume]]:
    for place, case in enumerate(cases):
        yield f"volume-{number}-{place}", case.scan
        for layer, one in enumerate(case.label_maps.values()):
            yield f"volume-{number}-{place}-{layer}", one
