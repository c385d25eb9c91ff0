# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from recipe_sets import main

AFFINE = np.array([[1.25, 0, 0, 5], [0, 1.25, 0, -3], [0, 0, 1.25, 7], [0, 0, 0, 1.0]])


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A folder of one volume, with its image and label."""
    image = np.random.default_rng(0).normal(size=(5, 6, 10)).astype(np.float32)
    label = (image > 0).astype(np.uint8)
    for folder, array in (("imagesTr", image), ("labelsTr", label)):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / folder / "a.nii.gz")
    (tmp_path / "split.json").write_text(json.dumps({"dev": ["a.nii.gz"], "test": []}))
    return tmp_path, image, label


def make(which: str, root: Path) -> list[nibabel.Nifti1Image]:
    main([which, "--dataset_dir", str(root), "--split", str(root / "split.json"), "--output", str(root / "made")])
    return [nibabel.load(root / "made" / folder / "a.nii.gz") for folder in ("imagesTr", "labelsTr")]


def test_a_thick_slice_is_the_mean_of_four_and_lies_in_their_middle(given: tuple[Path, np.ndarray, np.ndarray]):
    root, image, label = given
    thick, labels = make("thick", root)
    assert thick.shape == labels.shape == (5, 6, 2)
    np.testing.assert_allclose(thick.dataobj[..., 1], image[..., 4:8].mean(-1), rtol=1e-6)
    assert np.array_equal(labels.dataobj[..., 0], label[..., :4].sum(-1) >= 2)
    middle = (AFFINE @ [2, 3, 5.5, 1]) - (thick.affine @ [2, 3, 1, 1])
    assert np.abs(middle).max() < 1e-6 and np.array_equal(thick.affine, labels.affine)


def test_a_second_channel_is_dark_where_the_first_is_bright_and_always_the_same(
    given: tuple[Path, np.ndarray, np.ndarray],
):
    root, image, label = given
    two, labels = make("two_channels", root)
    array = np.asarray(two.dataobj)
    assert np.array_equal(array[..., 0], image) and np.array_equal(labels.dataobj, label)
    assert np.corrcoef(array[..., 0].ravel(), array[..., 1].ravel())[0, 1] < -0.3
    for folder in ("imagesTr", "labelsTr"):
        (root / "made" / folder / "a.nii.gz").unlink()
    assert np.array_equal(make("two_channels", root)[0].dataobj, array)
