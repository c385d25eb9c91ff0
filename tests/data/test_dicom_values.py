# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/dicom: what the stored values of a slice mean, against the numbers that were written."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import itk
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless

from bundle.data import read_volume
from bundle.errors import VolumeError
from tests.data.dicom_files import COUNT, MR, SIZE, enhanced, image, place, planes, save


def read(images: list, folder: Path) -> np.ndarray:
    """Values ``[slices, rows, columns]``."""
    return read_volume(save(images, folder), "series")[0].numpy().transpose(2, 1, 0)


def test_each_slice_has_its_slope_and_intercept(tmp_path: Path) -> None:
    stored, slopes = planes(), [1 if k == 0 else round(0.37 + 0.011 * k, 4) for k in range(COUNT)]
    images = [image(stored[k], k, slope=slopes[k], intercept=-k, SOPClassUID=MR, Modality="MR") for k in range(COUNT)]
    expected = stored * np.array(slopes)[:, None, None] - np.arange(COUNT)[:, None, None]
    np.testing.assert_allclose(read(images, tmp_path), expected, rtol=1e-6)


def test_slice_without_rescaling_does_not_decide_the_type_of_the_others(tmp_path: Path) -> None:
    stored = planes()
    images = [image(stored[k], k, slope=None if k == 0 else 1) for k in range(COUNT)]
    expected = stored - 1024
    expected[0] = stored[0]
    np.testing.assert_array_equal(read(images, tmp_path), expected)


def test_monochrome1_does_not_change_values(tmp_path: Path) -> None:
    stored = planes()
    images = [image(stored[k], k, PhotometricInterpretation="MONOCHROME1") for k in range(COUNT)]
    np.testing.assert_array_equal(read(images, tmp_path), stored - 1024)


@pytest.mark.parametrize("value", [-2000, 63536])  # the second is -2000 as an unsigned number, as some scanners write
def test_padding_becomes_the_lowest_value_of_the_rest(tmp_path: Path, value: int) -> None:
    stored, outside = planes() - 500, np.zeros(SIZE, dtype=bool)
    outside[:, :3] = True
    stored[:, outside] = -2000
    images = [image(stored[k], k, signed=True) for k in range(COUNT)]
    for one in images:
        one.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    expected = stored - 1024
    expected[:, outside] = expected[:, ~outside].min()
    np.testing.assert_array_equal(read(images, tmp_path), expected)


def test_range_of_padding_is_background(tmp_path: Path) -> None:
    stored = planes() + 100
    stored[:, 0] = 7
    stored[:, 1] = 20
    images = [image(stored[k], k, PixelPaddingValue=20, PixelPaddingRangeLimit=5) for k in range(COUNT)]
    expected = stored - 1024
    expected[:, :2] = stored[:, 2:].min() - 1024
    np.testing.assert_array_equal(read(images, tmp_path), expected)


@pytest.mark.parametrize("compressor", ["", "JPEG", "JPEG2000"])
@pytest.mark.parametrize(("signed", "value"), [(False, 63536), (True, -3024), (True, -32768)])
def test_padding_that_needs_more_bits_than_the_stored_ones_is_background(
    tmp_path: Path, signed: bool, value: int, compressor: str
) -> None:
    stored = planes() - (1000 if signed else 0)
    lowest = stored[:, 3:].min() - 1024
    stored[:, :3] = value
    images = [image(stored[k], k, signed=signed, BitsStored=12, HighBit=11) for k in range(COUNT)]
    for one in images:
        one.add_new("PixelPaddingValue", "SS" if signed else "US", value)
    if compressor:
        for one, plane in zip(images, stored):
            compress(one, plane.astype(np.int16 if signed else np.uint16), compressor, tmp_path)
    expected = stored - 1024
    expected[:, :3] = lowest
    np.testing.assert_array_equal(read(images, tmp_path / "series"), expected)


def test_padding_with_a_value_between_the_others_is_background_and_said(tmp_path: Path) -> None:
    stored = planes() - 1000
    images = [image(stored[k], k, signed=True, intercept=0) for k in range(COUNT)]
    for one in images:
        one.add_new("PixelPaddingValue", "SS", int(stored[0, 0, 0]))
    volume = read_volume(save(images, tmp_path), "series")
    assert volume[0, 0, 0, 0] == stored.min()
    said = f"the header's value of padding, {stored[0, 0, 0]}, lies between other values; it is taken as background"
    assert volume.meta["notes"] == (said,)


def test_values_in_the_highest_bits_are_moved_down(tmp_path: Path) -> None:
    stored = planes()
    images = [image(stored[k] << 4, k, BitsStored=12, HighBit=15) for k in range(COUNT)]
    np.testing.assert_array_equal(read(images, tmp_path), stored - 1024)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_stored_ones_are_no_part_of_a_value(tmp_path: Path, signed: bool) -> None:
    stored = planes() - (1000 if signed else 0)
    overlay = np.random.default_rng(1).integers(0, 16, stored.shape) << 12
    kept = (stored & 0x0FFF) | overlay
    images = [
        image(
            kept[k].astype(np.uint16).view(np.int16 if signed else np.uint16),
            k,
            signed=signed,
            BitsStored=12,
            HighBit=11,
        )
        for k in range(COUNT)
    ]
    np.testing.assert_array_equal(read(images, tmp_path), stored - 1024)


def test_run_length_encoded_slices_are_read(tmp_path: Path) -> None:
    stored = planes()
    images = [image(stored[k], k) for k in range(COUNT)]
    for one in images:
        one.compress(RLELossless)
    np.testing.assert_array_equal(read(images, tmp_path), stored - 1024)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("frames", [1, COUNT])
def test_compressed_slices_and_frames_are_read(tmp_path: Path, compressor: str, signed: bool, frames: int) -> None:
    stored = planes() - (1000 if signed else 0)
    packed = [compressed(plane.astype(np.int16 if signed else np.uint16), compressor, tmp_path) for plane in stored]
    images = [image(stored[k], k, signed=signed, PhotometricInterpretation="MONOCHROME1") for k in range(COUNT)]
    if frames > 1:
        images, packed = (
            [enhanced(stored, [place(k) for k in range(COUNT)])],
            [(packed[0][0], [f for _, [f] in packed])],
        )
        images[0].PixelRepresentation = int(signed)
    for one, (syntax, content) in zip(images, packed):
        one.file_meta.TransferSyntaxUID, one.PixelData = syntax, encapsulate(content)
        one["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(read(images, tmp_path / "series"), stored * 2 if frames > 1 else stored - 1024)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_values_of_fewer_bits_have_their_sign(tmp_path: Path, compressor: str) -> None:
    stored = planes() - 1000
    images = [image(plane, k, signed=True, BitsStored=12, HighBit=11) for k, plane in enumerate(stored)]
    for one, plane in zip(images, stored):
        compress(one, plane.astype(np.int16), compressor, tmp_path)
    np.testing.assert_array_equal(read(images, tmp_path / "series"), stored - 1024)


def compress(one: Dataset, plane: np.ndarray, compressor: str, folder: Path) -> None:
    """Puts encoded pixels into an image."""
    one.file_meta.TransferSyntaxUID, content = compressed(plane, compressor, folder)
    one.PixelData = encapsulate(content)
    one["PixelData"].is_undefined_length = True


def compressed(plane: np.ndarray, compressor: str, folder: Path) -> tuple[str, list[bytes]]:
    """Transfer syntax and content, encoded without loss by ITK."""
    writer = itk.GDCMImageIO.New(UseCompression=True)
    writer.SetCompressor(compressor)
    itk.imwrite(itk.image_from_array(plane), str(folder / "one.dcm"), imageio=writer, compression=True)
    header = dcmread(folder / "one.dcm")
    return header.file_meta.TransferSyntaxUID, list(generate_frames(header.PixelData, number_of_frames=1))


#: 10 x 12 values 37 i + 101 j + i j, encoded by OpenJPH
HIGH_THROUGHPUT = b64decode(
    "/0//UQApQAAAAAAMAAAACgAAAAAAAAAAAAAADAAAAAoAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQ"
    "kJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAJAAAf+TwAAma/sFB3QAAMAAEsAAE0AAEoAEAod0AKL+Agd0AIoB"
    "B3QAwAASwAASQAASAHcAC3QAlxIzAP4AYwDAABUwAATQAASAxq2phguRi3YAmfwDd1QA/oETAMAAK6AAFdAACQBIJpQKAPbYAnwKcQJ4AEgm"
    "lIrl/vQI3hCBvrgA/vojAP/Z"
)


def of_syntax(syntax: str) -> list:
    images = [image(plane, k) for k, plane in enumerate(planes())]
    for one in images:
        one.file_meta.TransferSyntaxUID, one.PixelData = syntax, encapsulate([HIGH_THROUGHPUT])
        one["PixelData"].is_undefined_length = True
    return images


@pytest.mark.parametrize("end", ["201", "202", "203"])
def test_jpeg_2000_of_high_throughput_is_read(tmp_path: Path, end: str) -> None:
    i, j = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    values = read(of_syntax(f"1.2.840.10008.1.2.4.{end}"), tmp_path)
    np.testing.assert_array_equal(values, np.stack([37 * i + 101 * j + i * j] * COUNT) - 1024)


def test_compression_that_nothing_decodes_is_refused_with_a_remedy(tmp_path: Path) -> None:
    message = r"^series: is compressed as MPEG2 Main Profile .* cannot be decoded here; decompress it"
    with pytest.raises(VolumeError, match=message):
        read(of_syntax("1.2.840.10008.1.2.4.100"), tmp_path)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_values_go_through_the_table_of_their_slice(tmp_path: Path, bits: int, signed: bool) -> None:
    stored, first = planes() - (500 if signed else 0), -200 if signed else 100
    tables = [np.random.default_rng(k).integers(0, 2**bits, 1000) for k in range(COUNT)]
    images = [
        image(plane, k, slope=None, signed=signed, SOPClassUID=MR, Modality="MR") for k, plane in enumerate(stored)
    ]
    for one, table in zip(images, tables):
        item = Dataset()
        item.add_new("LUTDescriptor", "SS" if signed else "US", [len(table), first, bits])
        item.ModalityLUTType = "US"
        item.add_new("LUTData", "US", [int(value) for value in table])
        one.ModalityLUTSequence = [item]
    # by the standard (PS3.3, C.11.1.1): below the first entry the first one, above the last the last one
    right = [table[np.clip(plane - first, 0, len(table) - 1)] for plane, table in zip(stored, tables)]
    np.testing.assert_array_equal(read(images, tmp_path), right)


def test_table_without_its_description_is_refused(tmp_path: Path) -> None:
    images = [image(plane, k) for k, plane in enumerate(planes())]
    images[2].ModalityLUTSequence = [image(planes(1)[0], 0)]
    with pytest.raises(VolumeError, match=r"^series: cannot be read .*LUTDescriptor"):
        read(images, tmp_path)


def test_values_of_a_ct_that_are_no_hounsfield_units_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="is a CT whose values are Z_EFF, no Hounsfield units"):
        read([image(plane, k, RescaleType="Z_EFF") for k, plane in enumerate(planes())], tmp_path)


def test_slices_of_different_units_are_refused(tmp_path: Path) -> None:
    images = [image(plane, k, RescaleType="HU" if k < 4 else "EDW") for k, plane in enumerate(planes())]
    with pytest.raises(VolumeError, match="values have different units"):
        read(images, tmp_path)


def test_slope_of_zero_is_refused(tmp_path: Path) -> None:
    images = [image(plane, k, slope=0 if k == 3 else 1) for k, plane in enumerate(planes())]
    with pytest.raises(VolumeError, match="rescale slope is zero"):
        read(images, tmp_path)


def test_colour_images_are_refused(tmp_path: Path) -> None:
    images = [image(plane, k) for k, plane in enumerate(planes())]
    for one in images:
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
        one.PixelData = one.PixelData * 3
    with pytest.raises(VolumeError, match="holds colours"):
        read(images, tmp_path)


def test_numbers_of_a_palettes_colours_are_no_values(tmp_path: Path) -> None:
    images = [image(p, k, PhotometricInterpretation="PALETTE COLOR") for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match="holds colours, not one value per voxel"):
        read(images, tmp_path)
