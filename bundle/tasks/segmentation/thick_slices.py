# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The encoder of a training from scratch, which has strides of its own where slices are thick."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.data.grids import file_grid, spacing_along_axes
from bundle.errors import UserError
from bundle.tasks.segmentation.find import find_segmentations

__all__ = ["scratch_encoder"]

logger = logging.getLogger(__name__)

#: label maps whose headers are read, spread over all
_READ = 50
#: takes no `resolution`
_FOR_CUBES = "SegResEncoder"
#: the same otherwise
_FOR_SLICES = "SegResNetDS"


def scratch_encoder(
    encoder: Mapping[str, Any],
    *,
    dataset_dir: str | os.PathLike[str],
    pretrained: str | os.PathLike[str] | None = None,
    spacing: Sequence[float | None] | str | None = None,
) -> dict[str, Any]:
    """The encoder that a segmentation network is built with where no weights tell it.

    Where voxels are at least twice as long as wide, a `SegResEncoder` with `resolution` "auto" becomes the encoder of a
    `SegResNetDS` with their size as `resolution`: its first levels halve the short axes alone, until voxels are nearly
    cubes, as nnU-Net plans it. scripts/studies/recipe.md says what that brings.

    Args:
        encoder: name and arguments, as for `build_encoder`. Its `resolution` is "auto", or mm per axis (R, A, S), or
            None: as for cubes.
        dataset_dir: labelled volumes, as for `find_segmentations`.
        pretrained: weights, which tell the encoder: nothing is read then.
        spacing: mm per axis (R, A, S) to which volumes are brought; None, also for an axis, or "own": their own, of
            which the median counts.

    Returns:
        Name and arguments, as for `build_encoder`.

    Raises:
        UserError: as `find_segmentations`; also for another `resolution`.
    """
    given = dict(encoder)
    resolution = given.pop("resolution", None)
    if resolution is None or (resolution == "auto" and (pretrained is not None or given.get("name") != _FOR_CUBES)):
        return given
    if resolution != "auto":
        if not _are_sizes(resolution):
            raise UserError(
                f"--encoder#resolution {resolution!r} does not fit: give auto, null, or mm per axis such as [1, 1, 5]"
            )
        name = _FOR_SLICES if given.get("name") == _FOR_CUBES else given.get("name")
        return {**given, "name": name, "resolution": list(resolution)}
    sizes = _voxel_size(dataset_dir, spacing)
    if sizes is None or max(sizes) < 2 * min(sizes):
        return given
    logger.info(
        "voxels are %.3g times as long as wide (%s mm): the first levels of the network halve the short axes alone; "
        "--encoder#resolution None is without that",
        max(sizes) / min(sizes),
        " x ".join(f"{size:g}" for size in sizes),
    )
    return {**given, "name": _FOR_SLICES, "resolution": sizes}


def _are_sizes(sizes: Any) -> bool:
    """Whether these are three lengths."""
    return (
        isinstance(sizes, Sequence)
        and len(sizes) == 3
        and all(isinstance(size, int | float) and 0 < size < float("inf") for size in sizes)
    )


def _voxel_size(
    dataset_dir: str | os.PathLike[str], spacing: Sequence[float | None] | str | None
) -> list[float] | None:
    """What volumes are brought to, in mm along R, A, S; None where it is unknown."""
    wanted = [None] * 3 if spacing is None or isinstance(spacing, str) else list(spacing)
    if not _are_sizes([1.0 if size is None else size for size in wanted]):  # which is refused elsewhere
        return None
    if None in wanted:
        found = find_segmentations(dataset_dir)
        chosen = [found[n] for n in np.linspace(0, len(found) - 1, min(len(found), _READ)).astype(int)]
        read = [own for volume in chosen if (own := _own_size(volume.annotations["label"])) is not None]
        if not read:
            return None
        wanted = [own if size is None else size for size, own in zip(wanted, np.median(read, axis=0), strict=True)]
    return [float(f"{size:.3g}") for size in wanted]


def _own_size(label: str | Mapping[str, str]) -> np.ndarray | None:
    """Of a label map's file, or of the first structure's: mm along R, A, S."""
    grid = file_grid(Path(label if isinstance(label, str) else next(iter(label.values()))))
    if grid is None:
        return None
    sizes = spacing_along_axes(grid[1])
    return sizes if (np.isfinite(sizes) & (sizes > 0)).all() else None
