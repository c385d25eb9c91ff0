# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/read.py: voxels and affines against other readers, and every volume that cannot be used."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel
import numpy as np
import pydicom
import pytest
from monai.transforms import Orientation

from bundle.data import ReadVolumed, find_volumes, read_volume
from bundle.errors import VolumeError
from tests.data.volumes import PATIENT, ct_phantom, mr_phantom, write_dicom, write_nifti


def test_nifti_has_the_voxels_and_affine_that_nibabel_reads(data_dir: Path) -> None:
    file = data_dir / "volumes/ct_spine_tptbox.nii.gz"
    volume, expected = read_volume([str(file)], "spine"), nibabel.load(file)
    assert volume.shape == (1, *expected.shape)
    np.testing.assert_array_equal(volume[0].numpy(), expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine.numpy(), expected.affine, atol=1e-5)


def test_nrrd_is_read_to_ras_millimetres(data_dir: Path) -> None:
    file = data_dir / "volumes/mr_brain_radiomics1.nrrd"
    volume, image = read_volume([str(file)], "brain"), itk.imread(file)
    np.testing.assert_array_equal(volume[0].numpy(), itk.array_from_image(image).transpose(2, 1, 0))
    for index in ([0, 0, 0], [10, 200, 7]):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(volume.affine.numpy() @ [*index, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-3)


def test_dicom_series_equals_the_same_scan_as_nifti(data_dir: Path) -> None:
    (found,) = [v for v in find_volumes(data_dir / "dicom") if v.name == "ct_chest_lidc"]
    series = read_volume(found.files, found.name)
    nifti = read_volume([str(data_dir / "volumes/ct_chest_lidc.nii.gz")], "chest")
    assert series.shape == nifti.shape == (1, 512, 512, 133)
    # the NIfTI file was written with its second axis reversed
    np.testing.assert_array_equal(series[0].numpy(), nifti[0].numpy()[:, ::-1])
    np.testing.assert_allclose(series.pixdim.numpy(), nifti.pixdim.numpy(), atol=1e-4)


def test_jpeg2000_series_is_decoded_to_hounsfield_units(data_dir: Path) -> None:
    (found,) = [v for v in find_volumes(data_dir / "dicom") if v.name == "ct_body_totalseg"]
    volume = read_volume(found.files, found.name)
    slices = [pydicom.dcmread(file) for file in found.files]  # pydicom decodes them by Pillow, the bundle by ITK
    expected = np.stack([s.pixel_array.T * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices], axis=-1)
    np.testing.assert_array_equal(volume[0].numpy(), expected.astype(np.float32))


def test_dicom_slices_are_stacked_by_position_and_rescaled(tmp_path: Path) -> None:
    array = ct_phantom((12, 10, 8))
    write_dicom(tmp_path, array, thickness=2.5)
    (found,) = find_volumes(tmp_path)
    volume = read_volume(found.files, "series")
    np.testing.assert_array_equal(volume[0].numpy(), array.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine.numpy(), np.diag([-1, -1, 2.5, 1]))  # DICOM's axes are to LPS


@pytest.mark.parametrize("name", ["ct_spine_tptbox", "mr_spine_tptbox"])
def test_volume_to_pir_is_turned_to_ras_with_its_anatomy(data_dir: Path, name: str) -> None:
    file = data_dir / f"volumes/{name}.nii.gz"
    assert nibabel.aff2axcodes(nibabel.load(file).affine) == ("P", "I", "R")
    volume = Orientation(axcodes="RAS", labels=None)(read_volume([str(file)], name))
    expected = nibabel.as_closest_canonical(nibabel.load(file))
    np.testing.assert_array_equal(volume[0].numpy(), expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine.numpy(), expected.affine, atol=1e-4)


def test_singleton_axes_are_dropped(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "a.nii", ct_phantom()[..., None])
    assert read_volume([str(file)], "a").shape == (1, 24, 20, 16)


def test_metadata_of_the_header_is_not_kept(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct_phantom((4, 8, 8)))
    (found,) = find_volumes(tmp_path)
    kept = str(read_volume(found.files, "series").meta)
    assert not [value for value in (*PATIENT.values(), str(tmp_path)) if value in kept]


def colour(file: Path) -> None:
    voxels = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    write_nifti(file, voxels)


def colour_nrrd(file: Path) -> None:
    itk.imwrite(itk.image_from_array(np.zeros((8, 8, 8, 3), dtype=np.uint8), is_vector=True), file)


def with_nan(file: Path) -> None:
    array = ct_phantom().astype(np.float32)
    array[3, 4, 5], array[4, 4, 4] = np.nan, np.inf
    write_nifti(file, array)


def truncated(file: Path) -> None:
    write_nifti(file, ct_phantom((64, 64, 64)))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_voxel_size(file: Path) -> None:
    write_nifti(file, ct_phantom())
    with file.open("r+b") as header:
        header.seek(312)  # srow_z of the NIfTI-1 header: nibabel itself writes no such affine
        header.write(bytes(16))


BAD_FILES = {
    "empty.nii": (lambda file: file.touch(), "cannot be read"),
    "empty.nrrd": (lambda file: file.touch(), "cannot be read"),
    "text.nii.gz": (lambda file: file.write_text("not a volume"), "cannot be read"),
    "truncated.nii": (truncated, "cannot be read"),
    "truncated.nii.gz": (truncated, "cannot be read"),
    "plane.nii": (lambda file: write_nifti(file, ct_phantom()[:, :, 3]), r"is a 2D image \(24 x 20\)"),
    "slice.nii": (lambda file: write_nifti(file, ct_phantom()[:, :, :1]), r"is a 2D image \(24 x 20 x 1\)"),
    "series.nii": (lambda file: write_nifti(file, np.stack([ct_phantom()] * 3, -1)), "is a 4D series"),
    "colour.nii": (colour, "holds colours"),
    "colour.nrrd": (colour_nrrd, "several values per voxel"),
    "nan.nii": (with_nan, "holds 2 voxels that are NaN or infinite"),
    "constant.nii": (lambda file: write_nifti(file, np.full((8, 8, 8), 7, np.int16)), "is constant"),
    "spacing.nii": (without_voxel_size, "has no valid affine"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unusable_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, complaint = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(VolumeError, match=complaint) as raised:
        read_volume([str(tmp_path / name)], name)
    assert str(raised.value).startswith(f"{name}: ") and "\n" not in str(raised.value) and raised.value.remedy


def test_slices_missing_from_a_series_are_counted(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct_phantom((12, 8, 8)), leave_out=(4, 5, 9))
    (found,) = find_volumes(tmp_path)
    with pytest.raises(VolumeError, match=r"lacks 3 of its DICOM slices, in 2 place\(s\)"):
        read_volume(found.files, "series")


def test_series_over_time_is_refused(tmp_path: Path) -> None:
    for time in range(2):
        write_dicom(tmp_path, ct_phantom((6, 8, 8), seed=time), series="1.2.3", name=f"time{time}")
    (found,) = find_volumes(tmp_path)
    with pytest.raises(VolumeError, match="several slices at one position"):
        read_volume(found.files, "series")


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    files = write_dicom(tmp_path, ct_phantom((4, 8, 8))) + write_dicom(tmp_path, ct_phantom((1, 8, 9)), name="scout")
    with pytest.raises(VolumeError, match="mixes slices of different size"):
        read_volume([str(file) for file in files], "series")


def test_series_of_one_slice_is_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct_phantom((1, 8, 8)))
    (found,) = find_volumes(tmp_path)
    with pytest.raises(VolumeError, match="DICOM series of one slice"):
        read_volume(found.files, "series")


def test_truncated_slice_is_refused(tmp_path: Path) -> None:
    files = write_dicom(tmp_path, ct_phantom((4, 16, 16)))
    (found,) = find_volumes(tmp_path)
    files[2].write_bytes(files[2].read_bytes()[:-200])
    with pytest.raises(VolumeError, match="cannot be read"):
        read_volume(found.files, "series")


def test_images_of_one_grid_become_channels(tmp_path: Path) -> None:
    first, second = mr_phantom(seed=1), mr_phantom(seed=2)
    files = [str(write_nifti(tmp_path / f"{n}.nii.gz", array)) for n, array in enumerate((first, second))]
    item = ReadVolumed(channels=2)({"image": files[:1], "channels": [files[1:]], "name": "a"})
    np.testing.assert_array_equal(item["image"].numpy(), np.stack([first, second]))
    assert "channels" not in item


def test_a_channel_whose_axes_are_stored_the_other_way_round_is_turned(tmp_path: Path) -> None:
    first, second = mr_phantom(seed=1), mr_phantom(seed=2)
    files = [write_nifti(tmp_path / "0.nii.gz", first), tmp_path / "1.nii.gz"]
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = len(second) - 1
    write_nifti(files[1], second[::-1], nibabel.load(files[0]).affine @ affine)
    item = ReadVolumed(channels=2)({"image": [str(files[0])], "channels": [[str(files[1])]], "name": "a"})
    np.testing.assert_array_equal(item["image"].numpy(), np.stack([first, second]))


def test_fourth_axis_of_a_nifti_file_is_channels_only_where_they_are_wanted(tmp_path: Path) -> None:
    array = np.stack([mr_phantom(seed=seed) for seed in range(3)], axis=-1)
    item = {"image": [str(write_nifti(tmp_path / "a.nii.gz", array))], "name": "a"}
    np.testing.assert_array_equal(ReadVolumed(channels=3)(item)["image"].numpy(), np.moveaxis(array, -1, 0))
    with pytest.raises(VolumeError, match="is a 4D series"):
        ReadVolumed()(item)
    said = "has 3 channels, not the 2 of --in_channels; correct either; several images are one scan as <scan>_0000"
    with pytest.raises(VolumeError, match=said):
        ReadVolumed(channels=2)(item)


def test_channels_on_another_grid_are_refused(tmp_path: Path) -> None:
    first = write_nifti(tmp_path / "0.nii.gz", mr_phantom())
    second = write_nifti(tmp_path / "1.nii.gz", mr_phantom(), np.diag([1, 1, 1.2, 1]))
    with pytest.raises(VolumeError, match="channels that are not on one grid"):
        ReadVolumed(channels=2)({"image": [str(first)], "channels": [[str(second)]], "name": "a"})
