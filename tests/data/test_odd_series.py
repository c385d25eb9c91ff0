# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Each kind of odd DICOM series has the values and places that it was made of, by this reader and by others.

The other readers are ITK's and highdicom's, where they read a kind rightly: they refuse or misplace the rest.
"""

from __future__ import annotations

from pathlib import Path

import highdicom
import itk
import numpy as np
import pydicom
import pytest
from monai.data import ITKReader

from bundle.data import find_volumes, read_volume
from tests.data.odd_series import ODD_SERIES, Written, real_voxels, write

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def hu(data_dir: Path) -> np.ndarray:
    return real_voxels(data_dir)


def by_itk(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[columns, rows, slices]`` and affine by ITK's own sorting of the files."""
    names = itk.GDCMSeriesFileNames.New()
    names.SetDirectory(str(Path(files[0]).parent))
    (uid,) = names.GetSeriesUIDs()
    array, meta = ITKReader().get_data(itk.imread(list(names.GetFileNames(uid)), pixel_type=itk.F))
    return array, np.asarray(meta["affine"])


def by_highdicom(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The same by highdicom, which has the slices first."""
    headers = [pydicom.dcmread(file) for file in files]
    for header in headers:
        header.FrameOfReferenceUID = "1.2.3.5"  # it reads no image without one
    if "NumberOfFrames" in headers[0]:
        volume = highdicom.Image.from_dataset(headers[0]).get_volume()
    else:
        volume = highdicom.get_volume_from_series(headers)
    turn = np.eye(4)[[2, 1, 0, 3]]  # its index is (slice, row, column)
    return volume.array.transpose(2, 1, 0), LPS_TO_RAS @ volume.affine @ turn


READERS = {"itk": by_itk, "highdicom": by_highdicom}


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    (found,) = find_volumes(folder)
    volume = read_volume(found.files, "series")
    return volume[0].numpy(), volume.affine.numpy()


def assert_equal(read: tuple[np.ndarray, np.ndarray], values: np.ndarray, affine: np.ndarray) -> None:
    """The same values at the same places, also where the order of the slices is the other way round."""
    array, own = read
    if own[:3, 2] @ affine[:3, 2] < 0:
        array, own = (
            array[:, :, ::-1],
            own @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, array.shape[2] - 1], [0, 0, 0, 1]]),
        )
    np.testing.assert_allclose(own, affine, atol=1e-3)
    np.testing.assert_allclose(array, values, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("name", ODD_SERIES)
def test_an_odd_series_has_the_values_and_places_that_it_was_made_of(name: str, hu: np.ndarray, tmp_path: Path) -> None:
    series = ODD_SERIES[name](hu)
    write(series, tmp_path)
    assert_equal(read(tmp_path), series.values.transpose(2, 1, 0), series.affine)


def with_reader() -> list[tuple[str, str]]:
    voxels = np.zeros((16, 40, 48), dtype=np.int64)
    return [(name, reader) for name, make in ODD_SERIES.items() for reader in make(voxels).readers]


@pytest.mark.parametrize(("name", "reader"), with_reader())
def test_another_library_reads_the_same(name: str, reader: str, hu: np.ndarray, tmp_path: Path) -> None:
    series: Written = ODD_SERIES[name](hu)
    files = write(series, tmp_path)
    assert_equal(read(tmp_path), *READERS[reader](files))
