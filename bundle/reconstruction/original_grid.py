# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Back to the grid of the volume's file: spacing, crop, padding and orientation undone by the affines alone."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from torch import Tensor

from bundle.atomic import replace_file

__all__ = ["OriginalGrid"]

_SLAB = 32  # planes resampled at a time: the coordinates of all voxels of a large volume would take gigabytes


class OriginalGrid:
    """The grid of a volume as it was read.

    Args:
        original: ``[1, D, H, W]`` with its affine.
        prepared_affine: of the prepared volume.
    """

    def __init__(self, original: MetaTensor, prepared_affine: Tensor) -> None:
        self.affine, self.size = original.affine.double(), tuple(original.shape[1:])
        self.prepared_affine = prepared_affine.double()

    def resample(self, prepared: Tensor, *, nearest: bool = False) -> Tensor:
        """``[1, d, h, w]`` of the prepared grid on this one, ``[1, D, H, W]`` float32.

        Args:
            prepared: values, or a mask.
            nearest: takes the nearest voxel, and 0 outside the prepared volume: for masks. Else the values are
                interpolated linearly, and outside are those of the border.
        """
        source = MetaTensor(prepared.float(), affine=self.prepared_affine)
        resampler = SpatialResample(
            mode="nearest" if nearest else "bilinear",
            padding_mode="zeros" if nearest else "border",
            dtype=torch.float32,
        )
        slabs = []
        for first in range(0, self.size[0], _SLAB):
            shift = torch.eye(4, dtype=torch.float64)
            shift[0, 3] = first
            size = (min(_SLAB, self.size[0] - first), *self.size[1:])
            slab = resampler(source, dst_affine=self.affine @ shift, spatial_size=size)
            slabs.append(slab.as_subclass(Tensor))
        return torch.cat(slabs, 1)

    def write(self, values: Tensor, path: Path) -> None:
        """Writes ``[1, D, H, W]`` on this grid as a compressed NIfTI file of float32, with no text in its header."""
        affine = self.affine.cpu().numpy()
        image = nibabel.Nifti1Image(np.asarray(values[0].cpu(), dtype=np.float32), affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code=1)  # both forms say "scanner", so that no viewer reads another orientation
        image.set_sform(affine, code=1)
        with replace_file(path) as temporary:
            temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
