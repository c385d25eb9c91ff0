# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The encoder of a training from scratch, which has strides of its own where slices are thick."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from bundle.data.grids import file_grid
from bundle.tasks.segmentation.find import find_segmentations

__all__ = ["scratch_encoder"]

logger = logging.getLogger(__name__)

#: label maps whose headers are read, spread over all
_READ = 50


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
        encoder: name and arguments, as for `build_encoder`. It is left as it is unless `resolution` is "auto"; None is
            left out.
        dataset_dir: labelled volumes, as for `find_segmentations`.
        pretrained: weights, which tell the encoder: nothing is read then.
        spacing: mm per axis (R, A, S) to which volumes are brought; None, also for an axis, or "own": their own, of
            which the median counts.

    Returns:
        Name and arguments, as for `build_encoder`.

    Raises:
        UserError: as `find_segmentations`.
    """
    given = dict(encoder)
    resolution = given.pop("resolution", None)
    if resolution != "auto":
        return given if resolution is None else {**given, "resolution": resolution}
    if pretrained is not None or given.get("name") != "SegResEncoder":
        return given
    sizes = _voxel_size(dataset_dir, spacing)
    if sizes is None or max(sizes) < 2 * min(sizes):
        return given
    logger.info(
        "voxels are %.3g times as long as wide (%s mm): the first levels of the network halve the short axes alone; "
        "--encoder#resolution None is without that",
        max(sizes) / min(sizes),
        " x ".join(f"{size:g}" for size in sizes),
    )
    return {**given, "name": "SegResNetDS", "resolution": sizes}


def _voxel_size(
    dataset_dir: str | os.PathLike[str], spacing: Sequence[float | None] | str | None
) -> list[float] | None:
    """What volumes are brought to, in mm along R, A, S; None where it is unknown."""
    wanted = [None] * 3 if spacing is None or isinstance(spacing, str) else list(spacing)
    if len(wanted) != 3:  # which is refused elsewhere
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
    affine = grid[1]
    sizes = np.empty(3)
    sizes[nibabel.io_orientation(affine)[:, 0].astype(int)] = nibabel.affines.voxel_sizes(affine)
    return sizes if (np.isfinite(sizes) & (sizes > 0)).all() else None
