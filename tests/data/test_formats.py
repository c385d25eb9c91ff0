# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/formats.py and sanity.py: units, kinds of numbers and sizes, against nibabel, ITK and plain numbers."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest

from bundle.data import find_volumes, read_volume
from bundle.data.formats import read_file_header
from bundle.errors import VolumeError
from tests.data.volumes import ct_phantom, write_nifti

AFFINE = np.array([[-0.9, 0, 0, 40], [0, -0.8, 0, 50], [0, 0, 3, 10], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(("unit", "per_mm"), [("micron", 1000), ("meter", 0.001), ("mm", 1), ("unknown", 1)])
def test_units_of_nifti_become_millimetres(tmp_path: Path, unit: str, per_mm: float) -> None:
    image = nibabel.Nifti1Image(ct_phantom(), np.diag([per_mm] * 3 + [1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume([str(tmp_path / "a.nii.gz")], "a")
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-4)
    assert "notes" not in volume.meta


@pytest.mark.parametrize(("unit", "per_mm"), [("micron", 1000), ("meter", 0.001)])
def test_origin_that_makes_no_sense_in_the_unit_of_the_voxels_is_in_millimetres(
    tmp_path: Path, unit: str, per_mm: float
) -> None:
    image = nibabel.Nifti1Image(ct_phantom(), AFFINE @ np.diag([per_mm] * 3 + [1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume([str(tmp_path / "a.nii.gz")], "a")
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-4)
    assert f"units are {unit}s; its origin is taken as mm" in volume.meta["notes"][0]


@pytest.mark.parametrize(
    ("voxels", "complaint"),
    [
        (ct_phantom() * (1 + 1j), "holds complex numbers"),
        (np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "holds colours"),
        (ct_phantom()[None], r"has a first axis of 1 \(1 x 24 x 20 x 16\)"),
    ],
)
def test_what_is_no_volume_of_plain_numbers_is_refused_by_name(
    tmp_path: Path, voxels: np.ndarray, complaint: str
) -> None:
    voxels = voxels.astype(np.complex64) if voxels.dtype.kind == "c" else voxels
    file = write_nifti(tmp_path / "a.nii", voxels)
    with pytest.raises(VolumeError, match=complaint):
        read_volume([str(file)], "a")
    with pytest.raises(VolumeError, match=complaint):  # as an index asks, which counts channels
        read_file_header(str(file), "a", stacked=True)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64"])
def test_all_kinds_of_numbers_are_read(tmp_path: Path, ending: str, kind: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(kind)  # slices, rows, columns
    if kind[0] in "if":
        voxels[0, 0, 0] = -7
    if kind in ("int64", "uint64"):
        voxels[1, 0, 0] = 2**40
    name = {"int8": "signed char", "uint8": "unsigned char", "float64": "double"}.get(kind, kind)
    met = {"int64": "MET_LONG_LONG", "uint64": "MET_ULONG_LONG", "float64": "MET_DOUBLE", "int8": "MET_CHAR"}
    met |= {
        "uint8": "MET_UCHAR",
        "int16": "MET_SHORT",
        "uint16": "MET_USHORT",
        "int32": "MET_INT",
        "uint32": "MET_UINT",
    }
    headers = {
        "nrrd": f"NRRD0004\ntype: {name}\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\nendian: little\nencoding: raw\n\n",
        "mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nOffset = 1 2 3\n"
        f"ElementSpacing = 2 3 4\nDimSize = 6 5 4\nElementType = {met[kind]}\nElementDataFile = LOCAL\n",
    }
    file = tmp_path / f"a.{ending}"
    file.write_bytes(headers[ending].encode() + voxels.tobytes())
    volume = read_volume([str(file)], "a")
    np.testing.assert_array_equal(volume[0].numpy(), voxels.transpose(2, 1, 0).astype(np.float32))
    np.testing.assert_allclose(
        volume.affine.numpy(), [[-2, 0, 0, -1], [0, -3, 0, -2], [0, 0, 4, 3], [0, 0, 0, 1]], atol=1e-6
    )


def test_colours_are_not_turned_to_grey(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    itk.imwrite(itk.image_from_array(voxels, is_vector=True), tmp_path / "a.mha")
    with pytest.raises(VolumeError, match="several values per voxel"):
        read_volume([str(tmp_path / "a.mha")], "a")


def test_freesurfer_files_are_found_and_read(tmp_path: Path) -> None:
    voxels = ct_phantom().astype(np.float32)
    nibabel.save(nibabel.MGHImage(voxels, AFFINE), tmp_path / "brain.mgz")
    (found,) = find_volumes(tmp_path)
    volume = read_volume(found.files, found.name)
    np.testing.assert_array_equal(volume[0].numpy(), voxels)
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-4)


def test_pair_of_nifti_is_read_and_a_pair_of_analyze_is_refused_by_name(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(ct_phantom(), AFFINE), tmp_path / "nifti.img")
    nibabel.save(nibabel.AnalyzeImage(ct_phantom(), np.diag([-1, 1, 1, 1])), tmp_path / "analyze.img")
    analyze, pair = find_volumes(tmp_path)
    assert (analyze.name, pair.name) == ("analyze.hdr", "nifti.hdr")
    np.testing.assert_allclose(read_volume(pair.files, pair.name).affine.numpy(), AFFINE, atol=1e-5)
    with pytest.raises(VolumeError, match="is an Analyze image, whose header does not tell left from right"):
        read_volume(analyze.files, analyze.name)


@pytest.mark.parametrize("size", [977.0, 1e-4])
def test_voxel_size_that_cannot_be_true_is_refused(tmp_path: Path, size: float) -> None:
    file = write_nifti(tmp_path / "a.nii", ct_phantom(), np.diag([size, size, size, 1]))
    with pytest.raises(VolumeError, match="mm, which cannot be true; correct the units or voxel size"):
        read_volume([str(file)], "a")


def test_volume_that_is_longer_than_any_scanner_is_refused(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii", np.zeros((300, 4, 5), np.int16), np.diag([90, 1, 1, 1]))
    with pytest.raises(VolumeError, match="is 27 m long"):
        read_volume([str(file)], "a")


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd"])
def test_size_that_fits_in_no_memory_is_refused_before_it_is_asked_for(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    if ending == "nrrd":
        file.write_text(
            "NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 30000\nendian: little\nencoding: raw\n\n"
        )
    else:
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.int16)
        header.set_data_shape((30000, 30000, 30000))
        header["pixdim"][1:4] = 0.1
        header["vox_offset"], header["magic"] = 352, b"n+1"
        content = header.binaryblock + bytes(400)
        file.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(VolumeError, match=r"would take 1.01e\+05 GiB \(30000 x 30000 x 30000 voxels\)"):
        read_volume([str(file)], "a")


@pytest.mark.parametrize("origin", [[0.45, 0.4, 1.5], [0, 0, 0.5], [0.45, 0, -1.5]])
def test_origin_within_a_voxel_in_micrometres_is_one(tmp_path: Path, origin: list[float]) -> None:
    affine = np.diag([0.9, 0.8, 3, 1.0])
    affine[:3, 3] = np.array(origin)
    image = nibabel.Nifti1Image(ct_phantom(), np.diag([1000, 1000, 1000, 1.0]) @ affine)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume([str(tmp_path / "a.nii")], "a")
    np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-5)


@pytest.mark.parametrize("fov", [1, 12])  # one of a few mm, and one of a patient
def test_any_origin_within_a_voxel_in_micrometres_is_one_unless_in_mm_it_is_around_the_centre(
    tmp_path: Path, fov: int
) -> None:
    affine = np.diag([0.9 * fov, 0.8 * fov, 3 * fov, 1.0])
    affine[:3, 3] = [-0.4, 0.3, 0.12]
    image = nibabel.Nifti1Image(ct_phantom(), np.diag([1000, 1000, 1000, 1.0]) @ affine)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume([str(tmp_path / "a.nii")], "a")
    np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-5)
    said = "units are microns; its origin, less than a voxel, is taken so, too, but may be in mm"
    assert volume.meta["notes"] == (said,)


def test_sform_is_taken_where_the_qform_differs_and_said(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ct_phantom(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE @ np.diag([1, -1, 1, 1.0]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume([str(tmp_path / "a.nii.gz")], "a")
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-5)
    far = 2 * 0.8 * (ct_phantom().shape[1] - 1)
    assert volume.meta["notes"] == (f"sform and qform are up to {far:.3g} apart; the sform is taken",)


def test_header_that_tells_no_directions_is_a_guess_and_said(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ct_phantom(), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    notes = read_volume([str(tmp_path / "a.nii")], "a").meta["notes"]
    assert notes == ("the header has neither sform nor qform, so left and right are a guess",)


def patched(file: Path, offset: int, kind: str, *values: float) -> str:
    """Writes values into the header of a file, and gives its path."""
    content = bytearray(file.read_bytes())
    struct.pack_into(f"<{len(values)}{kind}", content, offset, *values)
    file.write_bytes(content)
    return str(file)


@pytest.mark.parametrize("pixdim", [(2, 2, 0), (0, 2, 2)])
def test_voxel_size_of_zero_is_refused_where_it_counts(tmp_path: Path, pixdim: tuple[float, ...]) -> None:
    """nibabel takes 1 for it, and says so in a log that names no file."""
    image = nibabel.Nifti1Image(ct_phantom(), None)
    image.set_qform(np.diag([2, 2, 2, 1]), code=1)
    nibabel.save(image, tmp_path / "a.nii")
    file = patched(tmp_path / "a.nii", 80, "f", *pixdim)
    with pytest.raises(VolumeError, match="a: has no valid affine: a voxel size is 0"):
        read_volume([file], "a")
    write_nifti(tmp_path / "b.nii", ct_phantom(), AFFINE)  # by its sform
    volume = read_volume([patched(tmp_path / "b.nii", 80, "f", *pixdim)], "b")
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-4)


@pytest.mark.parametrize(("kind", "place", "code"), [(nibabel.Nifti1Image, 108, "f"), (nibabel.Nifti2Image, 168, "q")])
def test_header_is_not_read_as_voxels(tmp_path: Path, kind: type, place: int, code: str) -> None:
    nibabel.save(kind(ct_phantom(), AFFINE), tmp_path / "a.nii")
    assert read_volume([str(tmp_path / "a.nii")], "a").shape == (1, 24, 20, 16)
    with pytest.raises(VolumeError, match="has its first voxel at byte 0, inside its header; set vox_offset to"):
        read_volume([patched(tmp_path / "a.nii", place, code, 0)], "a")


@pytest.mark.parametrize("values", [(0.7072, 0.7072, 0.0), (float("nan"), 0.0, 0.0), (3.0, 0.0, 0.0)])
def test_qform_that_is_not_valid_is_passed_over_and_said(tmp_path: Path, values: tuple[float, ...]) -> None:
    image = nibabel.Nifti1Image(ct_phantom(), AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume([patched(tmp_path / "a.nii", 256, "f", *values)], "a")
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-4)
    assert volume.meta["notes"] == ("the qform is not valid; the sform is taken",)


def test_unknown_unit_of_length_is_taken_as_millimetres_and_said(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", ct_phantom(), AFFINE)
    volume = read_volume([patched(tmp_path / "a.nii", 123, "B", 7)], "a")
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-4)
    assert "does not know, 7; mm are taken" in volume.meta["notes"][0]
    assert "notes" not in read_volume([patched(tmp_path / "a.nii", 123, "B", 2 + 0x38)], "a").meta  # of time


def test_name_against_the_compression_is_told_with_the_right_name(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii", ct_phantom())
    file.rename(tmp_path / "b.nii.gz")
    with pytest.raises(VolumeError, match=r"not compressed by gzip; rename it to \.nii$"):
        read_volume([str(tmp_path / "b.nii.gz")], "b")
    write_nifti(tmp_path / "a.nii.gz", ct_phantom()).rename(tmp_path / "c.nii")
    with pytest.raises(VolumeError, match=r"compressed by gzip and not called .*; rename it to \.nii\.gz$"):
        read_volume([str(tmp_path / "c.nii")], "c")


@pytest.mark.parametrize("damage", ["checksum", "end", "junk"])
def test_damage_at_the_end_of_a_compressed_nifti_is_noticed(tmp_path: Path, damage: str) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", ct_phantom())
    whole = file.read_bytes()
    checksum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    file.write_bytes({"checksum": checksum, "end": whole[:-4], "junk": whole + b"junk"}[damage])
    with pytest.raises(VolumeError, match=r"^a: cannot be read"):
        read_volume([str(file)], "a")


def test_compressed_nifti_in_several_parts_is_read(tmp_path: Path) -> None:
    content = gzip.decompress(write_nifti(tmp_path / "a.nii.gz", ct_phantom()).read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:999]) + gzip.compress(content[999:]) + bytes(64))
    np.testing.assert_array_equal(read_volume([str(tmp_path / "a.nii.gz")], "a")[0].numpy(), ct_phantom())
