# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Self-training through the configs: fine-tune, predict, and train on both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from bundle.data.fingerprints import fingerprint
from bundle.errors import user_error_in
from tests.tasks.segmentation.unlabelled.quick import QUICK, ROOT

FIRST = [str(ROOT / "configs/finetune_segmentation.yaml")]
BOTH = [*FIRST, str(ROOT / "configs/finetune_self_training.yaml")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people in one folder, three with labels, and another one's broken file."""
    root = tmp_path_factory.mktemp("wenige Größen")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    label = np.zeros((20, 22, 18), dtype=np.uint8)
    label[4:9, 5:17, 4:14], label[9:15, 5:17, 4:14] = 1, 2
    for number in range(6):
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        image = nibabel.Nifti1Image((100 + 60 * label + noise).astype(np.float32), np.eye(4))
        nibabel.save(image, root / f"imagesTr/p {number}.nii.gz")
        if number < 3:
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / f"labelsTr/p {number}.nii.gz")
    (root / "imagesTr/broken.nii.gz").write_bytes(b"no image")
    parts = {"training": (0, 1), "validation": (2,)}
    pairs = {part: [{key: f"{key}sTr/p {n}.nii.gz" for key in ("image", "label")} for n in ns]
             for part, ns in parts.items()}  # fmt: skip
    (root / "split.json").write_text(json.dumps(pairs))
    return root


def train(configs: list[str], dataset: Path, **given: Any) -> ConfigWorkflow:
    options = {
        **QUICK,
        "epochs": 1,
        "dataset_dir": str(dataset / "split.json"),
        "cache_dir": str(dataset / ".cache"),
        **given,
    }
    flow = ConfigWorkflow(configs, workflow_type="train", logging_file=False, **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


def predict(model: Path, dataset: Path, output: Path, **given: Any) -> Path:
    options = {"bundle_root": str(ROOT), "model": str(model), "dataset_dir": str(dataset / "imagesTr"),
               "output_dir": str(output), "device": "cpu", "report_scans": 0, "num_workers": 0, **given}  # fmt: skip
    flow = ConfigWorkflow(
        str(ROOT / "configs/predict_segmentation.yaml"), workflow_type="infer", logging_file=False, **options
    )
    flow.initialize()
    flow.run()
    flow.finalize()
    return output


@pytest.fixture(scope="module")
def first(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(FIRST, dataset, output_dir=str(folder))
    return folder


@pytest.fixture(scope="module")
def predicted(dataset: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predict(first, dataset, tmp_path_factory.mktemp("predicted") / "out")


def given(dataset: Path, first: Path, predicted: Path) -> dict[str, Any]:
    return {"unlabelled_dir": str(dataset / "imagesTr"), "predictions": str(predicted), "predicted_by": str(first)}


def problem(dataset: Path, **options: Any) -> str:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        train(BOTH, dataset, **options)
    found = user_error_in(caught.value)
    assert found is not None and "\n" not in str(found), repr(caught.value)
    return str(found)


def test_the_second_network_is_trained_on_the_first_ones_labels(
    dataset: Path, first: Path, predicted: Path, tmp_path: Path
):
    corrected = tmp_path / "corrected"
    shutil.copytree(predicted, corrected)
    whole = nibabel.load(corrected / "label_maps/p 3.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full(whole.shape, 2, np.uint16), whole.affine), whole.get_filename())
    (corrected / "label_maps/p 4.nii.gz").unlink()
    flow = train(BOTH, dataset, output_dir=str(tmp_path / "run"), **given(dataset, first, corrected))

    used = {volume.name: volume.load() for volume in flow.parser.get_parsed_content("training_volumes")}
    assert used.keys() == {"imagesTr/p 0.nii.gz", "imagesTr/p 1.nii.gz", "p 3.nii.gz", "p 5.nii.gz"}
    assert (used["p 3.nii.gz"]["label"] == 2).all()
    (other,) = (nibabel.load(file) for file in predicted.glob("label_maps/p 5.nii.gz"))
    expected = np.asarray(nibabel.as_closest_canonical(other).dataobj)
    assert np.array_equal(np.bincount(used["p 5.nii.gz"]["label"].flatten(), minlength=3)[1:],
                          np.bincount(expected.flatten(), minlength=3)[1:])  # fmt: skip
    assert {v.name for v in flow.parser.get_parsed_content("validation_volumes")} == {"imagesTr/p 2.nii.gz"}

    about = json.loads((tmp_path / "run/model.json").read_text())
    assert about["volumes"]["unlabelled"] == {
        "found": 7, "used": 2, "not usable": 2, "labelled and trained on": 2, "held out": 1,
        "held out, but trained on without labels": 0,
    }  # fmt: skip
    digests = {fingerprint([str(dataset / f"imagesTr/p {number}.nii.gz")]) for number in (3, 5)}
    assert set(about["fingerprints"]["unlabelled"]) == digests and "earlier" not in about["fingerprints"]
    summary = (tmp_path / "run/summary.md").read_text()
    sha256 = json.loads((first / "model.json").read_text())["sha256"]
    assert f"- labels of these: predicted by a model with the sha256 {sha256[:12]}" in summary
    assert "p 4.nii.gz (no label map in --predictions)" in summary and "broken.nii.gz (" in summary


def test_names_that_are_hashed_are_found_again_and_stay_hashed(dataset: Path, first: Path, tmp_path: Path):
    hidden = predict(first, dataset, tmp_path / "out", hash_names=True)
    flow = train(BOTH, dataset, output_dir=str(tmp_path / "run"), hash_names=True, **given(dataset, first, hidden))
    assert len(flow.parser.get_parsed_content("unlabelled_volumes").training) == 3
    told = [(tmp_path / "run" / name).read_text() for name in ("summary.md", "model.json")]
    assert not [text for text in told if "p 3" in text or "imagesTr/p" in text]


def test_scans_that_have_changed_since_are_left_out(
    dataset: Path, first: Path, predicted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    other = tmp_path / "scans"
    shutil.copytree(dataset / "imagesTr", other)
    options = given(dataset, first, predicted) | {"unlabelled_dir": str(other)}
    assert "none of the 7 volumes in --unlabelled_dir" in problem(dataset, output_dir=str(tmp_path / "run"), **options)
    assert caplog.text.count("its prediction is of files that were others or have changed") == 6


def test_a_model_that_has_seen_what_is_held_out_may_not_label(
    dataset: Path, first: Path, predicted: Path, tmp_path: Path
):
    content = json.loads((dataset / "split.json").read_text())
    content["training"], content["validation"] = (
        [content["training"][0], *content["validation"]], content["training"][1:]
    )  # fmt: skip
    (dataset / "turned.json").write_text(json.dumps(content))
    options = given(dataset, first, predicted) | {"dataset_dir": str(dataset / "turned.json")}
    said = problem(dataset, output_dir=str(tmp_path / "run"), **options)
    assert "was trained on 1 of the 1 volumes that this training validates on, such as imagesTr/p 1.nii.gz" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"predictions": None}, "--predictions is not given"),
        ({"predicted_by": None}, "--predicted_by is not given"),
        ({"predictions": "/nowhere"}, "/nowhere/about.json tells nothing of predictions"),
        ({"unlabelled_dir": None}, "--unlabelled_dir is not given"),
        ({"classes": {"left": 1, "both": 2}}, "knows the classes {'left': 1, 'right': 2}, and this training has"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_one_line_that_names_it(
    dataset: Path, first: Path, predicted: Path, tmp_path: Path, options: dict[str, Any], said: str
):
    assert said in problem(dataset, output_dir=str(tmp_path / "run"), **given(dataset, first, predicted) | options)


def test_predictions_of_another_model_are_refused(dataset: Path, first: Path, predicted: Path, tmp_path: Path):
    train(FIRST, dataset, output_dir=str(tmp_path / "other"), seed=1)
    options = given(dataset, first, predicted) | {"predicted_by": str(tmp_path / "other")}
    assert "was written by other models than --predicted_by" in problem(dataset, **options)
