# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning for segmentation as a user runs it: configs, command line, real volumes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from pydoc import locate
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.networks import nets
from nibabel.processing import resample_to_output

from bundle.errors import user_error_in
from bundle.training import History
from bundle.weights import checksum
from tests.commands import run_python
from tests.export.models import write_model
from tests.networks.encoder_cases import Case

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/finetune_segmentation.yaml")
CLASSES = {"grey": 1, "white": 2}
ENCODER = {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": ["instance", {"affine": True}]}
QUICK = {
    "classes": CLASSES,
    "crop_size": [32, 32, 32],
    "spacing": "own",
    "epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 1,
    "val_interval": 1,
    "warmup_epochs": 0.5,
    "num_workers": 0,
    "device": "cpu",
    "lr": 0.01,
}


@pytest.fixture(scope="module")
def brain(data_dir: Path) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """A head and its label map at 6 mm: 0 the rest, 1 grey matter, 2 white matter."""
    image, grey, white = (
        resample_to_output(nibabel.load(data_dir / file), 6.0, order=1)
        for file in (
            "volumes/mr_brain_mni152.nii.gz",
            "labels/mr_brain_mni152_grey.nii.gz",
            "labels/mr_brain_mni152_white.nii.gz",
        )
    )
    maps = [np.asarray(one.dataobj, dtype=np.float32) for one in (grey, white)]
    label = np.stack([127 + 0 * maps[0], *maps]).argmax(0).astype(np.uint8)
    picture = np.asarray(image.dataobj, dtype=np.float32)
    return nibabel.Nifti1Image(picture, image.affine), nibabel.Nifti1Image(label, image.affine)


@pytest.fixture(scope="module")
def bundle_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root of its own with a small encoder under models/, "pre-trained" at the spacing of the volumes."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "models").mkdir()
    write_model(root / "models", Case("SegResEncoder", ENCODER, ()), spacing=[6, 6, 6], mr_percentiles=[1, 99])
    return root


@pytest.fixture(scope="module")
def dataset(brain: tuple[nibabel.Nifti1Image, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads, the second darker and mirrored, in the layout of folders; and a file that is no image."""
    folder = tmp_path_factory.mktemp("labelled")
    write_pairs(folder, brain)
    (folder / "imagesTr/broken.nii.gz").write_bytes(b"not an image")
    (folder / "labelsTr/broken.nii.gz").write_bytes(b"not an image")
    return folder


def write_pairs(folder: Path, brain: tuple[nibabel.Nifti1Image, ...]) -> None:
    image, label = brain
    for kind, volume in (("imagesTr", image), ("labelsTr", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        array = np.asarray(volume.dataobj)
        nibabel.save(volume, folder / kind / "head_a.nii.gz")
        other = array[::-1] * (0.8 if kind == "imagesTr" else 1)
        nibabel.save(nibabel.Nifti1Image(other.astype(array.dtype), volume.affine), folder / kind / "head_b.nii.gz")


def workflow(root: Path, dataset: Path, *more: str, **overrides: Any) -> ConfigWorkflow:
    given = {**QUICK, "bundle_root": str(root), "dataset_dir": str(dataset), **overrides}
    return ConfigWorkflow([CONFIG, *more], workflow_type="train", run_id="training", **given)


def run(root: Path, dataset: Path, *more: str, **overrides: Any) -> tuple[Path, ConfigWorkflow]:
    """Trains for a moment; the run's folder, and the workflow to look into."""
    flow = workflow(root, dataset, *more, **overrides)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow.parser.get_parsed_content("run_folder").path, flow


def problem(root: Path, dataset: Path, *more: str, **overrides: Any) -> str:
    """What the user reads of a run that cannot be."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(root, dataset, *more, **overrides)
    found = user_error_in(caught.value)
    assert found is not None, f"not a UserError: {caught.value!r}"
    assert "\n" not in str(found)
    return str(found)


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    content = torch.load(file, weights_only=True)
    return content.get("network", content)


@pytest.fixture(scope="module")
def finished(bundle_root: Path, dataset: Path) -> Path:
    return run(bundle_root, dataset, epochs=3)[0]


def test_values_of_the_label_maps_without_a_class_are_in_the_summary_and_the_report(
    bundle_root: Path, dataset: Path, tmp_path: Path
):
    folder, _ = run(bundle_root, dataset, classes={"white": 2}, epochs=1, steps_per_epoch=1, output_dir=str(tmp_path))
    told = "label values without a class: 2 of 2 label maps hold values that no class has: 1 (all)"
    assert f"- {told}; they count as background" in (folder / "summary.md").read_text()
    assert told.partition(": ")[2] in (folder / "report.html").read_text()


def test_classes_that_are_not_given_are_those_of_the_datasets_json(bundle_root: Path, dataset: Path, tmp_path: Path):
    shutil.copytree(dataset, tmp_path / "labelled")
    labels = {"background": 0, "white": 2, "grey": 1}
    (tmp_path / "labelled/dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "MRI"}}))
    parser = workflow(bundle_root, tmp_path / "labelled", classes={}).parser
    assert parser.get_parsed_content("class_values") == CLASSES and parser.get_parsed_content("class_count") == 3
    assert parser.get_parsed_content("prepare").transforms[1].classes == CLASSES
    labels["brain"] = [1, 2]
    (tmp_path / "labelled/dataset.json").write_text(json.dumps({"labels": labels}))
    assert "the region 'brain'" in problem(bundle_root, tmp_path / "labelled", classes={})


def test_the_run_leaves_everything_it_promises(finished: Path, bundle_root: Path):
    assert finished.parent == bundle_root / "runs/segmentation"
    for name in ("config.yaml", "metrics.csv", "curves.png", "summary.md", "model.pt", "model.json"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "panels/epoch_0003.png").exists() and any((finished / "tensorboard").iterdir())
    wanted = {"train/loss", "validation/dice", "validation/dice/grey", "validation/dice/white"}
    assert all(wanted | {"validation/surface_distance_mm"} <= row.keys() for row in metrics(finished))


def test_the_product_is_the_epoch_with_the_highest_dice_and_loads_into_plain_monai(finished: Path):
    rows, about = metrics(finished), json.loads((finished / "model.json").read_text())
    best = max(rows, key=lambda row: row["validation/dice"])
    assert about["epoch"] == best["epoch"] == torch.load(finished / "checkpoints/best.pt", weights_only=True)["epoch"]
    assert f"## Metrics of epoch {best['epoch']:.0f}" in (finished / "summary.md").read_text()
    arguments = dict(about["network"])
    network = getattr(nets, arguments.pop("name"))(**arguments)
    assert type(network) is nets.SegResNetDS
    network.load_state_dict(weights(finished / "model.pt"), strict=True)
    assert about["spacing"] is None and about["mr_percentiles"] == [1, 99] and about["classes"] == CLASSES
    assert about["task"] == "segmentation" and about["in_channels"] == 1 and about["modality"] == "auto"
    assert about["mirror_axes"] == []


def test_a_broken_volume_is_skipped_and_reported(finished: Path):
    text = (finished / "summary.md").read_text()
    assert "broken.nii.gz: cannot be read" in text and "training: 1 volume (1 MR)" in text


def test_training_starts_from_the_pretrained_encoder_or_from_scratch(bundle_root: Path, dataset: Path):
    given = torch.load(bundle_root / "models/model.pt", weights_only=True)
    for pretrained, loaded in ((str(bundle_root / "models/model.pt"), True), (None, False)):
        scratch = {} if loaded else {f"encoder#{name}": value for name, value in ENCODER.items()}
        flow = workflow(bundle_root, dataset, pretrained=pretrained, **scratch)
        flow.initialize()
        network = flow.parser.get_parsed_content("network_def")
        transfer = flow.parser.get_parsed_content("transfer")
        same = all(torch.equal(network.encoder.state_dict()[key], value) for key, value in given.items())
        assert same == loaded and (transfer.report is not None) == loaded and transfer.total_stride == (4, 4, 4)


def test_from_scratch_runs_to_the_end(bundle_root: Path, dataset: Path):
    scratch = {f"encoder#{name}": value for name, value in ENCODER.items()}
    folder, _ = run(bundle_root, dataset, pretrained=None, epochs=1, **scratch)
    assert len(metrics(folder)) == 1


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(bundle_root: Path, dataset: Path, tmp_path: Path):
    settings = {"schedule": "sawtooth", "epochs": 3}
    whole, _ = run(bundle_root, dataset, output_dir=str(tmp_path / "whole"), **settings)
    stop = {"train#trainer#max_epochs": 2}
    part, _ = run(bundle_root, dataset, output_dir=str(tmp_path / "part"), **settings, **stop)
    resumed, _ = run(bundle_root, dataset, output_dir=str(tmp_path / "part"), resume=True, **settings)
    assert resumed == part
    a, b = (weights(folder / "checkpoints/last.pt") for folder in (whole, resumed))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    for figure in ("train/loss", "validation/dice"):
        assert [row[figure] for row in metrics(whole)] == [row[figure] for row in metrics(resumed)]


def test_a_resume_with_the_classes_in_another_order_is_refused(bundle_root: Path, dataset: Path, tmp_path: Path):
    folder, _ = run(bundle_root, dataset, output_dir=str(tmp_path / "run"), epochs=1)
    before = (folder / "model.json").read_bytes()
    turned = dict(reversed(CLASSES.items()))
    said = problem(bundle_root, dataset, output_dir=str(folder), resume=True, epochs=2, classes=turned)
    assert "was trained with --classes" in said and (folder / "model.json").read_bytes() == before


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], prefix: str) -> list[bool]:
    return [not torch.equal(before[key], after[f"{prefix}{key}"]) for key in before]


def test_a_step_in_parts_is_the_step_of_the_whole_batch(bundle_root: Path, dataset: Path):
    # SGD, since rounding would decide of the sign of a gradient of 0, which is Adam's first step; Dice of each crop
    more = {
        "epochs": 1,
        "steps_per_epoch": 1,
        "val_interval": 2,
        "fit_heads": 0,
        "optimizer#_target_": "torch.optim.SGD",
    }
    more |= {"lr": 0.1, "warmup_epochs": 0.01, "loss#loss#batch": False}
    weights = []
    for parts in ({"batch_size": 4}, {"batch_size": 2, "global_batch": 4}):
        _, flow = run(bundle_root, dataset, **more, **parts)
        weights.append(flow.parser.get_parsed_content("network").state_dict())
    whole, divided = weights
    for name in whole:
        assert torch.allclose(whole[name], divided[name], rtol=0, atol=1e-5), name
    assert any(changed(torch.load(bundle_root / "models/model.pt", weights_only=True), whole, "encoder."))


def test_frozen_leaves_the_encoder_and_trains_the_rest(bundle_root: Path, dataset: Path):
    before = torch.load(bundle_root / "models/model.pt", weights_only=True)
    folder, _ = run(bundle_root, dataset, schedule="frozen", epochs=1)
    after = weights(folder / "checkpoints/last.pt")
    assert not any(changed(before, after, "encoder."))
    start = nets.SegResNetDS(out_channels=3, dsdepth=3, **ENCODER).state_dict()
    rest = [key for key in start if not key.startswith("encoder.") and start[key].is_floating_point()]
    assert all(not torch.equal(start[key], after[key]) for key in rest if key.endswith("conv.weight"))


def test_heads_are_fitted_before_the_first_step_and_nothing_else_is(bundle_root: Path, dataset: Path):
    """At a learning rate of 0 the product is what the first step begins with."""
    products = {}
    for batches in (0, 2):
        folder, _ = run(bundle_root, dataset, lr=0.0, fit_heads=batches)
        products[batches] = weights(folder / "model.pt"), metrics(folder)[-1]["train/loss"]
    (random, loss_at_random), (fitted, loss_fitted) = products[0], products[2]
    different = {key for key in random if not torch.equal(random[key], fitted[key])}
    assert different and all(".head." in key for key in different)
    assert loss_fitted < 0.8 * loss_at_random


def test_sawtooth_leaves_the_encoder_in_its_first_phase_only(bundle_root: Path, dataset: Path):
    before = torch.load(bundle_root / "models/model.pt", weights_only=True)
    settings = {"schedule": "sawtooth", "epochs": 4}  # a quarter of the steps: the first epoch
    first, _ = run(bundle_root, dataset, **settings, **{"train#trainer#max_epochs": 1})
    assert not any(changed(before, weights(first / "checkpoints/last.pt"), "encoder."))
    second, _ = run(bundle_root, dataset, **settings, **{"train#trainer#max_epochs": 2})
    assert all(changed(before, weights(second / "checkpoints/last.pt"), "encoder."))


def test_without_a_validation_the_product_holds_the_last_weights(bundle_root: Path, dataset: Path):
    folder, _ = run(bundle_root, dataset, epochs=1, val_interval=5)
    last = weights(folder / "checkpoints/last.pt")
    product = weights(folder / "model.pt")
    assert all(torch.equal(last[key], product[key]) for key in last)


def test_a_list_in_the_format_of_the_msd_decides_the_split(bundle_root: Path, dataset: Path, tmp_path: Path):
    for kind in ("imagesTr", "labelsTr"):
        shutil.copytree(dataset / kind, tmp_path / kind)
    entries = [{"image": f"./imagesTr/head_{n}.nii.gz", "label": f"./labelsTr/head_{n}.nii.gz"} for n in "ab"]
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background"},
        "training": entries[1:],
        "validation": entries[:1],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    flow = workflow(bundle_root, tmp_path)
    flow.initialize()
    volumes = flow.parser.get_parsed_content("volumes")
    assert [volume.name for volume in volumes.training] == ["./imagesTr/head_b.nii.gz"]
    assert [volume.name for volume in volumes.validation] == ["./imagesTr/head_a.nii.gz"]
    assert {volume.modality for volume in volumes.training} == {"MR"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "sawtoth"}, "--schedule 'sawtoth' is not known: choose one of full, sawtooth, frozen"),
        ({"classes": {}}, "--classes is not given"),
        ({"classes": {"grey": 1, "tumour": 7}}, "has a voxel of tumour (7)"),
        ({"crop_size": [30, 32, 32]}, "--crop_size"),
        ({"spacing": "finest"}, "--spacing 'finest'"),
        ({"ct_window": "own"}, "--ct_window 'own'"),
        ({"layer_decay": 0}, "--layer_decay 0"),
        ({"dataset_dir": "/nowhere"}, "--dataset_dir /nowhere"),
        ({"pretrained": "/nowhere/model.pt"}, "/nowhere/model.pt does not exist"),
        ({"class": {"grey": 1}}, "unknown option --class: did you mean --classes?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_one_line_that_names_it(bundle_root: Path, dataset: Path, options: dict, said: str):
    assert said in problem(bundle_root, dataset, **options)


def test_weights_that_do_not_fit_are_one_line(bundle_root: Path, dataset: Path, tmp_path: Path):
    torch.save(nets.BasicUNet(features=(4, 4, 4, 4, 4, 4)).state_dict(), tmp_path / "other.pt")
    said = problem(bundle_root, dataset, pretrained=str(tmp_path / "other.pt"), **{"encoder#init_filters": 4})
    assert "tensors fit into SegResNetDS, at least 90% must" in said


def test_weights_of_another_kind_of_encoder_name_what_is_missing(bundle_root: Path, dataset: Path, tmp_path: Path):
    path, _ = write_model(tmp_path, Case("BasicUNet", {"features": [4, 4, 4, 4, 4, 4]}, ()))
    said = problem(bundle_root, dataset, pretrained=str(path))
    assert "tensors fit into SegResNetDS" in said or "the network asks for" in said


def test_label_maps_on_another_grid_or_missing_are_one_line(bundle_root: Path, brain, tmp_path: Path):
    write_pairs(tmp_path, brain)
    (tmp_path / "labelsTr/head_b.nii.gz").unlink()
    label = brain[1]
    moved = label.affine.copy()
    moved[0, 3] += 3  # half a voxel
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj), moved), tmp_path / "labelsTr/head_a.nii.gz")
    said = problem(bundle_root, tmp_path)
    assert "none of the 2 volumes" in said and "and its label map are not on one grid" in said
    write_pairs(tmp_path, brain)
    (tmp_path / "labelsTr/head_b.nii.gz").unlink()
    said = problem(bundle_root, tmp_path)
    assert "1 volumes to train on and 0 to validate on" in said or "head_b.nii.gz" in said


def test_a_differing_spacing_is_used_with_a_warning(bundle_root: Path, dataset: Path, capsys):
    flow = workflow(bundle_root, dataset, spacing=[6, 6, 8])
    flow.initialize()
    assert flow.parser.get_parsed_content("settings").spacing == [6, 6, 8]
    assert "spacing is [6, 6, 8] here, but the encoder was pre-trained with [6, 6, 6]" in capsys.readouterr().out


def test_several_channels_in_one_volume(bundle_root: Path, brain, tmp_path: Path):
    image, label = brain
    for n, factor in (("a", 1.0), ("b", 0.7)):
        for channel, array in enumerate((np.asarray(image.dataobj) * factor, 100 - np.asarray(image.dataobj))):
            path = tmp_path / f"imagesTr/head_{n}_{channel:04d}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), image.affine), path)
        (tmp_path / "labelsTr").mkdir(exist_ok=True)
        nibabel.save(label, tmp_path / f"labelsTr/head_{n}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR", "1": "MR"}, "numTraining": 2}))
    assert "has 2 channels, not the 3 of --in_channels" in problem(bundle_root, tmp_path, in_channels=3)
    folder, flow = run(bundle_root, tmp_path, in_channels=2, epochs=1)
    assert weights(folder / "model.pt")["encoder.conv_init.weight"].shape[1] == 2
    volume = flow.parser.get_parsed_content("volumes").training[0].load()
    assert volume["image"].shape[0] == 2 and volume["valid"].shape[0] == 1
    inside = volume["foreground"][0] > 0
    for channel in volume["image"]:
        assert abs(channel[inside].mean()) < 0.2 and abs(channel[inside].std() - 1) < 0.2


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run_python("-m", "monai.bundle", "run", "training", *arguments, cwd=cwd, env=environment)


def test_the_command_line_takes_classes_and_trains_from_scratch(bundle_root: Path, dataset: Path, tmp_path: Path):
    given = {**QUICK, "bundle_root": bundle_root, "dataset_dir": dataset, "output_dir": tmp_path / "run", "epochs": 1}
    given |= {"classes": "{grey: 1, white: 2}", "pretrained": "None"}
    given |= {f"encoder#{name}": value for name, value in ENCODER.items()}
    done = command("--config_file", CONFIG, *(f"--{key}={value}" for key, value in given.items()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    about = json.loads((tmp_path / "run/model.json").read_text())
    assert about["pretrained"] is None and about["classes"] == CLASSES
    assert about["licence"] is None and about["origin"] == []
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["pretrained"] is None and recorded["classes"] == CLASSES


def test_nothing_labelled_is_one_line_on_the_command_line(bundle_root: Path, tmp_path: Path):
    given = ("--bundle_root", str(bundle_root), "--dataset_dir", str(tmp_path), "--classes", "{grey: 1}")
    done = command("--config_file", CONFIG, *given, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: --dataset_dir {tmp_path} holds no labelled volumes")
    assert "Traceback" not in done.stderr + done.stdout


ALTERNATIVES = {
    "finetune_dynunet": Case(
        "DynUNet",
        {
            "kernel_size": [3, 3, 3, 3],
            "strides": [1, 2, 2, 2],
            "upsample_kernel_size": [2, 2, 2],
            "filters": [4, 4, 8, 8],
        },
        (),
    ),
    "finetune_flexibleunet": Case("ResNetFeatures", {"model_name": "resnet10"}, ()),
    "finetune_segresnet": Case("SegResNet", {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, ()),
    "finetune_nnunet": Case(
        "PlainConvUNet",
        {
            "n_stages": 3,
            "features_per_stage": [4, 4, 8],
            "kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1, 1],
        },
        (),
    ),
}


def test_a_dynunet_of_three_levels_has_one_further_loss(bundle_root: Path, dataset: Path, tmp_path: Path):
    arguments = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2] * 2, "filters": [4, 4, 8]}
    path, _ = write_model(tmp_path, Case("DynUNet", arguments, ()), spacing=None)
    override = str(ROOT / "configs/finetune_dynunet.yaml")
    parser = workflow(bundle_root, dataset, override, pretrained=str(path)).parser
    outputs = parser.get_parsed_content("network_def")(torch.zeros(1, 1, 16, 16, 16))
    assert outputs.shape[:3] == (1, 2, 3), "the finest and one more, of three classes"


@pytest.mark.parametrize(
    ("override", "encoder", "arguments", "said"),
    [
        ("finetune_segresnet", "SegResNet", {"blocks_up": [1, 1], "norm": ["instance", {"affine": True}]}, "norm"),
        (None, "SegResNetDS", {"norm": "instance", "resolution": [1, 1, 4]}, "resolution"),
    ],
)
def test_networks_are_built_with_all_of_their_encoders_arguments(
    override: str | None, encoder: str, arguments: dict, said: str, bundle_root: Path, dataset: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    given = {"init_filters": 8, "blocks_down": [1, 1, 1], **arguments}
    path, _ = write_model(tmp_path, Case(encoder, given, ()), spacing=None)
    overlays = [str(ROOT / f"configs/{override}.yaml")] if override else []
    parser = workflow(bundle_root, dataset, *overlays, pretrained=str(path)).parser
    with caplog.at_level("WARNING"):
        assert parser.get_parsed_content("transfer").report.share == 1
    assert "differs from the pre-trained one" not in caplog.text, said


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_other_networks_take_the_weights_of_their_encoders(name: str, bundle_root: Path, dataset: Path, tmp_path: Path):
    path, _ = write_model(tmp_path, ALTERNATIVES[name], spacing=None)
    override = str(ROOT / f"configs/{name}.yaml")
    folder, flow = run(
        bundle_root, dataset, override, pretrained=str(path), schedule="frozen", epochs=1, crop_size=[64, 32, 32]
    )
    report = flow.parser.get_parsed_content("transfer").report
    assert report.share == 1.0
    given, after = torch.load(path, weights_only=True), weights(folder / "model.pt")
    parameters = [key for key in given if not re.search("running_|num_batches", key)]
    assert all(torch.equal(given[key], after[f"{report.prefix}{key}"]) for key in parameters)
    arguments = json.loads((folder / "model.json").read_text())["network"]
    made = arguments.pop("name")
    (locate(made) if "." in made else getattr(nets, made))(**arguments).load_state_dict(after, strict=True)


@pytest.mark.parametrize("name", ["finetune_segmentation", *ALTERNATIVES])
def test_monai_finds_all_properties_of_a_training_bundle(name: str, bundle_root: Path, dataset: Path):
    more = () if name == "finetune_segmentation" else (str(ROOT / f"configs/{name}.yaml"),)
    # nnU-Net's own size takes seconds
    small = ALTERNATIVES["finetune_nnunet"]
    sizes = {f"encoder#{key}": value for key, value in {"name": small.name, **small.arguments}.items()}
    sizes = sizes if name == "finetune_nnunet" else {}
    flow = workflow(bundle_root, dataset, *more, pretrained=None, crop_size=[64, 32, 32], **sizes)
    flow.initialize()
    assert flow.check_properties() == []


def test_a_fine_tuned_run_is_gone_on_from_with_its_heads_and_nothing_is_called_validation(
    bundle_root: Path, dataset: Path, finished: Path
):
    """At a learning rate of 0 the product is what the run begins with."""
    folder, flow = run(
        bundle_root, dataset, pretrained=str(finished / "model.pt"), lr=0.0, epochs=1, val_fraction=0, schedule="full"
    )
    before, after = weights(finished / "model.pt"), weights(folder / "model.pt")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((folder / "model.json").read_text())["origin"][-1]["sha256"] == checksum(finished / "model.pt")
    assert flow.parser.get_parsed_content("transfer").report.prefix == "encoder."
    text = (folder / "summary.md").read_text()
    assert "| Dice of the training volumes, mean of the classes |" in text and "No volume was held out" in text
    assert "validation: none held out" in text
    figures = text.partition("## Metrics")[2].partition("## Where")[0]
    assert "validation" not in figures and "best validation" not in text
    history = next(h for h in flow.parser.get_parsed_content("train#handlers") if isinstance(h, History))
    assert "Dice of the training volumes" in history.curves and "validation" not in " ".join(history.curves)


def test_a_fine_tuned_run_embeds_with_its_encoder_and_its_preparation(
    bundle_root: Path, dataset: Path, finished: Path, tmp_path: Path
):
    config = str(ROOT / "configs/inference.yaml")
    given = {"dataset_dir": str(dataset / "imagesTr"), "output_dir": str(tmp_path), "device": "cpu", "num_workers": 0}
    flow = ConfigWorkflow(
        config, workflow_type="infer", bundle_root=str(bundle_root), weights=str(finished / "model.pt"), **given
    )
    flow.initialize()
    flow.run()
    network, tuned = flow.parser.get_parsed_content("network"), weights(finished / "model.pt")
    assert all(torch.equal(value, tuned[f"encoder.{key}"]) for key, value in network.state_dict().items())
    assert flow.parser.get_parsed_content("mr_floor") is None and flow.parser.get_parsed_content("spacing") is None
    assert sorted(path.stem for path in (tmp_path / "embeddings").iterdir()) == ["head_a", "head_b"]


def test_a_fine_tuned_run_does_not_reconstruct_and_says_what_it_can(bundle_root: Path, finished: Path):
    flow = ConfigWorkflow(
        str(ROOT / "configs/reconstruct.yaml"), workflow_type="train", bundle_root=str(bundle_root),
        run_folder=str(finished), device="cpu",
    )  # fmt: skip
    flow.initialize()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        flow.run()
    said = str(user_error_in(caught.value))
    assert f'"{finished}" was fine-tuned, so it has no reconstruction' in said and f"{finished}/model.pt" in said
