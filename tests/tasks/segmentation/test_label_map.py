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
from bundle.tasks.segmentation.certainty import Certainty


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


def test_certainty_is_the_dice_to_expect_of_masks_drawn_from_the_probabilities():
    """Against the mean over drawn truths, on the scan's own grid and by parts, for a volume of two blurred objects."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool3d(torch.randn(1, 3, 34, 34, 34, generator=generator), 3, 1)[0]
    probabilities = (12 * smooth).softmax(0)
    grid = {"affine": torch.eye(4), "own_affine": torch.eye(4), "own_shape": probabilities.shape[1:]}
    item = ToLabelMapd(classes={"a": 1, "b": 5})({"pred": probabilities.clone(), **grid})
    found = item["pred"][0]
    flat = probabilities.flatten(1).T
    truths = [torch.multinomial(flat, 1, generator=generator).view(found.shape) for _ in range(20)]
    for number, (name, value) in enumerate({"a": 1, "b": 5}.items(), start=1):
        mask = found == value
        drawn = [2 * ((t == number) & mask).sum() / ((t == number).sum() + mask.sum()) for t in truths]
        assert item["certainty"][name] == pytest.approx(float(torch.stack(drawn).mean()), abs=0.003)


def test_a_class_that_is_not_found_has_no_certainty():
    probabilities = torch.tensor([0.6, 0.0, 0.4]).view(3, 1, 1, 1).repeat(1, 4, 5, 6)
    grid = {"affine": torch.eye(4), "own_affine": torch.eye(4), "own_shape": (4, 5, 6)}
    assert ToLabelMapd(classes={"a": 1, "b": 2})({"pred": probabilities, **grid})["certainty"] == {"a": None, "b": None}


def test_certainty_does_not_depend_on_the_parts_that_it_is_made_of():
    probabilities = torch.rand(4, 6, 7, 8, generator=torch.Generator().manual_seed(1)).softmax(0)
    whole, parts = Certainty(4), Certainty(4)
    whole.add(probabilities)
    for part in probabilities.split(3, dim=3):
        parts.add(part)
    assert whole.values() == pytest.approx(parts.values())
