# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/cross_validate_parts/out_of_fold.py: predictions of a fold follow its weights."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from cross_validate_parts.out_of_fold import predict_out_of_fold

from bundle.data import FoundVolume
from tests.prediction.models import write_fine_tuned
from tests.test_predict import GRIDS, body, save

CONFIG = Path(__file__).parents[2] / "configs/predict_segmentation.yaml"


def test_a_fold_that_was_trained_again_is_predicted_again_and_another_one_is_not(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz", body((34, 29, 25)), GRIDS["RAS"])
    scans = [FoundVolume("scan", (str(tmp_path / "scan.nii.gz"),))]

    def predict(seed: int) -> tuple[np.ndarray, int]:
        model = write_fine_tuned(tmp_path / "fold", random=True, seed=seed)
        found = predict_out_of_fold(CONFIG, model, scans, tmp_path / "out", options={"device": "cpu", "num_workers": 0})
        return np.asarray(nibabel.load(found["scan"]).dataobj), found["scan"].stat().st_mtime_ns

    (first, written), (same, later), (other, _) = predict(0), predict(0), predict(1)
    assert written == later and np.array_equal(first, same)
    assert not np.array_equal(first, other)
