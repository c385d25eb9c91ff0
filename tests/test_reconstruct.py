# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/reconstruct.yaml, as a user runs it."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from matplotlib.image import imread
from monai.bundle import ConfigWorkflow

from bundle.errors import user_error_in

from .commands import run_python
from .data.volumes import PATIENT, ct_phantom, write_dicom
from .tiny_run import ROOT, bundle_root, train

RECONSTRUCT = str(ROOT / "configs/reconstruct.yaml")
INPUTS = {"a/spine.nii.gz": "ct_spine_tptbox.nii.gz", "body.nii.gz": "mr_body_totalseg.nii.gz"}


@pytest.fixture(scope="module")
def root(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_root(tmp_path_factory.mktemp("bundle"), data_dir)


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    return train(root)


@pytest.fixture(scope="module")
def inputs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NIfTI files, one of them below a folder, a DICOM series and a file that is none."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, source in INPUTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(data_dir / "volumes" / source)
    write_dicom(folder / "series", np.moveaxis(ct_phantom((120, 110, 60)), 2, 0), thickness=2.0)
    (folder / "broken.nii.gz").write_bytes(b"not an image")
    return folder


def reconstruct(root: Path, **overrides) -> Path:
    flow = ConfigWorkflow(RECONSTRUCT, workflow_type="train", bundle_root=str(root), **overrides)
    flow.initialize()
    return flow.run()[0]


@pytest.fixture(scope="module")
def results(root: Path, trained: Path, inputs: Path) -> Path:
    """Of the plain command, from another folder, with the newest run."""
    line = ["-m", "monai.bundle", "run", "--config_file", RECONSTRUCT, "--bundle_root", root, "--dataset_dir", inputs]
    done = run_python(*line, cwd=inputs.parent, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    folder = trained / "reconstruction"
    (folder / "printed.txt").write_text(done.stdout + done.stderr)
    return folder


def voxels(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj, dtype=np.float32)


@pytest.mark.parametrize("name", INPUTS)
def test_results_are_on_the_grid_and_in_the_units_of_the_file(results: Path, inputs: Path, name: str):
    stem = name.removesuffix(".nii.gz")
    original = nibabel.load(inputs / name)
    array = np.asarray(original.dataobj, dtype=np.float32)
    masked, made = (voxels(results / f"{stem}_{kind}.nii.gz") for kind in ("masked", "reconstruction"))
    for kind in ("masked", "reconstruction"):
        np.testing.assert_allclose(nibabel.load(results / f"{stem}_{kind}.nii.gz").affine, original.affine, atol=1e-4)
    assert masked.shape == made.shape == array.shape
    hidden = masked != array
    np.testing.assert_array_equal(made[~hidden & (array > array.min())], array[~hidden & (array > array.min())])
    assert (masked[hidden] == array.min()).all()
    assert 0.2 < (hidden | (array == array.min())).mean() < 0.9
    inside = hidden & (array > np.percentile(array, 50))
    assert np.corrcoef(made[inside], array[inside])[0, 1] < 0.999  # hidden voxels are not the original's
    # a network of four steps predicts about the level of the windows, which is in the file's range
    assert array.min() - np.ptp(array) < made[hidden].mean() < array.max() + np.ptp(array)


def test_a_dicom_series_gets_its_own_grid_and_no_name_of_the_patient(results: Path):
    image = nibabel.load(results / "series_reconstruction.nii.gz")
    assert sorted(image.shape) == [60, 110, 120] and sorted(image.header.get_zooms()) == [1, 1, 2]
    for file in results.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(value.encode() in content for value in PATIENT.values()), file


def test_the_table_and_the_log_say_how_far_off_it_is_and_what_was_skipped(results: Path):
    with (results / "errors.csv").open() as file:
        rows = {row["volume"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {*INPUTS, "series"}
    assert [rows[name]["unit"] for name in ("a/spine.nii.gz", "body.nii.gz")] == ["HU", "intensity"]
    for row in rows.values():
        assert 0.4 < float(row["hidden_share"]) < 0.7
        for name in ("loss", "loss_mean_predictor", "mae", "mae_foreground", "mae_zero_predictor"):
            assert float(row[name]) > 0, name
    page = (results / "report.html").read_text()
    assert page.count("<img ") == len(rows) and all(f">{name}</td>" in page for name in rows)
    assert f"{len(rows)} volumes reconstructed, 1 skipped" in page
    assert 1 < float(rows["a/spine.nii.gz"]["mae"]) < 2000
    printed = (results / "printed.txt").read_text()
    assert "1 of 4 volumes were skipped" in printed and "broken.nii.gz: cannot be read" in printed
    assert "predict mean" in printed and "Traceback" not in printed


def test_each_volume_has_a_picture(results: Path):
    for stem in ("a/spine", "body", "series"):
        picture = imread(results / f"{stem}.png")
        assert picture.shape[1] > 900 and picture[..., :3].std() > 0.05


def test_complementary_masks_reconstruct_everything(root: Path, trained: Path, inputs: Path, tmp_path: Path):
    reconstruct(
        root, run_folder=str(trained), dataset_dir=str(inputs / "body.nii.gz"), complementary=True, overlap=0.25,
        output_dir=str(tmp_path / "out"), checkpoint="best", panels=False,
    )  # fmt: skip
    with (tmp_path / "out/errors.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["hidden_share"]) == pytest.approx(1, abs=0.25)  # cells with less than half of data stay
    array, made = voxels(inputs / "body.nii.gz"), voxels(tmp_path / "out/body_reconstruction.nii.gz")
    body = array > 1.5 * array.mean()
    assert (made != array)[body].mean() > 0.8
    assert not (tmp_path / "out/body.png").exists()


def test_the_same_command_gives_the_same_files(root: Path, trained: Path, inputs: Path, tmp_path: Path, results: Path):
    reconstruct(root, dataset_dir=str(inputs / "body.nii.gz"), output_dir=str(tmp_path / "out"))
    for kind in ("masked", "reconstruction"):
        again = tmp_path / f"out/body_{kind}.nii.gz"
        np.testing.assert_allclose(voxels(again), voxels(results / f"body_{kind}.nii.gz"), rtol=1e-4, atol=1e-2)


def test_nothing_is_written_over(root: Path, trained: Path, inputs: Path, results: Path, tmp_path: Path):
    before = (results / "errors.csv").read_bytes()
    assert reconstruct(root, dataset_dir=str(inputs / "body.nii.gz"), panels=False) == trained / "reconstruction_2"
    assert (results / "errors.csv").read_bytes() == before
    (tmp_path / "mine.txt").write_text("keep")
    assert "holds files: name another" in _error(root, dataset_dir=str(inputs), output_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("run_folder", "nowhere", 'run_folder "nowhere" has no checkpoints/last.pt'),
        ("dataset_dir", "nowhere", "--dataset_dir nowhere does not exist"),
        ("overlap", 0.25, "--complementary True"),
        ("complement", True, "did you mean --complementary?"),
        ("device", "cuda:77", "device"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(root: Path, trained: Path, inputs: Path, option: str, value, message: str):
    text = _error(root, **{"dataset_dir": str(inputs), option: value})
    assert message in text and "\n" not in text


def test_a_folder_of_broken_files_is_one_line(root: Path, trained: Path, tmp_path: Path):
    (tmp_path / "broken.nii.gz").write_bytes(b"not an image")
    text = _error(root, dataset_dir=str(tmp_path))
    assert "none of the 1 volumes" in text and "broken.nii.gz cannot be read" in text


def _error(root: Path, **overrides) -> str:
    with pytest.raises((RuntimeError, ValueError)) as error:
        reconstruct(root, **overrides)
    found = user_error_in(error.value)
    assert found is not None, repr(error.value)
    return str(found)
