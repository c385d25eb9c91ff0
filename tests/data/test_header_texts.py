# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/header_texts.py: NRRD and MetaImage files written by hand, so that their right places are known."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from bundle.data import read_volume
from bundle.errors import VolumeError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5)).astype("<i2")
SPACING, ORIGIN = np.array([0.9, 0.8, 3.0]), np.array([40.0, 50.0, 10.0])
RIGHT = np.diag([-1, -1, 1, 1]) @ np.block([[np.diag(SPACING), ORIGIN[:, None]], [0, 0, 0, 1]])  # files are LPS
GUESS = ("the header names no anatomical space, so left and right are a guess",)


def nrrd(
    file: Path, *fields: str, scale: float = 1, encoding: str = "raw", space: str = "LPS", end: str = "\n"
) -> Path:
    directions = " ".join(f"({','.join(map(str, row))})" for row in np.diag(SPACING * scale))
    lines = ["NRRD0005", "type: short", "dimension: 3", "sizes: 7 6 5", "endian: little", f"encoding: {encoding}"]
    lines += [
        f"space: {space}",
        f"space directions: {directions}",
        f"space origin: ({','.join(map(str, ORIGIN * scale))})",
    ]
    data = VOXELS.tobytes(order="F")
    text = end.join([*lines, *fields, "", ""]).encode()
    file.write_bytes(text + (gzip.compress(data) if encoding == "gzip" else data))
    return file


def mha(file: Path, *fields: str, scale: float = 1, data: bytes = VOXELS.tobytes(order="F")) -> Path:
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False", *fields]
    lines += [
        "Offset = " + " ".join(map(str, ORIGIN * scale)),
        "ElementSpacing = " + " ".join(map(str, SPACING * scale)),
    ]
    lines += ["DimSize = 7 6 5", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    file.write_bytes("\n".join(lines).encode() + data)
    return file


def assert_right(file: Path) -> None:
    volume = read_volume([str(file)], "a")
    np.testing.assert_array_equal(volume[0].numpy(), VOXELS)
    np.testing.assert_allclose(volume.affine.numpy(), RIGHT, atol=1e-6)
    assert "notes" not in volume.meta


@pytest.mark.parametrize(
    ("unit", "scale"), [("mm", 1), ("millimeters", 1), ("", 1), ("cm", 0.1), ("m", 1e-3), ("um", 1e3), ("µm", 1e3)]
)
def test_units_of_an_nrrd_become_millimetres(tmp_path: Path, unit: str, scale: float) -> None:
    assert_right(nrrd(tmp_path / "a.nrrd", "space units: " + " ".join([f'"{unit}"'] * 3), scale=scale))


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("?", 1), ("cm", 0.1), ("m", 1e-3), ("um", 1e3)])
def test_units_of_a_metaimage_become_millimetres(tmp_path: Path, unit: str, scale: float) -> None:
    assert_right(mha(tmp_path / "a.mha", f"DistanceUnits = {unit}", scale=scale))


@pytest.mark.parametrize(("units", "said"), [("furlong furlong furlong", "the unit furlong"), ("mm mm cm", "several")])
def test_units_that_are_not_known_are_refused(tmp_path: Path, units: str, said: str) -> None:
    file = nrrd(tmp_path / "a.nrrd", "space units: " + " ".join(f'"{unit}"' for unit in units.split()))
    with pytest.raises(VolumeError, match=f"^a: has {said}.* in its header, and not one that is known; save it in mm"):
        read_volume([str(file)], "a")


def test_size_of_an_element_is_not_the_distance_between_them(tmp_path: Path) -> None:
    assert_right(mha(tmp_path / "a.mha", "ElementSize = 1 1 1"))


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed"])
def test_space_that_is_not_anatomical_is_a_guess_and_said(tmp_path: Path, space: str) -> None:
    assert read_volume([str(nrrd(tmp_path / "a.nrrd", space=space))], "a").meta["notes"] == GUESS


@pytest.mark.parametrize("space", ["left-posterior-superior", "LPS"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_anatomical_space_is_no_guess(tmp_path: Path, space: str, end: str) -> None:
    assert_right(nrrd(tmp_path / "a.nrrd", space=space, end=end))


def damaged(file: Path, where: int) -> str:
    content = bytearray(file.read_bytes())
    content[where] ^= 0x55
    file.write_bytes(content)
    return str(file)


@pytest.mark.parametrize("where", [-60, -6, -2])
def test_damaged_voxels_of_a_compressed_nrrd_are_refused(tmp_path: Path, where: int) -> None:
    file = nrrd(tmp_path / "a.nrrd", encoding="gzip")
    assert_right(file)
    with pytest.raises(VolumeError, match=r"^a: cannot be read \(its compressed data are damaged"):
        read_volume([damaged(file, where)], "a")


def test_damaged_voxels_beside_their_header_are_refused(tmp_path: Path) -> None:
    header, _, voxels = nrrd(tmp_path / "a.nrrd", encoding="gzip").read_bytes().partition(b"\n\n")
    (tmp_path / "a.nhdr").write_bytes(header + b"\ndata file: a.raw.gz\n")
    (tmp_path / "a.raw.gz").write_bytes(voxels)
    assert_right(tmp_path / "a.nhdr")
    damaged(tmp_path / "a.raw.gz", -7)
    with pytest.raises(VolumeError, match=r"^a: cannot be read \(its compressed data are damaged"):
        read_volume([str(tmp_path / "a.nhdr")], "a")


@pytest.mark.parametrize("where", [-60, -2])
def test_damaged_voxels_of_a_compressed_metaimage_are_refused(tmp_path: Path, where: int) -> None:
    data = zlib.compress(VOXELS.tobytes(order="F"))
    fields = ("CompressedData = True", f"CompressedDataSize = {len(data)}")
    file = mha(tmp_path / "a.mha", *fields, data=data)
    assert_right(file)
    with pytest.raises(VolumeError, match=r"^a: cannot be read \(its compressed data are damaged"):
        read_volume([damaged(file, where)], "a")
