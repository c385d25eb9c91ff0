# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which scans are trained on without labels; and a training with them through the config."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from bundle.data import FoundVolume, PreparedVolume, RandForegroundCropd
from bundle.data.names import name_digest
from bundle.errors import user_error_in
from bundle.evaluation.seen import seen_notes
from bundle.stores.plain_store import PlainStore
from bundle.tasks.segmentation.unlabelled import single_components, without_labels
from bundle.tasks.segmentation.unlabelled.volumes import _find, _Recognised
from tests.tasks.segmentation.unlabelled.quick import QUICK, ROOT

CONFIGS = [str(ROOT / f"configs/finetune_{name}.yaml") for name in ("segmentation", "unlabelled")]
OPTIONS: dict[str, Any] = {**QUICK, "in_channels": 2, "epochs": 2, "val_interval": 1, "lr": 0.01, "teacher_decay": 0.5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people with two channels each, as nnU-Net has them; two have labels, and one is kept for a test."""
    root = tmp_path_factory.mktemp("blöcke und mehr")
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir()
    label = np.zeros((20, 22, 18), dtype=np.uint8)
    label[4:9, 5:17, 4:14], label[9:15, 5:17, 4:14] = 1, 2
    for number in range(8):
        folder = root / ("imagesTs" if number == 7 else "imagesTr")
        for channel in range(2):
            noise = np.random.default_rng((number, channel)).normal(0, 5, label.shape)
            image = (100 + 60 * (label == 1 + channel) + 30 * (label > 0) + noise).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"p {number}_{channel:04d}.nii.gz")
        if number < 2:
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / f"labelsTr/p {number}.nii.gz")
    content = {part: [entry(root, number)] for number, part in enumerate(("training", "validation"))}
    (root / "split.json").write_text(json.dumps(content))
    return root


def entry(root: Path, number: int) -> dict[str, Any]:
    images = [str(root / f"imagesTr/p {number}_{channel:04d}.nii.gz") for channel in range(2)]
    return {"image": images, "label": str(root / f"labelsTr/p {number}.nii.gz")}


def workflow(dataset: Path, **overrides: Any) -> ConfigWorkflow:
    given = {**OPTIONS, "dataset_dir": str(dataset / "split.json"), "unlabelled_dir": str(dataset / "imagesTr")}
    given |= {"cache_dir": str(dataset / ".cache"), **overrides}
    flow = ConfigWorkflow(CONFIGS, workflow_type="train", run_id="training", logging_file=False, **given)
    flow.initialize()
    return flow


def run(dataset: Path, folder: Path, **overrides: Any) -> Path:
    flow = workflow(dataset, output_dir=str(folder), **overrides)
    flow.run()
    flow.finalize()
    return folder


def problem(dataset: Path, **overrides: Any) -> str:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        workflow(dataset, **overrides).run()
    found = user_error_in(caught.value)
    assert found is not None and "\n" not in str(found), repr(caught.value)
    return str(found)


def checkpoint(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    return saved


def test_a_known_patient_is_recognised_and_a_name_alone_is_none():
    def volume(name: str, group: str, shown: str = "") -> PreparedVolume:
        store = PlainStore(Path("nowhere"))
        return PreparedVolume(shown or name, store, "", "MR", (8, 8, 8), group=group, fingerprint=f"{name}{group}")

    labelled, other = volume("case_1.nii.gz", "case_1.nii.gz"), replace(volume("x", "case_1.nii.gz"), fingerprint="2")
    same_name = replace(labelled, fingerprint="1")
    for shown in (lambda v: v, lambda v: replace(v, name=name_digest(v.name))):  # without and with --hash_names
        assert not _Recognised([shown(labelled)]).has(shown(same_name))
        assert not _Recognised([shown(labelled)]).has(shown(other))
    known = volume("a", "p1")
    assert _Recognised([known]).has(volume("b", "p1")) and not _Recognised([known]).has(volume("b", "p2"))
    subject = FoundVolume("sub-01/a.nii", ()).group
    assert not _Recognised([volume("a", subject)]).has(volume("b", subject)), "another data set may have a sub-01"


def test_a_run_exports_the_teacher_says_what_it_used_and_resumes_bit_for_bit(dataset: Path, tmp_path: Path):
    whole = run(dataset, tmp_path / "whole")
    saved, about = checkpoint(whole), json.loads((whole / "model.json").read_text())
    teacher = saved["further"]["teacher"]
    assert teacher["steps"] == 4 and any(not torch.equal(teacher["network"][n], t) for n, t in saved["network"].items())
    best = torch.load(whole / "checkpoints/best.pt", weights_only=True)["further"]["teacher"]["network"]
    product = torch.load(whole / "model.pt", weights_only=True)
    assert product.keys() == best.keys() and all(torch.equal(product[name], tensor) for name, tensor in best.items())
    assert about["volumes"]["unlabelled"] == {
        "found": 7, "used": 5, "not usable": 0, "labelled and trained on": 1, "held out": 1,
        "held out, but trained on without labels": 0,
    }  # fmt: skip
    summary = (whole / "summary.md").read_text()
    assert "- unlabelled: 5 volumes; of 7 found: 1 labelled and trained on, 1 held out" in summary
    assert len(about["fingerprints"]["unlabelled"]) == 5
    unlabelled = _find(dataset / "imagesTr", 2)[2:3]
    assert "without their labels" in seen_notes(unlabelled, about["fingerprints"])[0]

    part = run(dataset, tmp_path / "part", **{"train#trainer#max_epochs": 1})
    assert checkpoint(part)["further"]["teacher"]["steps"] == 2
    resumed = checkpoint(run(dataset, part, resume=True))
    for before, after in (
        (saved["network"], resumed["network"]),
        (teacher["network"], resumed["further"]["teacher"]["network"]),
    ):
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    fewer = {"training": [entry(dataset, number)["image"] for number in (3, 4)]}
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    said = problem(dataset, output_dir=str(part), resume=True, epochs=3, unlabelled_dir=str(tmp_path / "fewer.json"))
    assert "0 of these 2 are new or changed, 3 are missing" in said


def test_held_out_scans_are_trained_on_only_where_that_is_asked_for_and_said(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    shutil.copy(data / "imagesTs/p 7_0000.nii.gz", data / "imagesTr/other name_0000.nii.gz")
    shutil.copy(data / "imagesTs/p 7_0001.nii.gz", data / "imagesTr/other name_0001.nii.gz")
    with caplog.at_level(logging.INFO):
        # folders in place of a list: the two labelled people, one for validation, and imagesTs as the test
        flow = workflow(data, dataset_dir=str(data), val_fraction=0.5)
        volumes, unlabelled = (flow.parser.get_parsed_content(name) for name in ("volumes", "unlabelled_volumes"))
    held_out = {"other name.nii.gz", volumes.validation[0].name.replace("_0000", "")}
    used = {volume.name for volume in unlabelled.training}
    assert used == {f"p {number}.nii.gz" for number in range(2, 7)} and len(held_out) == 2
    assert "2 unlabelled scans are held out for validation or test, and left out" in caplog.text

    flow = workflow(data, dataset_dir=str(data), val_fraction=0.5, unlabelled_held_out="use")
    unlabelled = flow.parser.get_parsed_content("unlabelled_volumes")
    assert {volume.name for volume in unlabelled.training} == used | held_out
    assert "2 held out, but trained on without labels" in unlabelled.facts["unlabelled"]
    assert "2 unlabelled scans are held out for validation or test, and TRAINED ON" in caplog.text


def test_unlabelled_crops_are_prepared_as_labelled_ones_are(dataset: Path):
    flow = workflow(dataset)
    get = flow.parser.get_parsed_content
    (labelled,) = get("volumes").training
    prepared = without_labels(get("prepare"))(
        {
            "image": entry(dataset, 0)["image"][:1],
            "channels": [entry(dataset, 0)["image"][1:]],
            "name": "p 0",
            "modality": "",
        }
    )
    assert "label" not in prepared and torch.equal(prepared["image"], labelled.load()["image"])
    pair = get("train#dataset")[3]
    assert pair["image"].shape == pair["unlabelled"].shape == (2, 16, 16, 16)
    assert (pair["box"][:, 1] - pair["box"][:, 0]).tolist() == [10, 10, 10] and pair["box"].min() >= 0
    assert all(
        torch.equal(value, get("train#dataset")[3][key]) for key, value in pair.items() if torch.is_tensor(value)
    )
    crop = without_labels(get("train#preprocessing"), crop=RandForegroundCropd("image", spatial_size=(8, 8, 8)))
    kinds = [type(step).__name__ for step in crop.flatten().transforms]
    assert kinds[0] == "RandForegroundCropd" and "RandCropByLabelClassesd" not in kinds and "RandAffined" in kinds
    classes = get("class_values")
    assert single_components([labelled], classes) == [1, 2] and single_components([labelled], classes, "right") == [2]
    assert single_components([labelled], classes, False) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unlabelled_dir": None}, "--unlabelled_dir is not given"),
        ({"unlabelled_dir": "/nowhere"}, "--unlabelled_dir /nowhere does not exist"),
        ({"unlabelled_held_out": "yes"}, "--unlabelled_held_out 'yes' is not known"),
        ({"unlabelled_box": 1.5}, "--unlabelled_box 1.5 does not fit"),
        ({"unlabelled_largest_component": ["heart"]}, "--unlabelled_largest_component names heart"),
        ({"product": "mean"}, "--product 'mean' is not known"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_one_line_that_names_it(dataset: Path, options: dict[str, Any], said: str):
    assert said in problem(dataset, **options)


def test_scans_with_other_channels_and_scans_that_are_all_labelled_are_one_line(dataset: Path, tmp_path: Path):
    shutil.copy(dataset / "imagesTr/p 3_0000.nii.gz", tmp_path / "one channel.nii.gz")
    said = problem(dataset, unlabelled_dir=str(tmp_path))
    assert "none of the 1 volumes in --unlabelled_dir" in said and "in_channels" in said
    assert "leaves no scan to train on" in problem(dataset, unlabelled_dir=str(dataset / "split.json"))
