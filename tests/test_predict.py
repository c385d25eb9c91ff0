# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/predict_segmentation.yaml as a user runs it: fine-tuned models and scans in, label maps out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import highdicom
import itk
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.inferers import sliding_window_inference
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bundle.errors import user_error_in
from bundle.runs import release_folders
from bundle.tasks.segmentation import MEASUREMENT_COLUMNS, SaveLabelMapd
from tests.data import dicom_files
from tests.prediction.models import write_fine_tuned

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/predict_segmentation.yaml")
AIR, TISSUE, BONE = -1000.0, 60.0, 700.0


def workflow(model: Any, scans: Path, output: Path, **overrides: Any) -> ConfigWorkflow:
    given = {"model": str(model), "dataset_dir": str(scans), "output_dir": str(output), "device": "cpu"}
    return ConfigWorkflow(CONFIG, workflow_type="infer", **{**given, "num_workers": 0, "report_scans": 0, **overrides})


def run(model: Any, scans: Path, output: Path, **overrides: Any) -> dict[str, dict[str, str]]:
    """Runs the config; returns the rows of predictions.csv by the names of the scans."""
    flow = workflow(model, scans, output, **overrides)
    flow.initialize()
    try:
        flow.run()
    finally:
        release_folders()
    with (output / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["scan"] for row in rows}) == len(rows), "each scan once"
    return {row["scan"]: row for row in rows}


def problem(*arguments: Any, **overrides: Any) -> str:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(*arguments, **overrides)
    found = user_error_in(caught.value)
    assert found is not None, f"not a UserError: {caught.value!r}"
    assert "\n" not in str(found)
    return str(found)


def body(shape: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    """A CT: air, a box of soft tissue without symmetry, and bones in it; int16."""
    voxels = np.full(shape, AIR)
    d, h, w = shape
    voxels[3 : d - 4, 2 : h - 3, 1 : w - 5] = TISSUE
    generator = np.random.default_rng(seed)
    for _ in range(4):
        corner = [int(generator.integers(3, size - 9)) for size in shape]
        voxels[tuple(slice(c, c + 4) for c in corner)] = BONE
    # noise, without which it looks like a label map
    return (voxels + generator.integers(-20, 20, shape)).astype(np.int16)


def expected(voxels: np.ndarray) -> np.ndarray:
    """What the model that knows the answer says at each voxel: bone is 300, soft tissue 7."""
    return np.where(voxels > 200, 300, np.where(voxels > -500, 7, 0))


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def grid(axes: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.2, 3.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * np.array(spacing), (-120.7, 88.3, -401.9)
    return affine


GRIDS = {
    "RAS": grid(np.eye(3)),
    "LPI": grid(-np.eye(3)),
    "PSR": grid(np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]])),
    "IRA": grid(np.array([[0, 1, 0], [0, 0, 1], [-1, 0, 0]])),
    "tilted": grid(Rotation.from_euler("xyz", [12, -25, 8], degrees=True).as_matrix()),
    "sheared": grid(np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]])),
}


def written(output: Path, name: str) -> nibabel.Nifti1Image:
    return nibabel.load(output / f"label_maps/{name}.nii.gz")


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the answer, at each scan's own spacing."""
    return write_fine_tuned(tmp_path_factory.mktemp("runs") / "knowing")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for name, affine in GRIDS.items():
        save(folder / f"odd [é] names/{name}.nii.gz", body((34, 29, 25)), affine)
    (folder / "broken.nii.gz").write_bytes(b"no image")
    save(folder / "labelsTr/RAS.nii.gz", expected(body((34, 29, 25))).astype(np.uint16), GRIDS["RAS"])
    return folder


@pytest.fixture(scope="module")
def finished(knowing: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results") / "out"
    run(knowing, scans, output, probabilities=True, report_scans=6)
    return output


@pytest.mark.parametrize("name", GRIDS)
def test_label_maps_lie_on_the_scans_own_grid_with_the_original_values(finished: Path, name: str):
    found = written(finished, f"odd [é] names/{name}")
    affine = GRIDS[name]
    corners = np.array([[*(np.array([33, 28, 24]) * bits), 1] for bits in np.ndindex(2, 2, 2)])
    assert np.abs((found.affine - affine) @ corners.T).max() < 1e-4 and found.get_data_dtype() == np.uint16
    labels, truth = np.asarray(found.dataobj), expected(body((34, 29, 25)))
    assert labels.shape == truth.shape
    if name == "sheared":  # interpolated onto a grid with right angles, and back
        for value in (7, 300):
            both = ((labels == value) & (truth == value)).sum()
            assert 2 * both / ((labels == value).sum() + (truth == value).sum()) > 0.85
    else:
        assert (labels == truth).all()


def test_probabilities_are_of_all_classes_on_the_same_grid(finished: Path):
    labels = written(finished, "odd [é] names/IRA")
    found = nibabel.load(finished / "probabilities/odd [é] names/IRA.nii.gz")
    assert found.shape == (*labels.shape, 3) and np.array_equal(found.affine, labels.affine)
    values = np.asarray(found.dataobj)
    assert np.abs(values.sum(3) - 1).max() < 1e-5
    assert (np.array([0, 300, 7])[values.argmax(3)] == np.asarray(labels.dataobj)).all()


def test_the_table_has_each_scan_once_with_what_was_skipped_and_why(finished: Path):
    with (finished / "predictions.csv").open(newline="") as file:
        rows = {row["scan"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {*(f"odd [é] names/{name}" for name in GRIDS), "broken", "labelsTr/RAS"}
    assert "cannot be read" in rows["broken"]["skipped"] and "label maps" in rows["labelsTr/RAS"]["skipped"]
    row = rows["odd [é] names/PSR"]
    assert (row["modality"], row["shape"], row["spacing"], row["skipped"]) == ("CT", "34 29 25", "1 1.2 3", "")
    assert row["files"] == "probabilities/odd [é] names/PSR.nii.gz; label_maps/odd [é] names/PSR.nii.gz"
    for file in row["files"].split("; "):
        assert (finished / file).is_file()
    about = json.loads((finished / "about.json").read_text())
    assert about["settings"]["classes"] == {"bone": 300, "soft tissue": 7} and len(about["settings"]["models"]) == 1


def test_measurements_are_of_the_written_label_maps_and_the_report_shows_them(finished: Path):
    with (finished / "measurements.csv").open(newline="") as file:
        rows = {(row["scan"], row["class"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 * len(GRIDS)
    for name in GRIDS:
        image = written(finished, f"odd [é] names/{name}")
        voxel = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        for structure, value in (("bone", 300), ("soft tissue", 7)):
            row = rows[f"odd [é] names/{name}", structure]
            assert float(row["ml"]) == pytest.approx((np.asarray(image.dataobj) == value).sum() * voxel, abs=1e-5)
    page = (finished / "report.html").read_text()
    assert "odd [é] names/tilted" in page and "soft tissue" in page and "cannot be read" in page


def test_small_parts_go_where_asked(knowing: Path, scans: Path, tmp_path: Path):
    scan = scans / "odd [é] names/PSR.nii.gz"
    run(knowing, scan, tmp_path / "out", largest_component=["bone"])
    bones = expected(nibabel.load(scan).get_fdata()) == 300
    parts, count = ndimage.label(bones, np.ones((3, 3, 3)))
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    assert count > 1 and ((np.asarray(written(tmp_path / "out", "PSR").dataobj) == 300) == largest).all()
    assert not (tmp_path / "out/report.html").exists()
    assert "holds predictions with largest_component" in problem(knowing, scan, tmp_path / "out")


def test_resampled_label_maps_are_those_of_the_whole_volumes_probabilities(scans: Path, tmp_path: Path):
    """The same steps without slabs, windows or files: MONAI's transforms and SciPy on the whole volume."""
    model = write_fine_tuned(tmp_path / "model", random=True, spacing=[1.5, 1.0, 2.0], mirror_axes=[0])
    run(model, scans / "odd [é] names/IRA.nii.gz", tmp_path / "out")
    parser = workflow(model, scans / "odd [é] names/IRA.nii.gz", tmp_path / "other").parser
    network, item = parser.get_parsed_content("network"), parser.get_parsed_content("dataset")[0]
    release_folders()
    with torch.no_grad():
        prepared = sliding_window_inference(item["image"][None], (32, 32, 32), 2, network, overlap=0.5, mode="gaussian")
    index = np.stack([*np.indices((34, 29, 25)).astype(float), np.ones((34, 29, 25))])
    to_prepared = np.linalg.inv(item["affine"].numpy()) @ GRIDS["IRA"]
    places = np.einsum("ij,jxyz->ixyz", to_prepared, index)[:3]
    whole = [ndimage.map_coordinates(c, places, order=1, mode="nearest") for c in prepared[0].double().numpy()]
    size = np.array(item["image"].shape[1:])[:, None, None, None]
    inside = ((places > -0.501) & (places < size - 0.499)).all(0)
    truth = np.where(inside, np.array([0, 300, 7])[np.argmax(whole, 0)], 0)
    labels = np.asarray(written(tmp_path / "out", "IRA").dataobj)
    assert len(np.unique(truth)) > 1 and (labels == truth).all()


def test_a_scan_of_a_modality_or_a_voxel_size_that_the_model_has_not_seen_has_a_note(tmp_path: Path, capsys):
    sizes = {"lowest": [1.0, 1.0, 2.0], "highest": [2.0, 1.0, 2.2]}
    model = write_fine_tuned(tmp_path / "run", spacing=None, voxel_mm=sizes, volumes={"training": {"CT": 0, "MR": 3}})
    for name, z in (("a", 3.2), ("b", 3.4)):  # 1.5 times 2.2 is between them
        save(tmp_path / f"scans/{name}.nii.gz", body((34, 29, 25)), np.diag([-2.9, 0.7, z, 1.0]))
    rows = run(model, tmp_path / "scans", tmp_path / "out")
    assert rows["a"]["notes"] == "is CT, and the model was trained on MR alone"
    said = "; has voxels of 2.9 x 0.7 x 3.4 mm, and the model was trained on 1 x 1 x 2 to 2 x 1 x 2.2"
    assert rows["b"]["notes"] == rows["a"]["notes"] + said
    assert "2 scans are of a modality or a voxel size that the model was not trained on" in "".join(capsys.readouterr())


def test_an_ensemble_is_the_mean_of_its_members(scans: Path, tmp_path: Path):
    given = {"random": True, "mirror_axes": [1], "crop_size": [48, 48, 48]}  # one window; several average logarithms
    folds = [write_fine_tuned(tmp_path / f"folds/fold_{n}", seed=n, **given) for n in (0, 1)]
    scan, several = scans / "odd [é] names/RAS.nii.gz", {}
    for name, model in {"both": tmp_path / "folds", "0": folds[0], "1": folds[1]}.items():
        run(model, scan, tmp_path / name, probabilities=True)
        several[name] = np.asarray(nibabel.load(tmp_path / name / "probabilities/RAS.nii.gz").dataobj)
    assert np.allclose(several["both"], (several["0"] + several["1"]) / 2, atol=1e-5)
    assert not np.allclose(several["0"], several["1"], atol=1e-2)
    run(folds[0], scan, tmp_path / "plain", probabilities=True, mirrors=False)
    plain = np.asarray(nibabel.load(tmp_path / "plain/probabilities/RAS.nii.gz").dataobj)
    assert not np.allclose(plain, several["0"], atol=1e-3)


class Killed(BaseException):
    """As a signal: nothing catches it."""


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not_killed(
    knowing: Path, scans: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    whole = SaveLabelMapd.__call__

    def interrupted(self, data):
        calls.append(data["name"])
        if len(calls) == 3:
            raise Killed
        item = whole(self, data)
        if len(calls) == 5:
            raise Killed  # the label map is there, its record is not
        return item

    monkeypatch.setattr(SaveLabelMapd, "__call__", interrupted)
    for _ in range(2):
        with pytest.raises(Killed):
            run(knowing, scans, tmp_path / "out", probabilities=True)
    (tmp_path / "out/predictions.csv").unlink()
    rows = run(knowing, scans, tmp_path / "out", probabilities=True)
    assert len(rows) == len(GRIDS) + 2 and len(calls) == len(GRIDS) + 2, "two of them twice"
    for file in sorted((finished / "label_maps").rglob("*.gz")):
        assert (tmp_path / "out" / file.relative_to(finished)).read_bytes() == file.read_bytes()
    before = len(calls)
    assert run(knowing, scans, tmp_path / "out", probabilities=True).keys() == rows.keys() and len(calls) == before
    assert "holds predictions with overlap" in problem(knowing, scans, tmp_path / "out", overlap=0.25)


def test_channels_of_a_case_go_in_together(tmp_path: Path):
    model = write_fine_tuned(tmp_path / "model", in_channels=2)
    voxels = body((34, 29, 25))
    save(tmp_path / "scans/x_0000.nii.gz", np.roll(voxels, 5, 0), GRIDS["LPI"])
    save(tmp_path / "scans/x_0001.nii.gz", voxels, GRIDS["LPI"])
    save(tmp_path / "scans/lonely.nii.gz", voxels, GRIDS["LPI"])
    rows = run(model, tmp_path / "scans", tmp_path / "out")
    assert "has 1 channels, not the 2 of" in rows["lonely"]["skipped"]
    assert rows["x"]["files"] == "label_maps/x.nii.gz"
    labels = np.asarray(written(tmp_path / "out", "x").dataobj)
    assert (labels == 300).sum() > 50 and ((labels == 300) == (voxels > 200)).all()


def test_a_dicom_series_is_segmented_as_its_nifti_file_is(data_dir: Path, tmp_path: Path):
    """ITK reads the series and writes it as NIfTI, whose axes go other ways."""
    series = data_dir / "dicom/ct_body_totalseg"
    names = itk.GDCMSeriesFileNames.New(Directory=str(series)).GetFileNames(
        itk.GDCMSeriesFileNames.New(Directory=str(series)).GetSeriesUIDs()[0]
    )
    image = itk.imread(list(names), pixel_type=itk.SS)
    (tmp_path / "scans").mkdir()
    itk.imwrite(image, str(tmp_path / "scans/nifti.nii.gz"))
    shutil.copytree(series, tmp_path / "scans/dicom")
    model = write_fine_tuned(tmp_path / "model", random=True, spacing=[6.0, 6.0, 6.0], mirror_axes=[])
    rows = run(model, tmp_path / "scans", tmp_path / "out", dicom_seg=True)
    assert "no DICOM SEG" in rows["dicom"]["notes"], "the series was stripped of its identifiers"
    assert rows.keys() == {"dicom", "nifti"} and rows["dicom"]["shape"] == "512 512 20"
    one, other = (nibabel.as_closest_canonical(written(tmp_path / "out", name)) for name in ("dicom", "nifti"))
    corners = np.array([[*((np.array(one.shape) - 1) * bits), 1] for bits in np.ndindex(2, 2, 2)])
    assert np.abs((one.affine - other.affine) @ corners.T).max() < 1e-3
    a, b = np.asarray(one.dataobj), np.asarray(other.dataobj)
    assert len(np.unique(a)) > 1 and (a == b).all()


def test_pieces_are_cleaned_measured_and_laid_over_the_dicom_series(knowing: Path, tmp_path: Path):
    voxels = body((34, 29, 25))
    planes = voxels.transpose(2, 1, 0) + 1024
    tags = {"FrameOfReferenceUID": "1.2.3.9", "SliceThickness": 3}
    slices = [dicom_files.image(plane, k, **tags) for k, plane in enumerate(planes)]
    dicom_files.save(slices, tmp_path / "scans/a series")
    save(tmp_path / "scans/nifti.nii.gz", voxels, GRIDS["LPI"])
    wanted = {"largest_component": ["bone"], "remove_below_ml": {"soft tissue": 0.01}}
    rows = run(knowing, tmp_path / "scans", tmp_path / "out", dicom_seg=True, **wanted)
    assert rows["a series"]["files"] == "label_maps/a series.nii.gz; dicom_seg/a series.dcm"
    assert rows["a series"]["notes"] == ""
    assert "no DICOM SEG: is no DICOM series" in rows["nifti"]["notes"]
    image = written(tmp_path / "out", "a series")
    labels, truth = np.asarray(image.dataobj), expected(voxels)
    pieces, count = ndimage.label(truth == 300, structure=np.ones((3, 3, 3)))
    largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    assert count > 1 and np.array_equal(labels == 300, largest)
    with (tmp_path / "out/measurements.csv").open(newline="") as file:
        (bone, tissue, *_) = rows = list(csv.DictReader(file))
    assert list(bone) == ["scan", *MEASUREMENT_COLUMNS] and len(rows) == 4
    assert (bone["scan"], bone["class"], bone["components"], bone["touches_border"]) == (
        "a series", "bone", "1", "False",
    )  # fmt: skip
    voxel = 1.25 * 1.5 * 3 / 1000
    assert [float(row["ml"]) for row in (bone, tissue)] == pytest.approx(
        [(labels == value).sum() * voxel for value in (300, 7)], rel=1e-6
    )
    seg = highdicom.seg.segread(tmp_path / "out/dicom_seg/a series.dcm")
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["bone", "soft tissue"]
    given = [one.SOPInstanceUID for one in slices]
    overlaid = seg.get_pixels_by_source_instance(given, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(overlaid, np.select([labels == 300, labels == 7], [1, 2]).transpose(2, 1, 0))


def test_mistakes_are_one_line(knowing: Path, scans: Path, tmp_path: Path):
    assert "names no fine-tuned model" in problem("[]", scans, tmp_path / "a")
    assert "pre-trained encoder" in problem(
        write_fine_tuned(tmp_path / "e", task="", outputs="", classes={}), scans, tmp_path / "b"
    )
    assert "--largest_component names lung" in problem(knowing, scans, tmp_path / "f", largest_component=["lung"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/b.nii.gz").write_bytes(b"no image")
    said = problem(knowing, tmp_path / "bad", tmp_path / "c")
    assert said.startswith("none of the 1 scans can be predicted") and "cannot be read" in said
