# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/evaluate_segmentation.yaml as a user runs it: real label maps, changed as by a network, and oddities."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from matplotlib.image import imread
from monai.bundle import ConfigWorkflow
from scipy import ndimage

from bundle.data.fingerprints import fingerprint
from bundle.data.names import name_digest
from bundle.errors import UserError, user_error_in
from bundle.evaluation import EvaluationFolder, as_number, read_results, read_table
from bundle.tasks.segmentation.evaluate import SegmentationEvaluation
from tests.prediction.models import write_fine_tuned
from tests.reports.test_volumes import unpack_text
from tests.test_predict import body, save

ROOT = Path(__file__).parents[1]
CLASSES = {"spleen": 1, "right kidney": 2, "liver": 5, "nowhere": 250}
NAMES = ("ct_body_totalseg", "mr_body_totalseg")


def run(predictions: Path | None, dataset: Path, output: Path, **overrides: Any) -> None:
    given = {"bundle_root": str(ROOT), "dataset_dir": str(dataset), "predictions": predictions and str(predictions)}
    flow = ConfigWorkflow(
        str(ROOT / "configs/evaluate_segmentation.yaml"),
        workflow_type="infer",
        **{**given, "output_dir": str(output), "resamples": 50, "worst": 2, **overrides},
    )
    flow.initialize()
    flow.run()


def as_written(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj)


@pytest.fixture(scope="module")
def dataset(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real people with real label maps, and one without."""
    folder = tmp_path_factory.mktemp("a data set")
    for part, source in (("imagesTr", "volumes"), ("labelsTr", "labels")):
        (folder / part).mkdir()
        for name in NAMES:
            ending = "_0000.nii.gz" if part == "imagesTr" else ".nii.gz"
            (folder / part / f"{name}{ending}").symlink_to(data_dir / source / f"{name}.nii.gz")
    (folder / "imagesTr/unlabelled_0000.nii.gz").symlink_to(data_dir / "volumes" / f"{NAMES[0]}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def predictions(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As nnU-Net names them: the CT eroded, the MR moved and with its axes in another order; and two that are odd."""
    folder = tmp_path_factory.mktemp("predicted")
    ct, mr = (nibabel.load(dataset / f"labelsTr/{name}.nii.gz") for name in NAMES)
    values = np.asarray(ct.dataobj).astype(np.uint8)
    kept = ndimage.binary_erosion(values == CLASSES["liver"], iterations=2)
    values[(values == CLASSES["liver"]) & ~kept] = 0
    values[values == CLASSES["right kidney"]] = 0
    nibabel.save(nibabel.Nifti1Image(values, ct.affine), folder / f"{NAMES[0]}.nii.gz")
    moved = np.roll(np.asarray(mr.dataobj).astype(np.uint8), 1, axis=1)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(moved, mr.affine))
    nibabel.save(image, folder / f"{NAMES[1]}.nii.gz")
    (folder / "somebody else.nii.gz").write_bytes((folder / f"{NAMES[0]}.nii.gz").read_bytes())
    (folder / "unlabelled.nii.gz").write_bytes((folder / f"{NAMES[0]}.nii.gz").read_bytes())
    return folder


@pytest.fixture(scope="module")
def evaluated(dataset: Path, predictions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    run(predictions, dataset, folder, classes=CLASSES, tolerance_mm=3)
    return folder


def test_dice_and_volumes_are_those_of_the_written_files(dataset: Path, predictions: Path, evaluated: Path) -> None:
    rows = {(row["case"], row["class"]): row for row in read_table(evaluated / "cases.csv")}
    for name in NAMES:
        reference = nibabel.load(dataset / f"labelsTr/{name}.nii.gz")
        truth, ml = np.asarray(reference.dataobj), np.prod(reference.header.get_zooms()) / 1000
        found = nibabel.load(predictions / f"{name}.nii.gz")
        to_reference = nibabel.orientations.ornt_transform(
            *map(nibabel.io_orientation, (found.affine, reference.affine))
        )
        predicted = nibabel.orientations.apply_orientation(np.asarray(found.dataobj), to_reference)
        for organ, value in CLASSES.items():
            row = rows[f"{name}_0000", organ]
            one, other = predicted == value, truth == value
            if not one.any() and not other.any():
                assert row["dice"] == row["hausdorff95_mm"] == row["volume_error_percent"] == ""
                assert row["note"] == "in neither"
                continue
            expected = 2 * (one & other).sum() / (one.sum() + other.sum())
            assert as_number(row["dice"]) == pytest.approx(expected, abs=1e-6)
            assert as_number(row["volume_ml"]) == pytest.approx(one.sum() * ml, rel=1e-6)
            assert as_number(row["volume_error_ml"]) == pytest.approx((one.sum() - other.sum()) * ml, rel=1e-5)
    missed = rows[f"{NAMES[0]}_0000", "right kidney"]
    assert (missed["dice"], missed["hausdorff95_mm"], missed["note"]) == ("0", "inf", "missed")


def test_what_is_missing_is_said_and_counted(evaluated: Path) -> None:
    content = read_results(evaluated / "results.json")
    notes = "\n".join(content["notes"])
    assert content["settings"]["cases"] == {
        "evaluated": 2, "without prediction": 0, "failed": 1, "predictions without a scan": 1,
    }  # fmt: skip
    assert "1 of 3 scans could not be evaluated" in notes and "labelsTr/unlabelled_0000.nii.gz does not exist" in notes
    assert "1 predictions belong to no labelled scan: somebody else" in notes
    assert "right kidney in 1 cases: the prediction misses it" in notes
    assert "nowhere in 2 cases: neither reference nor prediction has it" in notes
    assert content["metrics"]["dice"]["nowhere"] == {"mean": None, "low": None, "high": None, "n": 0}
    (last,) = [row for row in read_table(evaluated / "cases.csv") if row["case"] == "unlabelled_0000"][:1]
    assert last["dice"] == "" and "does not exist" in last["note"]


def test_means_are_over_cases_then_classes_and_the_worst_case_comes_first(evaluated: Path) -> None:
    rows = read_table(evaluated / "cases.csv")
    content = read_results(evaluated / "results.json")["metrics"]
    by_class = {name: [as_number(r["dice"]) for r in rows if r["class"] == name and r["dice"]] for name in CLASSES}
    for name, values in by_class.items():
        assert not values or content["dice"][name]["mean"] == pytest.approx(np.mean(values), abs=1e-8)
    means = [np.mean(values) for values in by_class.values() if values]
    assert content["dice"]["mean"]["mean"] == pytest.approx(np.mean(means), abs=1e-8)
    assert content["hausdorff95_mm"]["right kidney"]["infinite"] == 1
    signed = [as_number(r["volume_error_ml"]) for r in rows if r["class"] == "liver" and r["dice"]]
    assert content["absolute_volume_error_ml"]["liver"]["mean"] == pytest.approx(np.mean(np.abs(signed)), rel=1e-6)
    scores = {}
    for name in dict.fromkeys(row["case"] for row in rows):
        scores[name] = np.mean([as_number(r["dice"]) for r in rows if r["case"] == name and r["dice"]] or [9])
    assert list(scores.values()) == sorted(scores.values())
    assert {row["group"] for row in rows} == {"1", "2", ""}


def test_each_of_the_worst_cases_has_a_picture_with_outlines(evaluated: Path) -> None:
    pictures = sorted(evaluated.glob("panels/*.png"))
    assert [picture.name for picture in pictures] == ["worst_01.png", "worst_02.png"]
    pixels = imread(pictures[0])[..., :3]
    assert (np.ptp(pixels, axis=-1) > 0.3).sum() > 200  # coloured outlines over grey


def test_nothing_is_written_over_and_a_wrong_option_is_one_line(
    dataset: Path, predictions: Path, evaluated: Path, tmp_path: Path
) -> None:
    for options, said in (
        ({"output_dir": str(evaluated)}, "already holds results.json, cases.csv"),
        ({"output_dir": 3}, "--output_dir 3 cannot work: give a folder"),
        ({"tolerance_mm": {"liver": 1}}, "--tolerance_mm .* does not name the classes"),
        ({"tolerance_mm": -1}, "--tolerance_mm -1 does not fit"),
        ({"classes": ["ant"]}, "--classes"),
        ({"missing": "zero"}, "--missing 'zero' is not known"),
        ({"prediction_classes": {"liver": 1}}, "--prediction_classes names liver"),
        ({"part": "test"}, "has no part 'test'"),
        ({"classes": {}}, "--classes is missing"),
        ({"tolerance": 2}, "unknown option --tolerance: did you mean --tolerance_mm"),
    ):
        with pytest.raises((RuntimeError, UserError)) as caught:
            run(predictions, dataset, tmp_path / "x", **{"classes": CLASSES, **options})
        assert re.search(said, str(user_error_in(caught.value)))
    with pytest.raises((RuntimeError, UserError)) as caught:
        run(None, dataset, tmp_path / "x", classes=CLASSES)
    assert "--predictions or --model: give one" in str(user_error_in(caught.value))


def test_a_folder_of_label_maps_alone_is_a_reference(
    dataset: Path, predictions: Path, evaluated: Path, tmp_path: Path
) -> None:
    run(predictions, dataset / "labelsTr", tmp_path / "out", classes=CLASSES, tolerance_mm=3)
    found, expected = (
        {(row["case"].removesuffix("_0000"), row["class"]): row["dice"] for row in read_table(place / "cases.csv")}
        for place in (tmp_path / "out", evaluated)
    )
    assert found == {key: value for key, value in expected.items() if key[0] in NAMES}
    assert len(list(tmp_path.glob("out/panels/*.png"))) == 2


@pytest.mark.parametrize("hash_names", [False, True])
def test_names_that_fit_nowhere_are_shown_side_by_side(
    dataset: Path, predictions: Path, tmp_path: Path, hash_names: bool
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/case_7_final.nii.gz").symlink_to(predictions / f"{NAMES[0]}.nii.gz")
    with pytest.raises((UserError, RuntimeError)) as caught:
        run(tmp_path / "other", dataset, tmp_path / "out", classes=CLASSES, hash_names=hash_names)
    said = str(user_error_in(caught.value))
    if hash_names:
        assert name_digest("case_7_final") in said and not any(name in said for name in ("final", *NAMES))
    else:
        assert f"scans, such as {NAMES[0]}_0000, has a prediction of its name" in said
        assert "the files in --predictions, such as case_7_final, have others" in said


def test_with_hashed_names_nothing_that_is_written_names_a_file(
    dataset: Path, predictions: Path, tmp_path: Path
) -> None:
    run(predictions, dataset, tmp_path / "out", classes=CLASSES, hash_names=True, worst=1)
    written = "".join((tmp_path / "out" / name).read_text() for name in ("cases.csv", "results.json", "report.html"))
    assert not [name for name in (*NAMES, "unlabelled", "somebody else") if name in written]
    assert name_digest(f"{NAMES[0]}_0000.nii.gz") in written


def test_hashed_names_hide_the_files_of_predictions_and_what_a_prediction_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patients' names are those of folders and of predictions; one is damaged, one was skipped."""
    patients, voxels = ("MUELLER_HANS", "MAIER_EVA", "BAUER_OTTO"), np.zeros((8, 8, 8), np.uint8)
    voxels[2:5] = 1
    for part, name in ((part, name) for part in ("images", "labels") for name in patients):
        array = voxels if part == "labels" else voxels + np.arange(8) * 1.5
        save(tmp_path / f"set/{part}/{name}/ct.nii.gz", array, np.eye(4))
    folder = tmp_path / "of LANG_UWE"
    folder.mkdir()
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "monai.bundle", "run", "--predictions", str(folder)])
    (folder / "MUELLER_HANS.nii.gz").write_bytes(b"x" * 400)
    save(folder / "BAUER_OTTO.nii.gz", voxels, np.eye(4))
    reason = "cannot be read (no '/mnt/MAIER_EVA/ct.raw')"
    (folder / "predictions.csv").write_text(f"scan,skipped\nMAIER_EVA,{reason}\n")
    output = EvaluationFolder(tmp_path / "out")
    evaluation = SegmentationEvaluation(
        predictions=folder, dataset_dir=tmp_path / "set", output=output, classes={"liver": 1}, worst=1, hash_names=True
    )
    evaluation.run()
    written = caplog.text + "".join(file.read_text() for file in (output.cases, output.results, output.report))
    assert not [name for name in (*patients, "LANG_UWE", str(tmp_path / "set")) if name in written]
    assert "run --predictions ..." in output.report.read_text()
    assert read_results(output.results)["settings"]["classes"] == {"liver": 1}
    notes = "\n".join(read_results(output.results)["notes"])
    assert "its prediction was skipped: cannot be read (no '...')" in notes
    digest = name_digest("MUELLER_HANS/ct.nii.gz")
    assert f"{digest}: cannot be read (" in notes, "what was wrong stays"


def test_the_page_has_the_means_what_is_missing_and_the_pictures(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text()
    assert "surface Dice, 3 mm" in page and "belong to no labelled scan: somebody else" in page
    assert page.count("<img ") == 2 and f"{NAMES[0]}_0000: Dice 0." in page


def test_a_scan_without_a_prediction_may_count_as_one_in_which_nothing_was_found(
    dataset: Path, predictions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "predicted"
    folder.mkdir()
    (folder / f"{NAMES[0]}.nii.gz").symlink_to(predictions / f"{NAMES[0]}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 5}}))
    (folder / "predictions.csv").write_text(f"scan,skipped\n{NAMES[1]}_0000,holds 3 voxels that are NaN\n")
    for missing, n, counted in (("report", 1, "count in no mean"), ("empty", 2, "count as if nothing had been found")):
        run(folder, dataset, tmp_path / missing, missing=missing, worst=0)
        content = read_results(tmp_path / missing / "results.json")
        assert content["metrics"]["dice"]["liver"]["n"] == n
        assert content["notes"][0].startswith(
            f"2 of 3 scans have no prediction and {counted}: mr_body_totalseg_0000, un"
        )


def test_a_model_predicts_first_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Bone is 300 in what the model predicts, and 2 in the reference, as its dataset.json says."""
    model, dataset, output = write_fine_tuned(tmp_path / "run"), tmp_path / "data", tmp_path / "out"
    affine = np.diag([-1.0, -1.2, 3.0, 1.0])
    for number, part in enumerate(("Tr", "Ts", "Ts")):
        voxels = body((28, 30, 26), seed=number)
        truth = np.where(voxels > 200, 2, np.where(voxels > -500, 1, 0)).astype(np.uint8)
        truth[:14] = np.where(truth[:14] == 2, 1, truth[:14])
        save(dataset / f"images{part}/case {number}_0000.nii.gz", voxels, affine)
        save(dataset / f"labels{part}/case {number}.nii.gz", truth, affine)
    (dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "soft tissue": 1, "bone": 2}}))
    run(None, dataset, output, model=str(model), device="cpu", num_workers=0)
    written = sorted(file.name for file in output.glob("predictions/label_maps/*"))
    assert written == ["case 1_0000.nii.gz", "case 2_0000.nii.gz"]
    for row in read_table(output / "cases.csv"):
        predicted = as_written(output / f"predictions/label_maps/{row['case']}.nii.gz")
        truth = as_written(dataset / f"labelsTs/{row['case'].removesuffix('_0000')}.nii.gz")
        one, other = (predicted == 300, truth == 2) if row["class"] == "bone" else (predicted == 7, truth == 1)
        assert as_number(row["dice"]) == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()), abs=1e-6)
        assert 0.4 < as_number(row["dice"]) < 1
    (unknown,) = [note for note in read_results(output / "results.json")["notes"] if "trained on" in note]
    assert unknown.startswith("the model does not say which scans it was trained on")
    stamps = [file.stat().st_mtime_ns for file in sorted(output.glob("predictions/label_maps/*"))]
    (output / "predictions/label_maps/case 1_0000.nii.gz").unlink()
    files = [str(dataset / f"imagesT{part}_0000.nii.gz") for part in ("r/case 0", "s/case 1")]
    seen = {"training": [fingerprint([files[1]])], "validation": [fingerprint([files[0]])]}
    write_fine_tuned(model, fingerprints=seen)
    run(None, dataset, output, model=str(model), device="cpu", num_workers=0, overwrite=True)
    (seen_note,) = [note for note in read_results(output / "results.json")["notes"] if "model" in note or "new" in note]
    assert seen_note == "1 of 2 scans were trained on, so these values are not those of new scans: case 1_0000"
    again = [file.stat().st_mtime_ns for file in sorted(output.glob("predictions/label_maps/*"))]
    assert again[1] == stamps[1] and again[0] != stamps[0]
    other = write_fine_tuned(tmp_path / "other", classes={"bone": 301, "soft tissue": 7})
    run(None, dataset, output, model=str(other), device="cpu", num_workers=0, overwrite=True)
    replaced = [as_written(file) for file in sorted(output.glob("predictions/label_maps/*"))]
    assert len(replaced) == 2 and all((labels == 301).any() and not (labels == 300).any() for labels in replaced)
    with pytest.raises((RuntimeError, UserError)) as caught:
        run(None, dataset, tmp_path / "x", model=str(model), prediction_options={"mirror": False})
    assert "--prediction_options has 'mirror', which" in str(user_error_in(caught.value))
    with pytest.raises((RuntimeError, UserError)) as caught:
        run(dataset, dataset, tmp_path / "x", model=str(model))
    assert "--predictions or --model: give one" in str(user_error_in(caught.value))
    (dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "soft tissue": 1, "Bone": 2}}))
    with pytest.raises((RuntimeError, UserError)) as caught:
        run(output / "predictions", dataset, tmp_path / "x")
    assert "have the class bone, and the dataset.json" in str(user_error_in(caught.value))


def test_the_report_has_a_viewer_of_the_worst_cases_on_the_references_grid(evaluated: Path, dataset: Path):
    page = (evaluated / "report.html").read_text()
    (about,) = re.findall(r'data-about="([^"]*)"', page)
    cases = json.loads(html.unescape(about))["cases"]
    assert [[layer["name"] for layer in case["labels"]] for case in cases] == [["reference", "prediction"]] * 2
    for case in cases:
        file = next(dataset / f"labelsTr/{name}.nii.gz" for name in NAMES if name in case["name"])
        shown, reference = unpack_text(page, case["labels"][0]), nibabel.load(file)
        assert shown.shape == reference.shape and np.abs(shown.affine - reference.affine).max() < 1e-4
        values = np.asarray(reference.dataobj)
        assert (np.asarray(shown.dataobj) == np.select([values == v for v in CLASSES.values()], [1, 2, 3, 4])).all()


@pytest.fixture
def permuted(dataset: Path, tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """Predictions that are right, with other values than the reference's; and these values."""
    values = {"liver": 2, "spleen": 3}
    for name in NAMES:
        image = nibabel.load(dataset / f"labelsTr/{name}.nii.gz")
        truth = np.asarray(image.dataobj)
        written = sum((truth == CLASSES[organ]) * value for organ, value in values.items()).astype(np.uint8)
        save(tmp_path / f"predicted/{name}.nii.gz", written, image.affine)
    return tmp_path / "predicted", values


@pytest.mark.parametrize("told_by", ["dataset.json", "about.json"])
def test_predictions_that_tell_other_values_are_compared_by_the_names(
    dataset: Path, permuted: tuple[Path, dict[str, int]], told_by: str, tmp_path: Path
) -> None:
    """nnU-Net writes its dataset.json, whose values are 1, 2, 3 whatever those of the reference are."""
    predictions, values = permuted
    told = {"labels": {"background": 0, **values}} if told_by == "dataset.json" else {"settings": {"classes": values}}
    (predictions / told_by).write_text(json.dumps(told))
    run(predictions, dataset, tmp_path / "out", classes={"liver": 5, "spleen": 1})
    rows = [row for row in read_table(tmp_path / "out/cases.csv") if not row["case"].startswith("unlabelled")]
    assert len(rows) == 4 and all(as_number(row["dice"]) == 1 for row in rows)
    said = "--classes has 'right kidney', and the predictions have liver, spleen alone: leave it out, or"
    with pytest.raises(Exception) as raised:  # noqa: PT011 - MONAI puts its own around it
        run(predictions, dataset, tmp_path / "other", classes={"liver": 5, "right kidney": 2})
    assert said in str(user_error_in(raised.value))
    both = {"liver": 2, "right kidney": 9}
    run(predictions, dataset, tmp_path / "given", classes={"liver": 5, "right kidney": 2}, prediction_classes=both)


def test_predictions_that_name_none_of_the_classes_have_the_values_of_the_reference(
    dataset: Path, permuted: tuple[Path, dict[str, int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    predictions, _ = permuted
    (predictions / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Leber": 2}}))
    run(predictions, dataset, tmp_path / "out", classes={"kidney": 2})
    assert "the predictions name other classes, Leber: their values are taken to be those of --classes" in "".join(
        capfd.readouterr()
    )
