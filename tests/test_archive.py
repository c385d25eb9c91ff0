# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/index.yaml as a user runs it: an archive in, an index and a page out, and runs that start from it."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from bundle.archive.facts import count_volumes, read_volumes
from bundle.archive.mosaic import draw_mosaic, draw_sample, middle_slice
from bundle.archive.report import propose_condition
from bundle.data import find_scans, read_volume
from bundle.data.names import name_digest
from bundle.inference import list_volumes
from bundle.prediction import list_scans
from bundle.reconstruction.prepared import find_inputs
from bundle.runs import release_folders
from tests.archive.trees import make_tree
from tests.data.volumes import PATIENT

ROOT = Path(__file__).parents[1]
SMALL = {
    "crop_size": [16, 16, 16],
    "batch_size": 1,
    "num_workers": 0,
    "encoder#init_filters": 4,
    "encoder#blocks_down": [1, 1, 1],
    "device": "cpu",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree") / "a folder")


def run(tree: Path, output: Path, **overrides: Any) -> Path:
    given = {"dataset_dir": str(tree), "output_dir": str(output), "bundle_root": str(ROOT), **overrides}
    flow = ConfigWorkflow(str(ROOT / "configs/index.yaml"), workflow_type="infer", run_id="run", **given)
    flow.initialize()
    try:
        flow.run()
    finally:
        release_folders()
    return output


@pytest.fixture(scope="module")
def made(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tree, tmp_path_factory.mktemp("made"), sample=2, training_options=SMALL)


def test_the_page_and_the_json_count_what_the_index_holds(made: Path) -> None:
    facts = json.loads((made / "index.json").read_text())
    volumes = find_scans(made / "index.sqlite")
    usable = [volume for volume in volumes if volume.columns.get("usable")]
    assert facts["usable"] == len(usable) == sum(facts["modality"].values()) == sum(facts["format"].values())
    assert facts["left_out"] == sum(facts["reasons"].values()) > 8
    assert facts["duplicates"] == {"files/once more.nii": "files/again.nii"}
    assert facts["voxels"] == sum(v.columns["columns"] * v.columns["rows"] * v.columns["slices"] for v in usable)
    assert facts["files"]["objects"] == {"SR": 1}
    page = (made / "report.html").read_text()
    for text in (
        f"{facts['usable']} volumes can be used",
        "lacks 1 of its DICOM slices",
        "once more.nii",
        "Middle slices",
    ):
        assert text in page


def test_it_says_what_preparation_and_training_will_take_here(made: Path) -> None:
    facts = json.loads((made / "index.json").read_text())
    estimate = facts["estimate"]
    assert estimate["sample"] + estimate["sample_skipped"] == 2 and estimate["sample"] > 0
    share = facts["voxels"] / estimate["sample_voxels"]
    assert estimate["disk_gigabytes"] == pytest.approx(estimate["sample_megabytes"] * share / 1000, abs=2e-3)
    assert estimate["preparation_hours"] == pytest.approx(estimate["sample_seconds"] * share / 3600, abs=2e-3)
    assert 0 < estimate["steps_per_second"] <= 1.01 / estimate["seconds_per_step"]


def test_the_estimate_leaves_no_run_behind_and_says_what_it_does(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    options = {**SMALL, "batch_size": 2}
    run(tree, tmp_path / "my index", sample=2, bundle_root=".", training_options=options, mosaic=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "my index"]
    log = "".join(capsys.readouterr())
    assert "preparing 2 volumes and timing a training step" in log
    assert "timing a step of 1 crop of 16x16x16 on cpu" in log
    assert f"--dataset_dir '{tmp_path / 'my index/index.sqlite'}'" in log
    assert json.loads((tmp_path / "my index/index.json").read_text())["estimate"]["timed_crops"] == 1


def test_the_page_proposes_a_condition_that_fits_volumes_and_quotes_the_path(tmp_path: Path, made: Path) -> None:
    volumes, _ = read_volumes(made / "index.sqlite")
    usable = [volume for volume in volumes if volume["usable"]]
    for chosen in (usable, [{**volume, "modality": ""} for volume in usable]):
        condition = propose_condition(chosen)
        assert ("modality" in condition) == any(volume["modality"] for volume in chosen)
        assert find_scans(made / "index.sqlite", where=condition)
    page = html.unescape((made / "report.html").read_text())
    assert f'--where "{propose_condition(usable)}"' in page
    names = [volume["name"] for volume in draw_sample(volumes, 48)]
    assert len(names) > 3 and all(f">{html.escape(name)}</td>" in (made / "report.html").read_text() for name in names)


def test_a_second_start_opens_nothing_and_writes_nothing(tree: Path, made: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in made.iterdir() if file.suffix != ".sqlite"}
    run(tree, made, sample=2, training_options=SMALL)
    assert {file.name: file.stat().st_mtime_ns for file in made.iterdir() if file.suffix != ".sqlite"} == before


def test_pictures_and_names_are_left_out_where_told(
    tree: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "monai.bundle", "run", "--dataset_dir", str(tree)])
    run(tree, tmp_path, sample=2, mosaic=False, hash_names=True, training_options=SMALL)
    page, facts = (tmp_path / "report.html").read_text(), (tmp_path / "index.json").read_text()
    log = "".join(capsys.readouterr())
    assert "smaller than the crop, so padded" in log
    estimate, of_names = json.loads(facts)["estimate"], json.loads((made / "index.json").read_text())["estimate"]
    assert estimate["sample_voxels"] == of_names["sample_voxels"] and estimate["sample"] == of_names["sample"]
    content = page + facts + log
    assert "run --dataset_dir ..." in page and str(tree) not in content
    assert "Middle slices" not in page and "data:image/png" not in page
    names = [volume.name for volume in find_scans(made / "index.sqlite")]
    for text in ("once more", "two in one", "b/gap", "copy of ct", *names):
        assert text not in content, text
    assert name_digest("files/once more.nii") in content
    shown = page + (made / "report.html").read_text() + (made / "index.json").read_text()
    assert not [value for value in PATIENT.values() if value in shown]


def test_embedding_prediction_and_reconstruction_start_from_it(made: Path) -> None:
    index, where = made / "index.sqlite", "modality == 'MR' and usable"
    expected = [volume.name for volume in find_scans(index, where=where)]
    assert len(expected) > 2
    assert len(list_volumes(index, where=where)) == len(expected)
    assert [volume.name for volume in find_inputs(index, where=where)] == expected
    assert len(list_scans(index, where=where)) == len(expected)


def test_middle_slices_are_those_of_the_volumes(made: Path) -> None:
    volumes, _ = read_volumes(made / "index.sqlite")
    by_name = {volume.name: volume for volume in find_scans(made / "index.sqlite")}
    for name in ("c/plain", "files/again.nii", "files/volume.nrrd"):
        image = read_volume(by_name[name].files, name)[0].numpy()
        found = middle_slice(by_name[name].files)
        expected = image[:, :, image.shape[2] // 2].T
        affine = read_volume(by_name[name].files, name).affine
        if name != "c/plain":  # right and front are left and above
            across, down = (code in "RA" for code in nibabel.aff2axcodes(affine.numpy())[:2])
            expected = expected[:: -1 if down else 1, :: -1 if across else 1]
        assert (found + (-1024 if name == "c/plain" else 0) == expected).all()
    drawn = draw_sample(volumes, 3)
    assert drawn == draw_sample(volumes, 3) and len({volume["modality"] for volume in drawn}) > 1
    broken = [(drawn[0], ["nowhere.nii"])]
    assert draw_mosaic(broken, 0) is None
    assert draw_mosaic([(volume, by_name[volume["name"]].files) for volume in drawn], 0).shape == (132, 396, 3)


def test_an_archive_without_volumes_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    run(tmp_path / "archive", tmp_path / "out")
    assert "0 volumes can be used" in (tmp_path / "out/report.html").read_text()
    assert count_volumes([])["usable"] == 0


def test_middle_slices_lie_alike_whatever_the_order_of_the_voxels(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.0, 1.0]))
    for codes in ("RAS", "LPS", "LAS"):
        order = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
        )
        nibabel.save(image.as_reoriented(order), tmp_path / f"{codes}.nii")
        found = middle_slice([str(tmp_path / f"{codes}.nii")])
        assert (found == voxels[::-1, ::-1, 2].T).all(), codes
