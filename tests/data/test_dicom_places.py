# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/dicom: where slices are; each is right by the standard's formula, or refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bundle.data import ReadVolumed, read_volume
from bundle.data.dicom.sources import frames_on_grid
from bundle.errors import VolumeError
from tests.data.dicom_files import (
    COLUMN,
    COUNT,
    ROW,
    SCREEN_SAVE,
    SIZE,
    STEP,
    field,
    image,
    pixel_places,
    place,
    planes,
    right_affine,
    save,
)


def tilted(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.array([0, np.cos(angle), -np.sin(angle)])


def up(height: float) -> np.ndarray:
    return place(0) + np.array([0, 0, height])


def of_field(positions: Sequence[np.ndarray], column: np.ndarray = COLUMN) -> list:
    """Slices that hold the linear field at their places, to 0.001."""
    return [
        image(
            np.round(field(pixel_places(p, column=column)) * 20), k, position=p, column=column, slope=0.05, intercept=0
        )
        for k, p in enumerate(positions)
    ]


def assert_holds_the_field(volume, column: np.ndarray = COLUMN, count: int = COUNT) -> None:
    """Every voxel of the grid that lies in the written slices has the value of its place."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[1:]), indexing="ij"), axis=-1)
    ras = index @ volume.affine.numpy()[:3, :3].T + volume.affine.numpy()[:3, 3]
    source = np.linalg.inv(right_affine(column=column))
    at = ras @ source[:3, :3].T + source[:3, 3]
    inside = ((at > -1e-6) & (at < np.array([SIZE[1], SIZE[0], count]) - 1 + 1e-6)).all(-1)
    assert inside.sum() >= 0.8 * SIZE[0] * SIZE[1] * count
    np.testing.assert_allclose(volume[0].numpy()[inside], field(ras * [-1, -1, 1])[inside], atol=0.06)


@pytest.mark.parametrize("degrees", [1.5, 20, -12])
def test_tilted_slices_keep_their_places_as_a_sheared_affine(tmp_path: Path, degrees: float) -> None:
    stored, column = planes(), tilted(degrees)
    files = save([image(stored[k], k, column=column) for k in range(COUNT)], tmp_path)
    volume = read_volume(files, "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    np.testing.assert_allclose(volume.affine.numpy(), right_affine(column=column), atol=1e-5)


@pytest.mark.parametrize("degrees", [1.5, 20, -12])
def test_tilted_slices_are_resampled_to_right_angles_for_a_network(tmp_path: Path, degrees: float) -> None:
    files = save(of_field([place(k) for k in range(COUNT)], tilted(degrees)), tmp_path)
    volume = ReadVolumed()({"image": files, "name": "series"})["image"]
    axes = volume.affine.numpy()[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-6)
    assert volume.meta["notes"] == ("slices are tilted against the long axis, resampled onto a grid with right angles",)
    assert_holds_the_field(volume, tilted(degrees))


def test_spacing_that_changes_is_resampled_by_true_positions(tmp_path: Path) -> None:
    heights = np.cumsum([0, 3, 3, 3, 3, 1.5, 1.5, 1.5, 1.5])
    images = of_field([up(h) for h in heights])
    volume = read_volume(save(images, tmp_path), "series")
    assert volume.pixdim.tolist()[2] == 1.5 and volume.shape[3] == 13
    assert_holds_the_field(volume, count=7)
    # the slices themselves are not changed
    for k, height in enumerate(heights):
        stored = np.frombuffer(images[k].PixelData, "<u2").reshape(SIZE)
        np.testing.assert_allclose(volume[0, :, :, round(height / 1.5)].numpy(), stored.T * 0.05, atol=1e-3)
    assert volume.meta["notes"] == ("slices 1.5 to 3 mm apart, resampled to 1.5 mm",)


def test_the_last_slice_keeps_its_place_where_the_finest_step_does_not_fit(tmp_path: Path) -> None:
    heights = np.concatenate([[0], np.cumsum([3.0] * 4 + [1.25] * 5)])
    volume = read_volume(save(of_field([up(height) for height in heights]), tmp_path), "series")
    last = volume.affine.numpy() @ [0, 0, volume.shape[3] - 1, 1]
    np.testing.assert_allclose(last[2], up(heights[-1])[2], atol=1e-4)
    assert_holds_the_field(volume)


def test_uneven_positions_are_interpolated(tmp_path: Path) -> None:
    heights = [0, 3.2, 6.1, 8.8, 12.3, 15, 17.9, 21]
    volume = read_volume(save(of_field([up(h) for h in heights]), tmp_path), "series")
    assert volume.shape[3] == len(heights)
    assert_holds_the_field(volume)


def test_positions_that_differ_by_rounding_are_even(tmp_path: Path) -> None:
    stored = planes()
    positions = [up(STEP * k + 0.01 * (k % 2)) for k in range(COUNT)]
    volume = read_volume(save([image(stored[k], k, position=positions[k]) for k in range(COUNT)], tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert "notes" not in volume.meta


def test_slices_displaced_sideways_are_refused(tmp_path: Path) -> None:
    images = [image(p, k, position=place(k) + 4.2 * (k == 3) * ROW) for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match=r"^series: has slices that are displaced sideways, by up to 4\.2 mm"):
        read_volume(save(images, tmp_path), "series")


def test_pixel_spacing_that_changes_is_refused(tmp_path: Path) -> None:
    images = [image(p, k, pixel=(1.5, 1.25) if k < 4 else (0.7, 0.7)) for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match="mixes slices of different pixel spacing"):
        read_volume(save(images, tmp_path), "series")


def test_slices_that_turn_about_an_axis_are_refused(tmp_path: Path) -> None:
    images = [image(p, k, column=tilted(3 * k)) for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match="mixes slices of different orientation"):
        read_volume(save(images, tmp_path), "series")


def test_orientations_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    base = np.array([0, np.sqrt(1 - 0.1345**2), 0.1345])
    normal, stored = np.cross(ROW, base), planes()
    images = [
        image(stored[k], k, column=base + np.array([0, 0, 1e-6 * (-1) ** k]), position=place(0) + STEP * k * normal)
        for k in range(COUNT)
    ]
    volume = read_volume(save(images, tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    np.testing.assert_allclose(volume.affine.numpy(), right_affine(column=base, step=STEP * normal), atol=1e-4)


@pytest.mark.parametrize("gaps", [(3,), (2, 5, 6)])
def test_missing_slices_are_refused_however_many(tmp_path: Path, gaps: tuple[int, ...]) -> None:
    images = [image(p, k) for k, p in enumerate(planes(12)) if k not in gaps]
    with pytest.raises(VolumeError, match=f"lacks {len(gaps)} of its DICOM slices"):
        read_volume(save(images, tmp_path), "series")


def test_localizers_and_screen_saves_are_left_out_and_named(tmp_path: Path) -> None:
    stored = planes()
    images = [image(stored[k], k) for k in range(COUNT)]
    side = image(planes(1)[0], 90, row=np.array([0.0, 1, 0]), column=np.array([0.0, 0, -1]))
    side.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    saved = image(planes(1)[0], 91, SOPClassUID=SCREEN_SAVE)
    del saved.ImagePositionPatient, saved.ImageOrientationPatient, saved.PixelSpacing
    report = image(planes(1)[0], 92, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])  # of the class of a scan
    volume = read_volume(save([*images, side, saved, report], tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert sorted(volume.meta["notes"]) == ["1 image(s) left out: a localizer", "2 image(s) left out: a screen save"]


def test_a_series_of_localizers_is_no_volume(tmp_path: Path) -> None:
    images = [image(plane, k, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]) for k, plane in enumerate(planes())]
    with pytest.raises(VolumeError, match="holds localizers, no slices of a volume"):
        read_volume(save(images, tmp_path), "series")


def test_a_scan_written_as_screen_saves_is_read_and_named(tmp_path: Path) -> None:
    stored = planes()
    images = [image(plane, k, SOPClassUID=SCREEN_SAVE) for k, plane in enumerate(stored)]
    volume = read_volume(save(images, tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert volume.meta["notes"] == ("its images are screen saves by their headers: look whether they are a scan",)


def test_a_few_slices_of_another_orientation_are_left_out_and_named(tmp_path: Path) -> None:
    stored = planes(20)
    images = [image(stored[k], k) for k in range(20)]
    side = image(planes(1)[0], 90, row=np.array([0.0, 1, 0]), column=np.array([0.0, 0, -1]))
    volume = read_volume(save([*images, side], tmp_path), "series")
    assert volume.shape[3] == 20 and volume.meta["notes"] == ("1 image(s) left out: of another orientation",)


def test_equal_copies_of_slices_are_dropped_and_counted(tmp_path: Path) -> None:
    stored = planes()
    images = [image(stored[k], k) for k in (*range(COUNT), 3, 3, 5)]
    volume = read_volume(save(images, tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert volume.meta["notes"] == ("3 image(s) left out: equal copies of a slice",)


def test_one_other_slice_at_the_same_position_is_refused(tmp_path: Path) -> None:
    images = [*(image(p, k) for k, p in enumerate(planes())), image(planes(1, seed=5)[0], 3)]
    with pytest.raises(VolumeError, match="several slices at one position"):
        read_volume(save(images, tmp_path), "series")


def test_slices_all_at_one_position_are_refused(tmp_path: Path) -> None:
    images = [image(p, k, position=place(0)) for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match="several slices at one position"):
        read_volume(save(images, tmp_path), "series")


@pytest.mark.parametrize("column", [np.array([0.5, 0.86602540, 0]), np.array([0, 0.5, 0]), np.array([np.nan, 0, 0])])
def test_directions_that_are_none_are_refused(tmp_path: Path, column: np.ndarray) -> None:
    images = [image(p, k, column=column) for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match=r"no valid directions|without a position"):
        read_volume(save(images, tmp_path), "series")


def test_messages_and_notes_name_no_patient(tmp_path: Path) -> None:
    images = [*(image(p, k) for k, p in enumerate(planes())), image(planes(1, seed=5)[0], 3)]
    with pytest.raises(VolumeError) as raised:
        read_volume(save(images, tmp_path), "series")
    text = str(raised.value)
    assert "\n" not in text and not any(secret in text for secret in ("Doe", "HOSP", "1.2.3.4", str(tmp_path)))


def test_positions_that_a_scanner_rounds_to_a_tenth_are_even(tmp_path: Path) -> None:
    stored = planes(20)
    positions = [np.round(place(0) + np.array([0, 0, 0.03 + 0.625 * k]), 1) for k in range(20)]
    volume = read_volume(save([image(p, k, position=positions[k]) for k, p in enumerate(stored)], tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert "notes" not in volume.meta
    right = right_affine(step=(0, 0, 0.625), first=place(0) + np.array([0, 0, 0.03]))
    corner = np.array([SIZE[1] - 1, SIZE[0] - 1, 19, 1])
    np.testing.assert_allclose(volume.affine.numpy() @ corner, right @ corner, atol=0.05)
    np.testing.assert_allclose(volume.affine.numpy()[:3, 3], right[:3, 3], atol=0.05)


def test_every_second_slice_missing_everywhere_is_a_larger_spacing_and_said(tmp_path: Path) -> None:
    stored = planes(16)[::2]
    images = [image(p, 2 * k) for k, p in enumerate(stored)]
    volume = read_volume(save(images, tmp_path), "series")
    np.testing.assert_allclose(volume.affine.numpy(), right_affine(step=(0, 0, 2 * STEP)), atol=1e-9)
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert volume.meta["notes"] == (
        "image numbers go in steps of 2, so other images of the series may be missing",
    )  # fmt: skip


def test_slices_farther_apart_than_the_header_says_are_placed_by_their_positions_and_said(tmp_path: Path) -> None:
    images = [image(p, 2 * k, SpacingBetweenSlices=STEP) for k, p in enumerate(planes())]
    for k, one in enumerate(images):
        one.InstanceNumber = k + 1
    volume = read_volume(save(images, tmp_path), "series")
    np.testing.assert_allclose(volume.affine.numpy(), right_affine(step=(0, 0, 2 * STEP)), atol=1e-9)
    assert volume.meta["notes"] == (
        "slices are 6 mm apart and not the 3 mm of the header, so some may be missing",
    )  # fmt: skip


@pytest.mark.parametrize("backwards", [False, True])
def test_every_second_slice_missing_in_a_part_is_no_change_of_spacing(tmp_path: Path, backwards: bool) -> None:
    kept = [0, 1, 2, 3, 4, 5, 7, 9, 11, 13]
    images = [image(planes(1)[0], k) for k in kept]
    for one in images:
        one.InstanceNumber = 40 - one.InstanceNumber if backwards else one.InstanceNumber
    files = save(images, tmp_path)
    with pytest.raises(VolumeError, match=r"^series: lacks 4 of its DICOM slices, by their numbers and positions"):
        read_volume(files, "series")
    for number, one in enumerate(images):  # the same places with numbers in a row are a spacing that changes
        one.InstanceNumber = number + 1
    volume = read_volume(save(images, tmp_path), "series")
    assert volume.meta["notes"] == ("slices 3 to 6 mm apart, resampled to 3 mm",)


@pytest.mark.parametrize("shift", [0.0, 1.2])
def test_a_few_slices_of_another_acquisition_are_left_out_and_named(tmp_path: Path, shift: float) -> None:
    stored = planes(20)
    images = [image(p, k, AcquisitionNumber=1) for k, p in enumerate(stored)]
    again = [
        image(stored[k] + 9, 30 + k, position=place(k) + np.array([0, 0, shift]), AcquisitionNumber=2) for k in (4, 7)
    ]
    volume = read_volume(save([*images, *again], tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert volume.meta["notes"] == ("2 image(s) left out: of another acquisition",)


def test_slices_of_another_acquisition_that_fill_a_gap_stay(tmp_path: Path) -> None:
    stored = planes(20)
    images = [image(p, k, AcquisitionNumber=2 if k == 7 else 1) for k, p in enumerate(stored)]
    volume = read_volume(save(images, tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)


def test_acquisitions_that_interleave_are_one_volume_and_said(tmp_path: Path) -> None:
    stored = planes()
    images = [image(p, k, AcquisitionNumber=1 + k % 2) for k, p in enumerate(stored)]
    volume = read_volume(save(images, tmp_path), "series")
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024)
    assert volume.meta["notes"] == ("slices of 2 acquisitions lie between one another, read as one volume",)


def test_acquisitions_that_make_no_even_volume_together_are_refused_as_such(tmp_path: Path) -> None:
    """Two phases, between which the table has moved by a quarter of a step; no slice is missing."""
    phases = [(phase, k) for phase in (1, 2) for k in range(COUNT)]
    images = [
        image(p + phase, COUNT * phase + k, position=up(STEP * (k + 0.25 * (phase - 1))), AcquisitionNumber=phase)
        for (phase, k), p in zip(phases, [*planes(), *planes()])
    ]
    with pytest.raises(VolumeError, match="has slices of 2 acquisitions that lie between one another, unevenly; split"):
        read_volume(save(images, tmp_path), "series")


def test_a_slice_missing_from_acquisitions_that_interleave_is_missing(tmp_path: Path) -> None:
    images = [image(p, k, AcquisitionNumber=1 + k % 2) for k, p in enumerate(planes(12)) if k != 5]
    with pytest.raises(VolumeError, match="lacks 1 of its DICOM slices"):
        read_volume(save(images, tmp_path), "series")


@pytest.mark.parametrize(
    ("tag", "said"), [("TemporalPositionIdentifier", "2 temporal positions"), ("EchoNumbers", "2 echoes")]
)
def test_volumes_that_lie_between_one_another_are_refused(tmp_path: Path, tag: str, said: str) -> None:
    images = [image(p, k, **{tag: 1 + k % 2}) for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match=f"has slices of {said} that lie between one another; split it"):
        read_volume(save(images, tmp_path), "series")


def test_images_that_hold_many_slices_each_are_refused(tmp_path: Path) -> None:
    images = [image(p, k, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]) for k, p in enumerate(planes())]
    with pytest.raises(VolumeError, match="holds mosaics, many slices in one image; convert it to NIfTI"):
        read_volume(save(images, tmp_path), "series")


def test_a_result_refers_to_the_images_of_the_main_acquisition(tmp_path: Path) -> None:
    images = [image(p, k, AcquisitionNumber=1) for k, p in enumerate(planes(20))]
    again = [image(images[k].pixel_array + 9, 30 + k, position=place(k), AcquisitionNumber=2) for k in (4, 7)]
    others, main = save(again, tmp_path / "again"), save(images, tmp_path / "main")
    volume = read_volume([*others, *main], "series")
    frames, is_same = frames_on_grid([*others, *main], volume.affine.numpy(), volume.shape[1:], "series")
    assert is_same and [frame.file for frame in frames] == main
