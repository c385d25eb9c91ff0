# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Findings: the table, their counts, and how a volume is made to fit the network's input."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data import PlainStore, PreparedVolume
from bundle.errors import UserError
from bundle.tasks.classification import FindingCounts, FindingsTensord, FitInputd, check_findings, find_findings
from tests.data.volumes import ct_phantom, write_nifti

NAN = math.nan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ab":
        write_nifti(tmp_path / f"{name}.nii.gz", ct_phantom((8, 8, 8)))
    return tmp_path


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text)
    return folder


def test_rows_become_lists_in_the_order_of_the_findings(folder: Path):
    table(folder, "image,cyst,group,stone\nb.nii.gz,1,p1,0\na.nii.gz, ,p1,1.0\n")
    a, b = find_findings(folder, ["stone", "cyst"])
    assert [a.name, b.name] == ["a.nii.gz", "b.nii.gz"] and a.group == b.group == "p1"
    label = FindingsTensord()({"label": a.annotations["label"]})["label"]
    torch.testing.assert_close(label, torch.tensor([1.0, NAN]), equal_nan=True)
    assert b.annotations["label"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (("training", "test"), ["", "test"]),  # split at random, as a json with these two lists is
        (("", "test"), ["", "test"]),
        (("", "validation"), ["training", "validation"]),
    ],
)
def test_without_a_row_to_validate_on_the_split_is_drawn(folder: Path, parts: tuple[str, str], found: list[str]):
    table(folder, f"image,stone,part\na.nii.gz,1,{parts[0]}\nb.nii.gz,0,{parts[1]}\n")
    assert [volume.part for volume in find_findings(folder, ["stone"], part="all")] == found
    assert [volume.name for volume in find_findings(folder, ["stone"], part="training")] == ["a.nii.gz"]


def test_blank_rows_as_spreadsheets_write_them_are_none(folder: Path):
    found = find_findings(table(folder, "image,stone\na.nii.gz,1\n,\n ,\nb.nii.gz,0\n,\n"), ["stone"])
    assert [volume.name for volume in found] == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("image,stone\na.nii.gz,1\n", ("no column cyst",)),
        ("image,stone,cyst\na.nii.gz,1,yes\n", ("line 2, column cyst", "'yes'")),
        ("image,stone,cyst\na.nii.gz,1,0\nb.nii.gz,2,0\n", ("line 3, column stone", "'2'")),
        ("image,stone,cyst\na.nii.gz,1\n", ("line 2", "number of cells")),
        ("image,stone,cyst\na.nii.gz,1,0,1\n", ("line 2", "number of cells")),
        ("image,stone,cyst,part\na.nii.gz,1,0,spare\n", ("line 2", "'spare'")),
        ("image,stone,cyst\na.nii.gz,1,0\n./a.nii.gz,0,0\n", ("line 3 names a.nii.gz again, as line 2 does",)),
        ("image,stone,cyst\na.nii.gz,1,0\n,1,0\n", ("line 3 names no image",)),
        ("", ("no column cyst, image, stone",)),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line_that_says_where(folder: Path, text: str, parts: tuple[str, ...]):
    with pytest.raises(UserError) as error:
        find_findings(table(folder, text), ["stone", "cyst"])
    message = str(error.value)
    assert "labels.csv" in message and "\n" not in message and all(part in message for part in parts)


@pytest.mark.parametrize("findings", [[], "stone", ["stone", "stone"], ["stone", 3], None])
def test_findings_that_are_no_list_of_names_are_refused(findings):
    with pytest.raises(UserError, match="--findings"):
        check_findings(findings)


def volumes(folder: Path, labels: list[list[float]]) -> list[PreparedVolume]:
    store, keys = PlainStore(folder), [f"{number}_{len(labels)}" for number in range(len(labels))]
    for key, label in zip(keys, labels):
        store.write(key, {"label": torch.tensor(label)})
    return [PreparedVolume(key, store, key, "CT", (8, 8, 8)) for key in keys]


def test_counts_and_weights_are_those_of_the_volumes(tmp_path: Path):
    training = volumes(tmp_path, [[1, 0], [0, 0], [0, NAN], [0, 0]])
    validation = volumes(tmp_path, [[1, 1], [0, NAN]])
    counts = FindingCounts(findings=["x", "y"], training=training, validation=validation, balance=True)
    assert counts.summary["x"]["training"] == {"positive": 1, "negative": 3, "unknown": 0}
    assert counts.summary["y"]["training"] == {"positive": 0, "negative": 3, "unknown": 1}
    assert counts.summary["y"]["validation"] == {"positive": 1, "negative": 0, "unknown": 1}
    assert counts.pos_weight == [3.0, 1.0]
    assert FindingCounts(findings=["x", "y"], training=training, validation=validation).pos_weight is None


def test_a_finding_with_one_class_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    training, validation = volumes(tmp_path, [[1, 0], [0, 0], [1, 0]]), volumes(tmp_path, [[1, 1], [0, 1]])
    with caplog.at_level(logging.WARNING):
        FindingCounts(findings=["x", "y"], training=training, validation=validation)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and all("finding y has one class only" in line for line in lines)
    assert "nothing to learn" in lines[0] and "no ROC AUC" in lines[1]


def test_validation_without_any_finding_of_both_classes_is_refused(tmp_path: Path):
    training, validation = volumes(tmp_path, [[1.0], [0.0], [0.0]]), volumes(tmp_path, [[0.0], [NAN]])
    with pytest.raises(UserError, match="column part"):
        FindingCounts(findings=["x"], training=training, validation=validation)


@pytest.mark.parametrize(
    ("size", "spacing", "limit", "expected"),
    [
        ((20, 10, 10), (1, 1, 1), 10, (10, 5, 5)),  # proportions stay
        ((10, 4, 7), (1, 2, 3), 10, (10, 4, 7)),  # fits: as it is
        ((40, 20, 6), (1, 1, 5), 10, (10, 5, 6)),  # voxels of 4 mm; slices of 5 mm stay apart
        ((40, 40, 30), (1, 1, 4), 16, (5, 5, 16)),  # the third axis asks for voxels of 7.5 mm
    ],
)
def test_a_volume_is_shrunk_until_it_fits(size, spacing, limit, expected):
    image = MetaTensor(torch.rand(1, *size), affine=np.diag([*spacing, 1.0]))
    foreground = MetaTensor(torch.ones(1, *size, dtype=torch.uint8), affine=image.affine)
    fit = FitInputd(["image", "foreground"], spatial_size=(limit,) * 3)
    item = fit({"image": image, "foreground": foreground})
    assert item["image"].shape[1:] == item["foreground"].shape[1:] == expected
    assert set(item["foreground"].unique().tolist()) == {1}
    assert item["image"].mean().item() == pytest.approx(image.mean().item(), abs=0.02)
    covered = np.multiply(item["image"].pixdim.tolist(), expected)
    assert np.allclose(covered, np.multiply(size, spacing))  # the spacing that is kept is the new one


def test_crops_are_left_at_full_resolution():
    image = MetaTensor(torch.rand(1, 20, 10, 10))
    assert FitInputd("image", spatial_size=(8, 8, 8), input="crop")({"image": image})["image"] is image
    with pytest.raises(UserError, match="--input"):
        FitInputd("image", spatial_size=(8, 8, 8), input="slices")
