# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/case_picture.py: the image of a case lies under its labels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from bundle.evaluation.case_picture import viewer_case
from bundle.evaluation.label_map_case import LabelledCase
from tests.data.volumes import mr_phantom, write_nifti


@pytest.mark.parametrize("change", [[(0, 1), (1, -1), (2, 1)], [(2, 1), (0, -1), (1, -1)]])
def test_an_image_whose_axes_are_stored_otherwise_than_the_labels_is_shown(
    tmp_path: Path, change: list[tuple[int, int]]
) -> None:
    """As a DICOM series with a label map that was drawn on the NIfTI file made of it."""
    scan, affine = mr_phantom((9, 8, 7)), np.diag([1.0, 2, 3, 1])
    labels = str(write_nifti(tmp_path / "labels.nii.gz", (scan > np.median(scan)).astype(np.uint8), affine))
    other = nibabel.orientations.apply_orientation(scan, np.array(change))
    to_other = nibabel.orientations.inv_ornt_aff(np.array(change), scan.shape)
    image = write_nifti(tmp_path / "scan.nii.gz", np.ascontiguousarray(other), affine @ to_other)
    case = LabelledCase("scan", "", (str(image),), labels, labels)
    shown = viewer_case(case, {"a": 1}, prediction_classes={"a": 1}, resample=False, note="")
    np.testing.assert_array_equal(shown.scan, scan)
