# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Classification as a user runs it: the config, a table of findings, real volumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from bundle.data import NormalizeByModalityd
from bundle.errors import user_error_in
from bundle.runs import release_folders
from bundle.tasks.classification import EncoderClassifier
from bundle.weights import ModelFiles
from tests.export.models import write_model
from tests.networks.encoder_cases import Case

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/finetune_classification.yaml"
VOLUMES = ("ct_body_totalseg", "ct_spine_tptbox", "mr_body_totalseg", "mr_spine_tptbox")
TINY = {"init_filters": 4, "blocks_down": [1, 1, 1, 1], "norm": ["instance", {"affine": True}]}
QUICK = {
    "findings": ["ct", "body"],
    "crop_size": [32, 32, 32],
    "spacing": [6.0, 6.0, 6.0],
    "encoder": {"name": "SegResEncoder", **TINY},
    "epochs": 2,
    "steps_per_epoch": 2,
    "val_interval": 1,
    "warmup_epochs": 1,
    "num_workers": 0,
    "device": "cpu",
    "pretrained": None,
}


@pytest.fixture(scope="module")
def folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root with a table of four real volumes: which are CT is known of all, what they show of three."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "images").symlink_to(data_dir / "volumes")
    rows = [[f"images/{n}.nii.gz", int(n.startswith("ct")), int("body" in n), "validation"] for n in VOLUMES]
    rows[2][2] = ""
    rows[1][3] = rows[3][3] = "training"
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "ct", "body", "part"], *rows])
    return root


def workflow(folder: Path, **overrides) -> ConfigWorkflow:
    given = {"bundle_root": str(folder), "dataset_dir": str(folder), **QUICK, **overrides}
    return ConfigWorkflow([str(CONFIG)], workflow_type="train", run_id="training", **given)


def run(folder: Path, **overrides) -> Path:
    """Trains for a moment; returns the run's folder."""
    flow = workflow(folder, **overrides)
    flow.initialize()
    flow.run()
    flow.finalize()
    path: Path = flow.parser.get_parsed_content("run_folder").path
    return path


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    return run(folder)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_leaves_everything_it_promises(finished: Path, folder: Path):
    assert finished.parent == folder / "runs/classification"
    names = ("config.yaml", "metrics.csv", "curves.png", "summary.md", "panels/epoch_0002.png", "predictions.csv")
    for name in names:
        assert (finished / name).stat().st_size > 0, name
    assert "ROC AUC of the validation volumes" in (finished / "summary.md").read_text()


def test_predictions_are_those_of_the_exported_network(finished: Path, folder: Path):
    about = json.loads((finished / "model.json").read_text())
    assert about["findings"] == ["ct", "body"] and about["counts"]["body"]["validation"]["unknown"] == 1
    assert about["task"] == "classification" and about["in_channels"] == 1 and about["modality"] == "auto"
    assert about["mirror_axes"] == [0, 1, 2] and about["mr_floor"] == 3.0
    network = EncoderClassifier(about["encoder"], findings=2, pooling=about["pooling"])
    network.load_state_dict(torch.load(finished / "model.pt", weights_only=True), strict=True)
    rows = table(finished / "predictions.csv")
    assert [row["volume"] for row in rows] == ["images/ct_body_totalseg.nii.gz", "images/mr_body_totalseg.nii.gz"]
    assert [(row["ct label"], row["body label"]) for row in rows] == [("1", "1"), ("0", "")]
    flow = workflow(folder)
    flow.initialize()
    volumes = flow.parser.get_parsed_content("volumes").validation
    for row, volume in zip(rows, volumes, strict=True):
        assert volume.size == (32, 32, 32)  # the whole, shrunk and padded
        image = volume.load()["image"]
        with torch.no_grad():
            probabilities = network.eval()(image[None]).sigmoid()[0]
        assert [float(row["ct"]), float(row["body"])] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_model_json_has_thresholds_chosen_on_the_validation_volumes_of_its_epoch(finished: Path):
    about = json.loads((finished / "model.json").read_text())
    ct, mr = (float(row["ct"]) for row in table(finished / "predictions.csv"))
    both_ways = {(ct + mr) / 2} if ct > mr else {min(ct, mr) / 2, (max(ct, mr) + 1) / 2}
    assert any(about["thresholds"]["ct"] == pytest.approx(value, abs=1e-8) for value in both_ways)
    assert about["thresholds"]["body"] == 0.5  # one class is known
    assert about["threshold_rule"]["ct"].endswith(f"epoch {about['epoch']}")


def test_the_area_in_the_table_of_metrics_is_that_of_the_best_epochs_predictions(finished: Path):
    best = json.loads((finished / "model.json").read_text())["epoch"]
    metrics = table(finished / "metrics.csv")[best - 1]
    ct, mr = (float(row["ct"]) for row in table(finished / "predictions.csv"))
    assert float(metrics["validation/auc"]) == float(metrics["validation/auc/ct"]) == (ct > mr)
    assert not metrics.get("validation/auc/body")  # one class is known of the validation volumes
    assert (finished / f"predictions/epoch_{best:04d}.csv").read_text() == (finished / "predictions.csv").read_text()


def predict(model: object, scans: Path, output: Path, **overrides) -> dict[str, dict[str, str]]:
    """Runs the config of the prediction; returns the rows of its table by the names of the scans."""
    given = {"model": str(model), "dataset_dir": str(scans), "output_dir": str(output), "device": "cpu", **overrides}
    flow = ConfigWorkflow(
        str(ROOT / "configs/predict_classification.yaml"), workflow_type="infer", num_workers=0, **given
    )
    flow.initialize()
    try:
        flow.run()
    finally:
        release_folders()
    return {row["scan"]: row for row in table(output / "predictions.csv")}


def test_new_scans_get_the_probabilities_that_validation_gave(
    finished: Path, folder: Path, data_dir: Path, tmp_path: Path
):
    scans, about = tmp_path / "my scans", json.loads((finished / "model.json").read_text())
    scans.mkdir()
    for name in VOLUMES:
        (scans / f"{name}.nii.gz").symlink_to(data_dir / f"volumes/{name}.nii.gz")
    (scans / "broken.nii.gz").write_bytes(b"no image")
    rows = predict(finished, scans, tmp_path / "out", mirrors=False)
    assert rows.keys() == {*VOLUMES, "broken"} and "cannot be read" in rows["broken"]["skipped"]
    for known in table(finished / "predictions.csv"):
        row = rows[Path(known["volume"]).name.removesuffix(".nii.gz")]
        for finding in ("ct", "body"):
            assert float(row[f"{finding}_probability"]) == pytest.approx(float(known[finding]), abs=1e-6)
            decided = float(known[finding]) >= about["thresholds"][finding]
            assert row[f"{finding}_decision"] == str(int(decided))
    assert "Not for diagnosis" in (tmp_path / "out/report.html").read_text()
    before = (tmp_path / "out/predictions.csv").read_text()
    assert predict(finished, scans, tmp_path / "out", mirrors=False) == rows  # nothing is done twice
    assert (tmp_path / "out/predictions.csv").read_text() == before
    evaluate = ConfigWorkflow(
        str(ROOT / "configs/evaluate_classification.yaml"), workflow_type="infer", predictions=str(tmp_path / "out"),
        dataset_dir=str(folder), output_dir=str(tmp_path / "evaluated"), part="all",
    )  # fmt: skip
    evaluate.initialize()
    evaluate.run()
    lines = table(tmp_path / "evaluated/cases.csv")
    assert {line["finding"] for line in lines} == {"ct", "body"}  # those that both tables have
    cases = {Path(line["case"]).name.removesuffix(".nii.gz"): line for line in lines if line["finding"] == "ct"}
    for name in VOLUMES:
        assert float(cases[name]["probability"]) == pytest.approx(float(rows[name]["ct_probability"]), abs=1e-6)
        assert cases[name]["label"] == str(int(name.startswith("ct")))
    # an ensemble with a model that says the opposite knows nothing
    opposite = ModelFiles(tmp_path / "folds/fold_1/model.pt")
    weights = torch.load(finished / "model.pt", weights_only=True)
    weights |= {key: -weights[key] for key in ("head.weight", "head.bias")}
    opposite.write(weights, {**about, "thresholds": {"ct": 0.5, "body": 0.25}})
    one = scans / f"{VOLUMES[0]}.nii.gz"
    both = predict(f"[{finished}, {tmp_path}/folds/fold_1]", one, tmp_path / "both", mirrors=False)
    assert float(both[VOLUMES[0]]["ct_probability"]) == pytest.approx(0.5, abs=1e-6)
    settings = json.loads((tmp_path / "both/about.json").read_text())["settings"]
    assert settings["thresholds"]["body"] == pytest.approx((about["thresholds"]["body"] + 0.25) / 2)
    # mirror images are of training's axes, and thresholds can be given
    mirrored = predict(finished, one, tmp_path / "mirrored", thresholds={"ct": 0.0})
    assert mirrored[VOLUMES[0]]["ct_decision"] == "1"
    assert mirrored[VOLUMES[0]]["ct_probability"] != rows[VOLUMES[0]]["ct_probability"]
    with pytest.raises((RuntimeError, ValueError)) as caught:
        predict(finished, one, tmp_path / "wrong", thresholds={"lung": 0.1})
    assert "--thresholds" in str(user_error_in(caught.value))


def test_it_starts_from_the_pretrained_weights_and_a_frozen_encoder_keeps_them(folder: Path, tmp_path: Path):
    file, _ = write_model(tmp_path, Case("SegResEncoder", TINY, ()), spacing=[6.0, 6.0, 6.0])
    # windows of crops at full resolution, and a network that only the file describes
    changes = {"encoder": {"name": "SegResNet"}, "spacing": None, "input": "crop", "crop_size": [24, 24, 24]}
    changes["mr_floor"] = None
    done = run(folder, pretrained=str(file), schedule="frozen", pooling="mean+max", balance=True, epochs=1, **changes)
    given, kept = torch.load(file, weights_only=True), torch.load(done / "model.pt", weights_only=True)
    assert all(torch.equal(kept[f"encoder.{key}"], value) for key, value in given.items())
    about = json.loads((done / "model.json").read_text())
    assert about["spacing"] == [6, 6, 6] and about["encoder"]["init_filters"] == 4 and about["input"] == "crop"
    assert [step["file"] for step in about["origin"]] == [file.name] and "not known" in about["licence"]
    steps = workflow(folder, mr_floor=about["mr_floor"]).parser.get_parsed_content("prepare").transforms
    assert [step.mr_floor for step in steps if isinstance(step, NormalizeByModalityd)] == [None]
    assert kept["head.weight"].shape == (2, 2 * 32)


def test_a_resumed_run_continues_where_it_stopped(finished: Path, folder: Path, tmp_path: Path):
    part = run(folder, output_dir=str(tmp_path / "part"), **{"train#trainer#max_epochs": 1})
    run(folder, output_dir=str(tmp_path / "part"), resume=True)
    weights = [torch.load(path / "checkpoints/last.pt", weights_only=True)["network"] for path in (finished, part)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert (part / "predictions.csv").read_text() == (finished / "predictions.csv").read_text()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("findings", ["ct", "bone"], "labels.csv has no column bone"),
        ("findings", [], "--findings"),
        ("findings", ["body"], "none of body has both 1 and 0"),
        ("dataset_dir", "/nowhere", "labels.csv"),
        ("input", "resize", "--input"),
        ("pooling", "sum", "--pooling"),
        ("crop_size", [30, 32, 32], "--crop_size"),
        ("dropouts", 0.1, "dropout"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(folder: Path, tmp_path: Path, option: str, value, message: str):
    flow = workflow(folder, output_dir=str(tmp_path / "run"), **{option: value})
    with pytest.raises((RuntimeError, ValueError)) as error:  # noqa: PT012 - some are found before, some while running
        flow.initialize()
        flow.run()
    found = user_error_in(error.value)
    assert found is not None, f"not a UserError: {error.value!r}"
    assert message in str(found) and "\n" not in str(found)


def test_an_evaluation_of_the_run_predicts_first_and_says_which_scans_it_has_seen(
    finished: Path, folder: Path, tmp_path: Path
):
    given = {"model": str(finished), "dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "resamples": 20}
    flow = ConfigWorkflow(
        str(ROOT / "configs/evaluate_classification.yaml"), workflow_type="infer", device="cpu", num_workers=0, **given
    )
    flow.parser.update({"prediction_options": {"mirrors": False}})
    flow.initialize()
    flow.run()
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["notes"][0].startswith("2 of 4 scans were trained on, so these values are not those of new scans")
    assert found["notes"][1].startswith("2 of 4 scans chose the model's epoch")
    said = {(row["case"], row["finding"]): float(row["probability"]) for row in table(tmp_path / "out/cases.csv")}
    assert len(said) == 8 and found["metrics"]["auroc"]["ct"]["n"] == 4
    for row in table(finished / "predictions.csv"):
        name = row["volume"].removesuffix(".nii.gz")
        assert [said[name, "ct"], said[name, "body"]] == pytest.approx([float(row["ct"]), float(row["body"])], abs=1e-5)
