# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.prediction import PredictionFolder
from bundle.runs import release_folders
from bundle.tasks.segmentation import SaveLabelMapd, SaveProbabilitiesd, ToLabelMapd, ToProbabilitiesd


@pytest.mark.parametrize(
    ("values", "kind"), [((6, 9), np.uint8), ((1, 300), np.uint16), ((-3, 5), np.int16), ((70000,), np.uint32)]
)
def test_a_label_map_has_the_values_of_the_classes_in_the_smallest_type(tmp_path: Path, values, kind):
    classes = {f"class {value}": value for value in values}
    output = PredictionFolder(tmp_path / "out", settings={})
    probabilities = torch.rand(len(values) + 1, 4, 5, 6).softmax(0)
    wanted = np.array([0, *values])[probabilities.argmax(0).numpy()]
    affine = torch.diag(torch.tensor([1.0, 2, 3, 1], dtype=torch.float64))
    item = {"pred": probabilities.clone(), "affine": affine, "own_affine": affine, "own_shape": torch.tensor([4, 5, 6])}
    item |= {"name": "a/b c"}
    item = SaveProbabilitiesd(output)(item)
    item = ToLabelMapd(classes=classes)(item)
    assert isinstance(item["pred"], MetaTensor) and item["pred"].shape == (1, 4, 5, 6)
    assert (item["pred"][0].numpy() == wanted).all() and torch.equal(item["pred"].affine, affine)
    item = SaveLabelMapd(output, classes=classes)(item)
    release_folders()
    assert item["files"] == ["probabilities/a/b c.nii.gz", "label_maps/a/b c.nii.gz"]
    image, fourth = (nibabel.load(output.path / file) for file in reversed(item["files"]))
    assert image.get_data_dtype() == kind and (np.asarray(image.dataobj) == wanted).all()
    assert fourth.shape == (4, 5, 6, len(values) + 1) and fourth.get_data_dtype() == np.float32
    assert np.allclose(np.moveaxis(np.asarray(fourth.dataobj), 3, 0), probabilities.numpy(), atol=1e-6)


def test_no_probabilities_are_written_unless_asked(tmp_path: Path):
    output = PredictionFolder(tmp_path / "out", settings={})
    item = {"pred": torch.rand(2, 4, 4, 4)}
    assert SaveProbabilitiesd(output, enabled=False)(item) == item
    release_folders()
    assert not (tmp_path / "out/probabilities").exists()


def test_logits_become_probabilities_where_they_are():
    logits = 5 * torch.randn(3, 19, 4, 5)  # more planes than are taken at a time, and no multiple of them
    item = {"pred": logits.clone()}
    memory = item["pred"].data_ptr()
    found = ToProbabilitiesd()(item)["pred"]
    assert torch.equal(found, logits.softmax(0)) and found.data_ptr() == memory
