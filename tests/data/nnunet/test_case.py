# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Cases as nnU-Net feeds them. The expected values are those of nnunetv2 2.8.1's preprocessor for the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.data import MetaTensor

from bundle.data.nnunet import Plan, ReadCased, find_cases, read_plan
from bundle.data.nnunet.resample import resample
from bundle.errors import UserError, VolumeError
from tests.data.nnunet.folders import plan, write_case, write_plan, write_scans

#: the plan's changes, and what nnU-Net makes of the scans: size, mean and deviation of each channel, values at places
#: that `default_rng(0)` draws
EXPECTED = {
    "thick slices": (
        {},
        (2, 8, 23, 30),
        [[-0.040617, 0.959067], [-0.446391, 1.073462]],
        [
            [0.55278, 0.61462, -0.11883, -0.26216, 0.02407, -0.48558],
            [1.56402, -0.32144, -0.75, -0.775, -0.09216, 0.08598],
        ],
    ),
    "masked, all axes at once": (
        {"masked": (True, False), "spacing": [2.0, 1.3, 1.5]},
        (2, 12, 18, 16),
        [[-8.6e-05, 0.742408], [-0.378697, 1.091125]],
        [
            [0.66007, 0.03004, -1e-05, 0.13832, 0.03262, -0.38305],
            [1.90534, -0.72647, -0.75003, -0.0433, -0.05627, 0.462],
        ],
    ),
    "other scales": (
        {"schemes": ("RescaleTo01Normalization", "NoNormalization")},
        (2, 8, 23, 30),
        [[0.452237, 0.166465], [24.724869, 94.825319]],
        [[0.55523, 0.56597, 0.43866, 0.41378, 0.46346, 0.375], [185.5959, 34.29118, 0.0, -2.0, 52.62743, 66.87855]],
    ),
    "a reader that reorients": (
        {"image_reader_writer": "SimpleITKIOWithReorient"},
        (2, 8, 23, 30),
        [[-0.040617, 0.959067], [-0.446391, 1.073462]],
        [
            [0.53342, -0.56417, -0.11883, -0.36951, 0.73679, 0.44662],
            [0.1239, -0.48485, -0.75, -0.98145, -0.04063, -0.77439],
        ],
    ),
}


def changed_plan(folder: Path, changes: dict) -> Plan:
    changes = dict(changes)
    spacing = changes.pop("spacing", None)
    content = plan(**changes)
    if spacing:
        content["configurations"]["3d_fullres"]["spacing"] = spacing
    return read_plan(write_plan(folder, content))


def read_one(folder: Path, chosen: Plan) -> dict:
    (case,) = find_cases(folder, plan=chosen)
    return ReadCased(plan=chosen)(case.to_item())


@pytest.mark.parametrize(("changes", "size", "moments", "values"), EXPECTED.values(), ids=EXPECTED)
def test_a_scan_becomes_what_nnunets_preprocessor_makes_of_it(changes, size, moments, values, tmp_path: Path):
    item = read_one(write_scans(tmp_path / "raw"), changed_plan(tmp_path, changes))
    image = item["image"].numpy()
    assert image.shape == size and image.dtype == np.float32
    for channel, expected in zip(image, moments, strict=True):
        assert [channel.mean(dtype=np.float64), channel.std(dtype=np.float64)] == pytest.approx(expected, abs=2e-6)
    draw = np.random.default_rng(0)
    places = [tuple(int(draw.integers(count)) for count in size[1:]) for _ in range(6)]
    for channel, expected in zip(image, values, strict=True):
        assert [channel[place] for place in places] == pytest.approx(expected, abs=1e-5, rel=1e-6)
    assert item["modality"] == "MR"
    assert item["foreground"].shape == (1, *size[1:]) and 0.1 < item["foreground"].float().mean() < 0.9


@pytest.mark.parametrize("kind", ["b2nd", "npz", "npy"])
def test_what_nnunet_has_preprocessed_is_taken_as_it_is(kind: str, tmp_path: Path):
    image = np.random.default_rng(0).normal(size=(2, 6, 20, 34)).astype(np.float32)
    image[:, 2:4, 5:15, 5:30] += 5
    write_case(tmp_path / "nnUNetPlans_3d_fullres", "Müller, 1 of 2", image, kind)
    item = read_one(tmp_path, read_plan(write_plan(tmp_path)))
    assert isinstance(item["image"], MetaTensor)
    assert np.array_equal(item["image"].numpy(), image)
    assert item["image"].pixdim.tolist() == pytest.approx([3.0, 1.0, 0.8])
    assert item["foreground"][0, 3, 10, 10] == 1 and item["foreground"][0, 0, 0, 0] == 0


def test_a_broken_or_foreign_case_is_one_line(tmp_path: Path):
    chosen = read_plan(write_plan(tmp_path))
    read = ReadCased(plan=chosen)
    file = write_case(tmp_path / "a", "case", np.ones((2, 4, 4, 4)) + np.eye(4))
    for damage, message in ((file.read_bytes()[:200], "cannot be read"), (b"", "cannot be read")):
        file.write_bytes(damage)
        with pytest.raises(VolumeError, match=message):
            read({"image": [str(file)], "name": "case"})
    one = write_case(tmp_path / "b", "case", np.random.default_rng(0).normal(size=(1, 8, 8, 8)))
    with pytest.raises(VolumeError, match=r"shape \[1, 8, 8, 8\], and nnUNetPlans has 2 channel.*of one data set"):
        read({"image": [str(one)], "name": "case"})
    nan = np.random.default_rng(0).normal(size=(2, 8, 8, 8))
    nan[0, 0, 0, 0] = np.nan
    with pytest.raises(VolumeError, match="NaN or infinite"):
        read({"image": [str(write_case(tmp_path / "c", "case", nan))], "name": "case"})


def test_an_unknown_resampling_is_refused_for_scans_alone(tmp_path: Path):
    content = plan()
    content["configurations"]["3d_fullres"]["resampling_fn_data"] = "resample_torch_fornnunet"
    chosen = read_plan(write_plan(tmp_path, content))
    with pytest.raises(UserError, match=r"resamples by resample_torch_fornnunet.*: run nnUNetv2_preprocess"):
        read_one(write_scans(tmp_path / "raw"), chosen)
    write_case(tmp_path / "pre", "case", np.random.default_rng(0).normal(size=(2, 8, 8, 8)))
    assert read_one(tmp_path / "pre", chosen)["image"].shape == (2, 8, 8, 8)


def test_thick_slices_are_resampled_each_by_itself_and_the_nearest_is_taken_across():
    image = np.random.default_rng(0).normal(size=(1, 6, 5, 4)).astype(np.float32)
    changed = resample(image, (8, 1, 1), (4, 1, 1))
    assert np.array_equal(changed[0], np.repeat(image[0], 2, axis=0))
    assert resample(image, (8, 1, 1), (8, 1, 1)) is image
    smooth = resample(image, (8, 1, 1), (4, 1, 1), force_separate_z=False)
    assert smooth.shape == changed.shape and not np.allclose(smooth, changed)
    assert smooth.min() >= image.min() and smooth.max() <= image.max()
