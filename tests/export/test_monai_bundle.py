# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/export_bundle.py: a run of the real config becomes a bundle that MONAI accepts and that segments scans."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import export_bundle
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, CropForegroundd, Orientationd
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_to_output
from scipy import ndimage

from bundle import data as components
from bundle.errors import UserError, user_error_in
from bundle.export.monai_bundle import FinishedRun, data_licence, inference_config, metadata, model_card
from tests.commands import run_python

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/finetune_segmentation.yaml")
CT_CLASSES = {"liver": 5, "right lung": 300}  # neither numbered from 1 nor in 8 bits
OPTIONS = {
    "crop_size": [32, 32, 16],
    "epochs": 1,
    "steps_per_epoch": 6,
    "batch_size": 1,
    "val_interval": 1,
    "warmup_epochs": 0.5,
    "num_workers": 0,
    "device": "cpu",
    "lr": 0.02,
    "fit_heads": 2,
    "pretrained": None,
    "val_fraction": 0,
    "encoder#init_filters": 4,
    "encoder#blocks_down": [1, 1, 1],
}


def train(folder: Path, images: list[Any], label: Any, **options: Any) -> Path:
    """A run on one labelled scan; its folder."""
    for number, image in enumerate(images):
        (folder / "labelled/imagesTr").mkdir(parents=True, exist_ok=True)
        nibabel.save(image, folder / f"labelled/imagesTr/scan_{number:04d}.nii.gz")
    (folder / "labelled/labelsTr").mkdir()
    nibabel.save(label, folder / "labelled/labelsTr/scan.nii.gz")
    kind = "MRI" if len(images) > 1 else "CT"
    listed = {"channel_names": dict.fromkeys(map(str, range(len(images))), kind), "numTraining": 1}
    (folder / "labelled/dataset.json").write_text(json.dumps(listed))
    run = folder / "a run"
    given = {**OPTIONS, "bundle_root": str(folder), "dataset_dir": str(folder / "labelled"), "output_dir": str(run)}
    flow = ConfigWorkflow([CONFIG], workflow_type="train", run_id="training", **{**given, **options})
    flow.initialize()
    flow.run()
    flow.finalize()
    return run


@pytest.fixture(scope="module")
def body(data_dir: Path) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """The labelled part of a CT, at 6 mm, and its label map, whose value 10 becomes 300."""
    label = nibabel.load(data_dir / "labels/ct_body_totalseg.nii.gz")
    image = nibabel.load(data_dir / "volumes/ct_body_totalseg.nii.gz")
    values = np.asarray(label.dataobj)[::2, ::2, ::2].astype(np.uint16)
    values[values == 10] = 300
    values[values == 11] = 300
    affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    array = np.asarray(image.dataobj)[::2, ::2, : label.shape[2] : 2].astype(np.int16)
    return nibabel.Nifti1Image(array, affine), nibabel.Nifti1Image(values, affine)


@pytest.fixture(scope="module")
def ct_run(body, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("ct"), [body[0]], body[1], classes=CT_CLASSES, spacing=[7, 7, None])


@pytest.fixture(scope="module")
def brain(data_dir: Path) -> list[nibabel.Nifti1Image]:
    """Two images of one head at 8 mm."""
    image = resample_to_output(nibabel.load(data_dir / "volumes/mr_brain_mni152.nii.gz"), 8.0, order=1)
    array = np.asarray(image.dataobj, dtype=np.float32)
    return [nibabel.Nifti1Image(one, image.affine) for one in (array, (array - 60) ** 2)]


@pytest.fixture(scope="module")
def mr_run(brain, tmp_path_factory) -> Path:
    label = nibabel.Nifti1Image((np.asarray(brain[0].dataobj) > 100).astype(np.uint8), brain[0].affine)
    options = {"classes": {"bright": 1}, "spacing": "own", "in_channels": 2, "crop_size": [16, 16, 16]}
    return train(tmp_path_factory.mktemp("mr"), brain, label, **options)


def export(run: Path, output: Path, *options: str) -> Path:
    assert export_bundle.main(["--run", str(run), "--output", str(output), *options]) == 0
    return output


@pytest.fixture(scope="module")
def ct_bundle(ct_run, tmp_path_factory) -> Path:
    return export(ct_run, tmp_path_factory.mktemp("exported") / "liver and lung", "--licence", "CC BY 4.0")


def segment(bundle: Path, scans: Path, output: Path, **options: Any) -> ConfigWorkflow:
    """Runs the bundle's own config, as `python -m monai.bundle run` does."""
    given = {"bundle_root": str(bundle), "dataset_dir": str(scans), "output_dir": str(output), **options}
    configs = bundle / "configs"
    flow = ConfigWorkflow(
        str(configs / "inference.json"), str(configs / "metadata.json"), False, workflow_type="infer", **given
    )
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    return flow


def expected(run: FinishedRun, item: dict[str, Any], written: nibabel.Nifti1Image) -> np.ndarray:
    """The label map by training's own preparation and SciPy: nothing of MONAI's inverse transforms."""
    about = run.content
    scale = {name: about[name] for name in ("ct_window", "mr_percentiles", "mr_floor")}
    prepare = Compose([
        components.ReadVolumed("image", channels=run.in_channels),
        Orientationd("image", "RAS", labels=None),
        components.OptionalSpacingd("image", about["spacing"]),
        components.Modalityd("image", run.modality),
        components.Foregroundd("image"),
        components.NormalizeByModalityd("image", **scale),
        CropForegroundd(["image", "foreground"], "foreground", margin=4, allow_smaller=True),
        components.PadToCropd("image", spatial_size=about["crop_size"]),
    ])  # fmt: skip
    image = prepare(item)["image"]
    windows = SlidingWindowInferer(about["crop_size"], 2, 0.5, "gaussian")
    with torch.no_grad():
        found = windows(image.as_tensor()[None], run.build_network())[0].softmax(0).numpy()
    to_index = np.linalg.inv(np.asarray(image.affine)) @ written.affine
    voxels = np.indices(written.shape).reshape(3, -1)
    places = to_index[:3, :3] @ voxels + to_index[:3, 3:]
    values = np.stack([ndimage.map_coordinates(one, places, order=1, mode="nearest") for one in found])
    inside = ((places > -0.75) & (places < np.array(found.shape[1:])[:, None] - 0.25)).all(0)
    of_channel = np.array([0, *run.classes.values()])
    return of_channel[np.where(inside, values.argmax(0), 0)].reshape(written.shape)


def compare(run: FinishedRun, item: dict[str, Any], file: Path) -> float:
    """The share of voxels at which the written map is the expected one; what it may differ in is checked."""
    written = nibabel.load(file)
    values = np.asarray(written.dataobj)
    assert {0, *run.classes.values()} >= set(np.unique(values)) and len(np.unique(values)) > 1
    return float((values == expected(run, item, written)).mean())


def write_scans(folder: Path, image: nibabel.Nifti1Image, *, tilted: bool) -> dict[str, nibabel.Nifti1Image]:
    """One scan in several orientations and grids, under names that are no plain words."""
    array, affine = np.asarray(image.dataobj), image.affine
    turned = ornt_transform(io_orientation(affine), axcodes2ornt("PIL"))
    angle = np.deg2rad(12)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    made = {
        "in [a] folder/turned round.nii.gz": image.as_reoriented(turned),
        "oblique.nii": nibabel.Nifti1Image(array[:, ::2], rotation @ affine @ np.diag([1.0, 2.0, 1.0, 1.0])),
    }
    if tilted:
        sheared = affine.copy()
        sheared[1, 2] += 2
        made["tilted.nii.gz"] = nibabel.Nifti1Image(array, sheared)
    for name, scan in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(scan, folder / name)
    return made


def result(output: Path, name: str) -> Path:
    return output / f"{name.removesuffix('.gz').removesuffix('.nii')}_seg.nii.gz"


def test_everything_that_a_receiver_needs_is_in_the_folder(ct_run: Path, ct_bundle: Path):
    files = {file.relative_to(ct_bundle).as_posix() for file in ct_bundle.rglob("*") if file.is_file()}
    assert files == {
        "LICENSE", "configs/inference.json", "configs/logging.conf", "configs/metadata.json", "docs/README.md",
        "docs/data_license.txt", "models/model.json", "models/model.pt", "models/model.ts",
    }  # fmt: skip
    about = json.loads((ct_bundle / "configs/metadata.json").read_text())
    network = about["network_data_format"]
    assert network["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "right lung"}
    assert network["outputs"]["pred"]["num_channels"] == 3
    assert network["inputs"]["image"]["spatial_shape"] == [32, 32, 16]
    assert network["inputs"]["image"]["modality"] == "CT" and about["classes"] == CT_CLASSES
    assert about["name"] == "liver and lung"
    given, kept = (torch.load(folder / "model.pt", weights_only=True) for folder in (ct_run, ct_bundle / "models"))
    assert given.keys() == kept.keys() and all(torch.equal(given[key], kept[key]) for key in given)
    texts = [file.read_text() for file in ct_bundle.rglob("*") if file.suffix in (".json", ".md", ".txt", ".conf")]
    assert not [text for text in texts if str(ct_run.parent) in text]  # no path of those who trained it
    with zipfile.ZipFile(ct_bundle / "models/model.ts") as script:
        inside = b"".join(script.read(name) for name in script.namelist())
    assert not [path for path in (ct_run.parent, ROOT, sys.prefix) if os.fsencode(path) in inside]


def test_the_model_card_says_what_the_run_knows(ct_run: Path, ct_bundle: Path):
    card = (ct_bundle / "docs/README.md").read_text()
    run = FinishedRun.read(ct_run)
    assert "| 2 | right lung | 300 |" in card and "Trained on 1 CT volumes" in card
    for name, value in run.dice().items():
        assert f"| {'mean of the classes' if name == 'mean' else name} | {value:.4f} |" in card
    assert set(run.dice()) == {"mean", *CT_CLASSES}
    assert "training volumes (nothing was held out)" in card and "validation Dice" not in card
    assert "Not a medical device" in card and "-1000 to 1000 HU" in card and "7 x 7 x own mm" in card
    assert "The weights in models/: CC BY 4.0." in (ct_bundle / "docs/data_license.txt").read_text()


def test_the_terms_name_every_step_that_led_to_the_weights(ct_run: Path):
    theirs = {"file": "ct_fm.safetensors", "licence": "CC BY-SA 4.0", "trained_on": "148,000 CT scans", "source": "Pai"}
    ours = {"file": "model.pt", "licence": "that of the weights it began with: CC BY-SA 4.0"}
    ours["volumes"] = {"training": {"CT": 3, "MR": 1}}
    run = FinishedRun.read(ct_run)
    content = {**run.content, "pretrained": "gone/model.pt", "origin": [theirs, ours]}
    run = dataclasses.replace(run, content=content)
    terms = data_licence(run, None)
    assert f"their licence: {ours['licence']}. They were trained on 4 unlabelled volumes." in terms
    assert "went on from ct_fm.safetensors (Pai), trained on 148,000 CT scans; their licence: CC BY-SA 4.0." in terms
    assert metadata(run, title="a", components="bundle")["origin"] == [theirs, ours]
    assert "Training began from scratch." in data_licence(FinishedRun.read(ct_run), None)


SCAN = torch.tensor([-2000.0, -1024.0, 0.0, 512.0, 3000.0]).view(1, 1, 1, 5)
RANGE = {"kind": "range", "window": [-1024, 2048], "to": [0, 1]}
FIXED = {"kind": "statistics", "window": [-900.0, 300.0], "mean": 40.0, "deviation": 120.0}


@pytest.mark.parametrize(
    ("scheme", "lines"),
    [
        (RANGE, ["- intensities: clipped to -1024 to 2048, mapped to 0 to 1"]),
        (FIXED, ["- intensities: clipped to -900 to 300, minus 40, divided by 120"]),
        ({"kind": "rescale"}, ["- intensities: from the lowest to the highest value, mapped to 0 to 1"]),
        ([RANGE, RANGE], ["- intensities: clipped to -1024 to 2048, mapped to 0 to 1"]),
        (
            [RANGE, {"kind": "rescale"}, FIXED],
            [
                "- image 0: clipped to -1024 to 2048, mapped to 0 to 1",
                "- image 1: from the lowest to the highest value, mapped to 0 to 1",
                "- image 2: clipped to -900 to 300, minus 40, divided by 120",
            ],
        ),
    ],
)
def test_card_and_metadata_tell_the_intensities_of_weights_from_elsewhere(ct_run: Path, scheme: Any, lines: list[str]):
    run = FinishedRun.read(ct_run)
    count = len(scheme) if isinstance(scheme, list) else 1
    run = dataclasses.replace(run, content={**run.content, "in_channels": count, "intensity_scheme": scheme})
    card = model_card(run, title="a", components="bundle", has_torchscript=False)
    told = card.split("## Preparation of a scan")[1].split("##")[0].strip().splitlines()
    assert told[1:-1] == lines and "HU" not in card
    seen = components.NormalizeBySchemed(scheme=scheme)({"image": SCAN.expand(count, -1, -1, -1), "name": "a"})["image"]
    inputs = metadata(run, title="a", components="bundle")["network_data_format"]["inputs"]
    assert inputs["image"]["value_range"] == pytest.approx([seen.min().item(), seen.max().item()], abs=1e-4)


@pytest.mark.parametrize(
    ("scheme", "words", "values"),
    [
        ({"kind": "z_score", "over": "nonzero_box"}, "of the smallest box with all voxels that are not 0", [-10, 10]),
        ({"kind": "z_score"}, "divided by the standard deviation, of the volume", [-10, 10]),
        ({"kind": "none"}, "intensities: as in the file", []),
    ],
)
def test_intensities_without_bounds_are_told_in_words(ct_run: Path, scheme: Any, words: str, values: list[float]):
    run = FinishedRun.read(ct_run)
    run = dataclasses.replace(run, content={**run.content, "intensity_scheme": scheme})
    assert words in model_card(run, title="a", components="bundle", has_torchscript=False)
    inputs = metadata(run, title="a", components="bundle")["network_data_format"]["inputs"]
    assert inputs["image"]["value_range"] == values


def test_no_fingerprint_of_a_scan_is_handed_on(ct_run: Path, tmp_path: Path):
    run = shutil.copytree(ct_run, tmp_path / "run")
    about = json.loads((run / "model.json").read_text())
    own = [digest for part in about["fingerprints"].values() for digest in part]
    step = {"file": "model.pt", "licence": "x", "fingerprints": {"training": ["f1f1f1f1"]}}
    (run / "model.json").write_text(json.dumps({**about, "pretrained": "gone/model.pt", "origin": [step]}))
    bundle = export(run, tmp_path / "exported")
    texts = [file.read_bytes() for file in bundle.rglob("*") if file.suffix in (".json", ".md", ".txt", ".conf")]
    with zipfile.ZipFile(bundle / "models/model.ts") as script:
        texts += [script.read(name) for name in script.namelist()]
    assert own and not [digest for digest in (*own, "f1f1f1f1") if any(digest.encode() in text for text in texts)]
    for file in ("configs/metadata.json", "models/model.json"):
        assert json.loads((bundle / file).read_text())["origin"] == [{"file": "model.pt", "licence": "x"}]


def test_torchscript_is_the_network_and_holds_both_configs(ct_run: Path, ct_bundle: Path):
    extra = {"inference.json": "", "metadata.json": ""}
    network = torch.jit.load(ct_bundle / "models/model.ts", _extra_files=extra).eval()
    assert json.loads(extra["inference.json"]) == json.loads((ct_bundle / "configs/inference.json").read_text())
    assert json.loads(extra["metadata.json"])["classes"] == CT_CLASSES
    image = torch.rand(2, 1, 64, 32, 48)
    with torch.no_grad():
        assert torch.allclose(network(image), FinishedRun.read(ct_run).build_network()(image), atol=1e-5)


def test_monai_alone_segments_as_the_run_does(ct_run: Path, ct_bundle: Path, body, tmp_path: Path):
    assert '"bundle.' not in (ct_bundle / "configs/inference.json").read_text()
    scans = write_scans(tmp_path / "scans", body[0], tilted=False)
    segment(ct_bundle, tmp_path / "scans", tmp_path / "out")
    for name, scan in scans.items():
        written = nibabel.load(result(tmp_path / "out", name))
        assert written.shape == scan.shape and np.abs(written.affine - scan.affine).max() < 1e-4
        assert written.get_data_dtype() == np.uint16
        item = {"image": [str(tmp_path / "scans" / name)], "name": name, "modality": ""}
        assert compare(FinishedRun.read(ct_run), item, result(tmp_path / "out", name)) >= 0.999


def test_with_this_package_label_maps_are_the_runs_own(ct_run: Path, body, tmp_path: Path):
    bundle = export(ct_run, tmp_path / "exported", "--components", "bundle")
    scans = write_scans(tmp_path / "scans", body[0], tilted=True)
    tiny = body[0].slicer[20:36, 20:36, 2:10]  # smaller than the crop, and without air
    nibabel.save(tiny, tmp_path / "scans/tiny.nii.gz")
    segment(bundle, tmp_path / "scans", tmp_path / "out")
    for name, scan in {**scans, "tiny.nii.gz": tiny}.items():
        written = nibabel.load(result(tmp_path / "out", name))
        assert written.shape == scan.shape and np.abs(written.affine - scan.affine).max() < 1e-4
        item = {"image": [str(tmp_path / "scans" / name)], "name": name, "modality": ""}
        same = compare(FinishedRun.read(ct_run), item, result(tmp_path / "out", name))
        assert same >= (0.95 if "tilted" in name else 0.9999)  # that one is interpolated twice, not once


def test_the_packages_own_prediction_says_the_same(ct_run: Path, ct_bundle: Path, body, tmp_path: Path):
    (tmp_path / "scans").mkdir()
    nibabel.save(body[0], tmp_path / "scans/scan.nii.gz")
    segment(ct_bundle, tmp_path / "scans", tmp_path / "out")
    model = str(ct_bundle / "models/model.pt")  # which this package takes, too
    given = {"model": model, "dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "predicted")}
    options = {"device": "cpu", "mirrors": False, "num_workers": 0, "report_scans": 0}
    flow = ConfigWorkflow(str(ROOT / "configs/predict_segmentation.yaml"), workflow_type="infer", **given, **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    one, other = (tmp_path / name for name in ("out/scan_seg.nii.gz", "predicted/label_maps/scan.nii.gz"))
    labels, predicted = (np.asarray(nibabel.load(file).dataobj) for file in (one, other))
    assert len(np.unique(labels)) > 1
    assert (labels == predicted).mean() >= 0.9999  # both average logits over windows; float32 is rounded otherwise


def test_several_channels_of_mr_are_prepared_by_this_package(mr_run: Path, brain, tmp_path: Path, capsys):
    bundle = export(mr_run, tmp_path / "exported")
    assert "needs MONAI and this package (MR is scaled by the percentiles" in capsys.readouterr().out
    scans = tmp_path / "scans"
    scans.mkdir()
    turned = ornt_transform(io_orientation(brain[0].affine), axcodes2ornt("ASR"))
    stack = np.stack([np.asarray(one.as_reoriented(turned).dataobj) for one in brain], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, brain[0].as_reoriented(turned).affine), scans / "head.nii.gz")
    segment(bundle, scans, tmp_path / "out")
    item = {"image": [str(scans / "head.nii.gz")], "name": "head", "modality": ""}
    assert compare(FinishedRun.read(mr_run), item, tmp_path / "out/head_seg.nii.gz") >= 0.9999
    cases = tmp_path / "cases"
    cases.mkdir()
    files = [cases / f"head_{number:04d}.nii.gz" for number in range(2)]  # as nnU-Net names them
    for image, file in zip(brain, files, strict=True):
        nibabel.save(image, file)
    segment(bundle, cases, tmp_path / "other")
    item = {"image": [str(files[0])], "channels": [[str(files[1])]], "name": "head", "modality": ""}
    assert compare(FinishedRun.read(mr_run), item, tmp_path / "other/head_seg.nii.gz") >= 0.9999


def test_the_command_runs_from_inside_the_bundle(ct_bundle: Path, body, tmp_path: Path):
    nibabel.save(body[0], tmp_path / "scan.nii.gz")
    copy = shutil.copytree(ct_bundle, tmp_path / "received")
    line = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    line += ["--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    done = run_python(*line, cwd=copy, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out/scan_seg.nii.gz").is_file()


def test_apps_that_number_classes_find_transforms_without_the_original_values(ct_bundle: Path):
    config = json.loads((ct_bundle / "configs/inference.json").read_text())
    names = {key: [t["_target_"] for t in config[key]["transforms"]] for key in ("postprocessing", "post_transforms")}
    assert names["postprocessing"] == [*names["post_transforms"], "MapLabelValued", "SaveImaged"]


def test_many_classes_are_inverted_as_a_label_map(ct_run: Path):
    run = FinishedRun.read(ct_run)
    many = dataclasses.replace(run, content={**run.content, "classes": {f"class {n}": n for n in range(1, 10)}})
    few, most = (inference_config(each, components="monai")["postprocessing"]["transforms"] for each in (run, many))
    assert [each["_target_"] for each in few[:3]] == ["Activationsd", "Invertd", "AsDiscreted"]
    assert [each["_target_"] for each in most] == ["AsDiscreted", "Invertd", "SaveImaged"]
    assert not few[1]["nearest_interp"] and most[1]["nearest_interp"]


def test_an_earlier_bundle_is_replaced_on_request_only(ct_run: Path, tmp_path: Path, capsys):
    line = ["--run", str(ct_run), "--output", str(tmp_path / "exported")]
    export(ct_run, tmp_path / "exported")
    (tmp_path / "exported/mark").touch()
    assert export_bundle.main(line) == 1
    assert "is there already: pass --overwrite" in capsys.readouterr().err
    assert export_bundle.main([*line, "--overwrite"]) == 0 and not (tmp_path / "exported/mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    assert export_bundle.main([*line[:3], str(tmp_path / "mine"), "--overwrite"]) == 1
    assert "is there and no exported bundle" in capsys.readouterr().err and (tmp_path / "mine/notes.txt").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "detection"}, "is a detection run: give one of configs/finetune_segmentation.yaml"),
        ({"task": None, "findings": ["mass"], "classes": None}, "is a classification run"),
        ({"classes": None}, "is no segmentation run"),
        ({"network": {"name": "SegResNetDS"}}, "does not tell the arguments of its network"),
    ],
)
def test_other_runs_are_refused_in_one_line(ct_run: Path, tmp_path: Path, change: dict[str, Any], said: str):
    shutil.copytree(ct_run, tmp_path / "run")
    about = json.loads((tmp_path / "run/model.json").read_text())
    (tmp_path / "run/model.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match=said) as caught:
        FinishedRun.read(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_unfinished_runs_and_other_folders_are_refused(ct_run: Path, mr_run: Path, tmp_path: Path, capsys):
    shutil.copytree(ct_run, tmp_path / "run")
    page = (tmp_path / "run/summary.md").read_text()
    (tmp_path / "run/summary.md").write_text(page.replace("Training completed", "Training interrupted"))
    with pytest.raises(UserError, match="has not come to its end: go on with it"):
        FinishedRun.read(tmp_path / "run")
    with pytest.raises(UserError, match=r"has no model\.pt with its model\.json: give the folder of a run"):
        FinishedRun.read(tmp_path)
    (tmp_path / "file").touch()
    assert export_bundle.main(["--run", str(ct_run), "--output", str(tmp_path / "file/out")]) == 1
    assert "file cannot be written (" in capsys.readouterr().err
    line = ["--run", str(mr_run), "--output", str(tmp_path / "out"), "--components", "monai"]
    assert export_bundle.main(line) == 1
    assert "--components monai does not fit this run" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_without_scans_is_an_error(ct_bundle: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError) as caught:
        segment(ct_bundle, tmp_path / "empty", tmp_path / "out")
    assert "empty/a NIfTI, NRRD or MetaImage file" in lacking(caught.value)


def lacking(told: BaseException | None) -> str:
    """What MONAI's own config says that there is not."""
    while told is not None and not isinstance(told, FileNotFoundError):
        told = told.__cause__
    return str(told)


def test_monai_alone_takes_no_results_for_scans_and_no_two_scans_of_one_name(ct_bundle: Path, body, tmp_path: Path):
    nibabel.save(body[0], tmp_path / "scan.nii.gz")
    for _ in range(2):
        segment(ct_bundle, tmp_path, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["scan_seg.nii.gz"]
    nibabel.save(body[0], tmp_path / "scan.nii")
    with pytest.raises(RuntimeError) as caught:
        segment(ct_bundle, tmp_path, tmp_path / "out")
    assert "other names, as the results of two files would have the same one" in lacking(caught.value)


def test_a_scan_that_cannot_be_read_is_named(mr_run: Path, tmp_path: Path):
    bundle = export(mr_run, tmp_path / "exported")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/broken.nii.gz").write_bytes(b"no image")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        segment(bundle, tmp_path / "scans", tmp_path / "out")
    known = user_error_in(caught.value)
    assert known is not None and "broken: cannot be read" in str(known)
