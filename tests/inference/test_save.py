# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The embedding against numpy, and the affine against counted voxels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from bundle.errors import UserError
from bundle.inference import CellStatisticsd, OutputFolder, SaveEmbeddingd, SaveFeatureMapd
from bundle.inference import output as output_module
from bundle.inference.save import cell_affine
from bundle.runs import release_folders

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def free() -> Iterator[None]:
    yield
    release_folders()


def test_statistics_are_over_the_cells_that_are_mostly_body():
    features = torch.randn(5, 3, 2, 2)
    foreground = torch.zeros(1, 12, 8, 4, dtype=torch.uint8)  # cells of 4 x 4 x 2
    foreground[:, :4] = 1  # 4 full cells
    foreground[:, 4:6, :4, :2] = 1  # one that is half full: counts
    foreground[:, 4:6, 4:, :2] = 1
    foreground[:, 4, 4, 0] = 0  # one that is a little less: does not
    item = CellStatisticsd(cell=(4, 4, 2))({"pred": features, "foreground": foreground})
    chosen = np.stack([features[:, 0, j, k].numpy() for j in (0, 1) for k in (0, 1)] + [features[:, 1, 0, 0].numpy()])
    assert item["cells"] == 5
    np.testing.assert_allclose(item["mean"], chosen.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(item["std"], chosen.std(0), rtol=1e-5, atol=1e-6)


def test_a_cells_affine_gives_the_mean_position_of_its_voxels():
    affine = np.array([[-2.0, 0.1, 0, 5], [0.2, 1.5, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])
    cell = (16, 8, 1)
    voxels = np.indices(cell).reshape(3, -1).T + np.multiply((2, 3, 4), cell)
    expected = (voxels @ affine[:3, :3].T + affine[:3, 3]).mean(0)
    np.testing.assert_allclose((cell_affine(affine, cell) @ (2, 3, 4, 1))[:3], expected)


def test_files_hold_what_they_say(tmp_path: Path):
    output = OutputFolder(tmp_path / "out")
    item = {
        "name": "a/b (series 2)",
        "pred": torch.randn(6, 2, 3, 4),
        "affine": torch.eye(4, dtype=torch.float64),
        "mean": torch.arange(6.0),
        "std": torch.ones(6),
        "cells": 7,
        "spacing": torch.tensor([1.0, 2.0, 3.0]),
    }
    item = SaveFeatureMapd(output, cell=(2, 2, 2))(SaveEmbeddingd(output)(item))
    with np.load(tmp_path / "out" / item["file"], allow_pickle=False) as arrays:
        assert sorted(arrays) == ["cells", "mean", "spacing", "std"]
        assert arrays["mean"].dtype == np.float32 and arrays["mean"].tolist() == list(range(6))
        assert arrays["cells"] == 7 and arrays["spacing"].tolist() == [1, 2, 3]
    image = nibabel.load(tmp_path / "out" / item["feature_map"])
    assert image.shape == (2, 3, 4, 6) and image.header.get_zooms()[:3] == (2, 2, 2)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), item["pred"].permute(1, 2, 3, 0))
    assert image.affine[:3, 3].tolist() == [0.5, 0.5, 0.5]
    assert bytes(image.header["descrip"]).strip(b"\0") == b"" and len(image.header.extensions) == 0


def test_without_asking_there_is_no_feature_map(tmp_path: Path):
    item = SaveFeatureMapd(OutputFolder(tmp_path), cell=(2, 2, 2), enabled=False)({"pred": torch.ones(1, 1, 1, 1)})
    assert "feature_map" not in item and [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("old", ["manifest.csv", "embeddings/a.npz", "feature_maps/a.nii.gz"])
def test_old_results_stay_unless_told(tmp_path: Path, old: str):
    (tmp_path / old).parent.mkdir(exist_ok=True)
    (tmp_path / old).write_text("old")
    with pytest.raises(UserError, match="--overwrite"):
        OutputFolder(tmp_path)
    OutputFolder(tmp_path, overwrite=True)
    assert (tmp_path / old).read_text() == "old"


def test_one_process_at_a_time_writes_there(tmp_path: Path):
    OutputFolder(tmp_path / "out")
    code = (
        "import sys\nfrom bundle.inference import OutputFolder\n"
        f"try:\n    OutputFolder({str(tmp_path / 'out')!r}, overwrite=True)\n"
        "except Exception as error:\n    sys.exit(str(error))"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert other.returncode == 1 and f"is being written by another process (process {os.getpid()} on" in other.stderr
    release_folders()
    assert not (tmp_path / "out").exists()


def test_results_that_another_process_wrote_in_the_meantime_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output_module, "lock_folder", lambda folder: (folder / "manifest.csv").touch())
    with pytest.raises(UserError, match=r"already holds manifest\.csv"):
        OutputFolder(tmp_path)


def test_a_file_is_no_output_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        OutputFolder(tmp_path / "file")
