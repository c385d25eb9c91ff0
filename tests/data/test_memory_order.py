# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/memory_order.py: nothing but the order in memory changes."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from bundle.data.formats import read_by_nibabel
from bundle.data.memory_order import last_axis_fastest


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (31, 7, 5), (33, 9, 2), (70, 40, 3)])
def test_every_voxel_stays_where_it_is(shape: tuple[int, ...], order: str) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16, order=order)  # type: ignore[call-overload]
    made = last_axis_fastest(array, lambda block: block * np.float64(0.3))
    assert made.flags.c_contiguous and made.dtype == np.float32
    np.testing.assert_array_equal(made, (array * np.float64(0.3)).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.37, -12.3), (1.0, -1024.0)])
def test_a_scaled_file_is_read_as_nibabel_reads_it_to_the_last_bit(
    dtype: type, slope: float, inter: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = str(tmp_path_factory.mktemp("scaled") / "scan.nii.gz")
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 200, (40, 12, 5)).astype(dtype), np.eye(4))
    image.header.set_slope_inter(slope, inter)
    nibabel.save(image, file)
    expected = np.asanyarray(nibabel.load(file).dataobj, dtype=np.float32)
    np.testing.assert_array_equal(read_by_nibabel(file, "scan", stacked=False)[0][0], expected)
