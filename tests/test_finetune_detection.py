# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Detection as a user runs it: config, data list, real volumes with boxes around real organs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.bundle import ConfigWorkflow

from bundle.errors import user_error_in
from bundle.networks import build_encoder
from bundle.runs import release_folders
from bundle.tasks.detection import ResNetFPN
from tests.tasks.detection.organ_boxes import labelled_part, organ_box

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/finetune_detection.yaml")
ENCODER = {
    "name": "ResNet",
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "block_inplanes": [8, 8, 16, 16],
    "conv1_t_size": 3,
    "conv1_t_stride": 2,
    "norm": ["instance", {"affine": True}],
}
CLASSES = ["kidney", "gallbladder"]
QUICK = {
    "classes": CLASSES,
    "encoder": ENCODER,
    "feature_extractor#out_channels": 8,
    "detector#score_threshold": 0.001,
    "spacing": [6, 6, 6],
    "crop_size": [32, 32, 16],
    "epochs": 2,
    "steps_per_epoch": 2,
    "warmup_epochs": 1,
    "val_interval": 1,
    "mirror_axes": [0, 1, 2],
    "num_workers": 0,
    "pretrained": None,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root with a data list: two volumes with boxes around organs, and one without a box."""
    root = tmp_path_factory.mktemp("detection")
    entries = {}
    for name in ("ct_body_totalseg", "mr_body_totalseg"):
        shutil.copy(data_dir / "volumes" / f"{name}.nii.gz", root)
        _, labels = labelled_part(data_dir, name)
        boxes = [organ_box(labels, value) for value in (2, 3, 4)]
        entries[name] = {"image": f"{name}.nii.gz", "box": boxes, "label": [0, 0, 1]}
    shutil.copy(data_dir / "volumes/ct_spine_tptbox.nii.gz", root)
    empty = {"image": "ct_spine_tptbox.nii.gz", "box": [], "label": []}
    lists = {"training": [entries["ct_body_totalseg"], empty], "validation": [entries["mr_body_totalseg"], empty]}
    (root / "dataset.json").write_text(json.dumps(lists))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pre-training would write, with weights that are not those of a new ResNet."""
    file = tmp_path_factory.mktemp("pretrained") / "model.pt"
    tensors = build_encoder(**ENCODER).network_state_dict()
    torch.save({key: torch.full_like(value, 0.01) for key, value in tensors.items()}, file)
    about = {"encoder": ENCODER, "spacing": [6, 6, 6], "ct_window": [-500, 500], "mr_percentiles": [0.5, 99.5]}
    file.with_suffix(".json").write_text(json.dumps(about))
    return file


def workflow(folder: Path, **overrides) -> ConfigWorkflow:
    given = {**QUICK, "bundle_root": str(folder), "dataset_dir": str(folder / "dataset.json"), **overrides}
    return ConfigWorkflow(CONFIG, workflow_type="train", run_id="training", **given)


def run(folder: Path, **overrides) -> Path:
    flow = workflow(folder, **overrides)
    flow.initialize()
    flow.run()
    flow.finalize()
    path: Path = flow.parser.get_parsed_content("run_folder").path
    return path


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    return run(folder)


def predict(model: object, scans: Path, output: Path, **overrides) -> dict[str, dict[str, str]]:
    """Runs the config of the prediction; returns the rows of its table by the names of the scans."""
    given = {"model": str(model), "dataset_dir": str(scans), "output_dir": str(output), "device": "cpu", **overrides}
    config = str(ROOT / "configs/predict_detection.yaml")
    flow = ConfigWorkflow(config, workflow_type="infer", num_workers=0, **given)
    flow.initialize()
    try:
        flow.run()
    finally:
        release_folders()
    return {row["scan"]: row for row in table(output / "predictions.csv")}


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_new_scans_get_the_boxes_that_validation_found(finished: Path, folder: Path, tmp_path: Path):
    scans = tmp_path / "my scans"
    scans.mkdir()
    for name in ("mr_body_totalseg", "ct_spine_tptbox"):
        (scans / f"{name}.nii.gz").symlink_to(folder / f"{name}.nii.gz")
    (scans / "broken.nii.gz").write_bytes(b"no image")
    options = {"mirrors": False, "score_threshold": 0.001}  # as in QUICK
    rows = predict(finished, scans, tmp_path / "out", **options)
    assert "cannot be read" in rows["broken"]["skipped"]
    known = {entry["image"].removesuffix(".nii.gz"): entry for entry in json.loads(
        (finished / "boxes.json").read_text())["validation"]}  # fmt: skip
    found = {entry["image"]: entry for entry in json.loads((tmp_path / "out/boxes.json").read_text())["predictions"]}
    assert found.keys() == known.keys() == rows.keys() - {"broken"}
    for name, entry in known.items():
        assert found[name]["score"] == pytest.approx(entry["score"], abs=2e-4)
        assert np.allclose(found[name]["box"], entry["box"], atol=0.02)
        assert found[name]["label"] == entry["label"] and rows[name]["boxes"] == str(len(entry["box"]))
    assert "gallbladder" in (tmp_path / "out/report.html").read_text()
    lines = [line for line in table(tmp_path / "out/boxes.csv") if line["scan"] == "mr_body_totalseg"]
    markups = json.loads((tmp_path / "out/markups/mr_body_totalseg.mrk.json").read_text())["markups"]
    assert len(lines) == len(markups) == len(found["mr_body_totalseg"]["box"]) > 0
    for line, markup in zip(lines, markups, strict=True):
        assert markup["center"] == pytest.approx([-float(line["x"]), -float(line["y"]), float(line["z"])])
        assert markup["size"] == pytest.approx([float(line[side]) for side in ("width", "height", "depth")])
        assert markup["name"].startswith(line["class"])
    assert predict(finished, scans, tmp_path / "out", **options) == rows  # nothing is done twice
    # a model and its copy agree, and mirror images are looked at
    one = scans / "mr_body_totalseg.nii.gz"
    for name in ("model.pt", "model.json"):
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(finished / name, tmp_path / "copy")
    twice = predict(f"[{finished}, {tmp_path / 'copy/model.pt'}]", one, tmp_path / "two", **options)
    assert twice["mr_body_totalseg"]["boxes"] == rows["mr_body_totalseg"]["boxes"]
    predict(finished, one, tmp_path / "few", score_threshold=0.99)
    assert json.loads((tmp_path / "few/boxes.json").read_text())["predictions"][0]["box"] == []


def test_the_run_leaves_everything_it_promises(finished: Path, folder: Path):
    assert finished.parent == folder / "runs/detection"
    for name in ("config.yaml", "metrics.csv", "curves.png", "summary.md", "model.pt", "model.json", "boxes.json"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "panels/epoch_0002.png").exists() and (finished / "checkpoints/best.pt").exists()
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    figures = ("train/classes", "train/boxes", "train/loss", "validation/map", "validation/recall")
    assert len(rows) == 2 and all(np.isfinite(float(row[figure])) for row in rows for figure in figures)
    assert float(rows[0]["train/boxes"]) > 0, "no anchor matched a box"
    assert {"validation/kidney", "validation/precision_iou_0.10"} <= rows[0].keys()


def test_the_product_is_the_state_dict_of_a_plain_retinanet(finished: Path):
    about = json.loads((finished / "model.json").read_text())
    assert about["classes"] == CLASSES and len(about["anchor_shapes"]) == 3 and about["spacing"] == [6, 6, 6]
    assert about["task"] == "detection" and about["in_channels"] == 1 and about["modality"] == "auto"
    assert about["mirror_axes"] == [0, 1, 2] and about["mr_floor"] == 3.0
    channels, layers = about["out_channels"], about["returned_layers"]
    extractor = ResNetFPN(about["encoder"], returned_layers=layers, out_channels=channels)
    network = RetinaNet(3, len(about["classes"]), len(about["anchor_shapes"]), extractor)
    network.load_state_dict(torch.load(finished / "model.pt", weights_only=True), strict=True)


def test_predicted_boxes_are_listed_in_mm_within_the_volume(finished: Path, data_dir: Path):
    content = json.loads((finished / "boxes.json").read_text())
    one = next(entry for entry in content["validation"] if entry["image"].startswith("mr_body"))
    boxes, scores = np.array(one["box"]), one["score"]
    assert 0 < len(boxes) == len(scores) == len(one["label"]) and scores == sorted(scores, reverse=True)
    image = nib.load(data_dir / "volumes/mr_body_totalseg.nii.gz")
    ends = nib.affines.apply_affine(image.affine, [[0, 0, 0], np.array(image.shape) - 1])
    low, high = ends.min(0) - 6 * 32, ends.max(0) + 6 * 32  # with padding
    assert (boxes[:, :3] > low).all() and (boxes[:, :3] < high).all() and (boxes[:, 3:] > 0).all()
    with (finished / "boxes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == sum(len(entry["box"]) for entry in content["validation"])


def test_a_pretrained_resnet_is_found_in_the_detector(folder: Path, weights: Path):
    flow = workflow(folder, pretrained=str(weights), spacing=None, schedule="frozen", layer_decay=0.5)
    assert [step["file"] for step in flow.parser.get_parsed_content("model_settings")["origin"]] == [weights.name]
    flow.initialize()
    transfer = flow.parser.get_parsed_content("transfer")
    assert transfer.report.prefix == "feature_extractor.body."
    assert transfer.network.feature_extractor.body["conv1"].weight.eq(0.01).all()
    given = set(torch.load(weights, weights_only=True))
    assert {key for key in given if key.startswith(("layer3", "layer4"))} == set(transfer.report.unexpected)
    assert not transfer.report.reshaped and not transfer.report.missing
    flow.run()
    encoder = {name: tensor for name, tensor in transfer.network.named_parameters() if name in transfer.depths}
    assert encoder and all(tensor.eq(0.01).all() for tensor in encoder.values())  # frozen
    assert transfer.network.regression_head.bbox_reg.weight.grad is not None


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(folder: Path, tmp_path: Path):
    whole = run(folder, output_dir=str(tmp_path / "whole"))
    part = str(tmp_path / "part")
    run(folder, output_dir=part, **{"train#trainer#max_epochs": 1})
    run(folder, output_dir=part, resume=True)
    a, b = (torch.load(path / "checkpoints/last.pt", weights_only=True)["network"] for path in (whole, Path(part)))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_monai_finds_all_properties_of_a_training_bundle(folder: Path):
    flow = workflow(folder)
    flow.initialize()
    assert flow.check_properties() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": []}, "--classes"),
        ({"classes": ["kidney"]}, "label 1"),
        ({"crop_size": [40, 32, 16]}, "--crop_size"),
        ({"encoder": {"name": "SegResEncoder"}}, "encoder_resnet50.yaml"),
        ({"feature_extractor#returned_layers": [1, 3]}, "returned_layers"),
        ({"feature_extractor#out_channels": 12}, "out_channels"),
        ({"dataset_dir": "/nowhere"}, "dataset.json"),
        ({"detector#nms_treshold": 0.5}, "nms_threshold"),
        ({"pretrained": "/nowhere/model.pt"}, "/nowhere/model.pt"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(folder: Path, changed: dict, message: str):
    flow = workflow(folder, **changed)
    with pytest.raises((RuntimeError, ValueError)) as error:  # noqa: PT012 - some are found before, some while running
        flow.initialize()
        flow.run()
    found = user_error_in(error.value)
    assert found is not None, repr(error.value)
    assert message in str(found) and "\n" not in str(found)


def test_an_evaluation_of_the_run_predicts_first_and_says_which_scans_it_has_seen(
    finished: Path, folder: Path, tmp_path: Path
):
    config = str(ROOT / "configs/evaluate_detection.yaml")
    given = {"model": str(finished), "dataset_dir": str(folder / "dataset.json"), "output_dir": str(tmp_path / "out")}
    given |= {"device": "cpu", "part": "validation"}
    flow = ConfigWorkflow(config, workflow_type="infer", num_workers=0, resamples=5, worst=1, **given)
    flow.initialize()
    flow.run()
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["settings"]["classes"] == CLASSES and found["settings"]["cases"]["evaluated"] == 2
    assert found["notes"][0].startswith("1 of 2 scans were trained on")  # the one without a box is in both lists
    rows = table(tmp_path / "out/cases.csv")
    assert sum(int(row["boxes"]) for row in rows) == 3 and len(rows) == 4
