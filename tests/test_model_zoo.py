# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The Model Zoo's assertions and MONAI's bundle commands, on the release, from its folder and from another one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from checks import Release, Status, known_ids, run_checks
from monai.bundle import (
    ConfigParser,
    ConfigWorkflow,
    ckpt_export,
    load,
    onnx_export,
    verify_metadata,
    verify_net_in_out,
)
from monai.networks.nets.segresnet_ds import SegResEncoder

from tests.tiny_run import TINY, VOLUMES
from tests.zoo.release import ENCODER, NAME, ROOT, Released

SCHEMA = ROOT / "tests/schema/meta_schema_20240725.json"
PAGE = ROOT / "docs/how-to/release_to_the_model_zoo.md"
# in the zoo's models/model_info.json of October 2024
ZOO = [
    "brats_mri_segmentation",
    "breast_density_classification",
    "endoscopic_inbody_classification",
    "endoscopic_tool_segmentation",
    "lung_nodule_ct_detection",
    "mednist_gan",
    "mednist_reg",
    "pancreas_ct_dints_segmentation",
    "pathology_nuclei_classification",
    "pathology_nuclick_annotation",
    "pathology_tumor_detection",
    "prostate_mri_anatomy",
    "renalStructures_UNEST_segmentation",
    "spleen_ct_segmentation",
    "spleen_deepedit_annotation",
    "swin_unetr_btcv_segmentation",
    "valve_landmarks",
    "ventricular_short_axis_3label",
    "wholeBrainSeg_Large_UNEST_segmentation",
]

CWD = pytest.mark.parametrize("elsewhere", [False, True], ids=["from the root", "from elsewhere"])


@pytest.fixture(scope="module")
def bundle(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the installed release."""
    return released.installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def root(bundle: Path, elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle's root as a command names it: "." in it, its path elsewhere. Its code is on Python's path."""
    monkeypatch.chdir(tmp_path if elsewhere else bundle)
    return bundle if elsewhere else Path()


@pytest.fixture(scope="module")
def data(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small real volumes: four without labels, and the halves of an MR volume with an organ that reaches into both."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("volumes", "labelled/imagesTr", "labelled/labelsTr"):
        (folder / name).mkdir(parents=True)
    for name in VOLUMES:
        (folder / "volumes" / name).symlink_to(data_dir / "volumes" / name)
    values = []
    volume, labels = (nibabel.load(data_dir / part / "mr_body_totalseg.nii.gz") for part in ("volumes", "labels"))
    middle = volume.shape[2] // 2
    for name, slices in (("lower", slice(middle)), ("upper", slice(middle, None))):
        nibabel.save(volume.slicer[..., slices], folder / f"labelled/imagesTr/{name}.nii.gz")
        label = labels.slicer[..., slices]
        nibabel.save(label, folder / f"labelled/labelsTr/{name}.nii.gz")
        counts = zip(*np.unique(np.asarray(label.dataobj), return_counts=True))
        values.append({int(value) for value, count in counts if value and count > 99})
    (folder / "classes.json").write_text(json.dumps({"organ": max(values[0] & values[1])}))
    return folder


@pytest.mark.parametrize("name", known_ids())
def test_the_release_meets_the_assertion(released: Released, name: str) -> None:
    (line,) = [line for line in released.output.splitlines() if line.startswith(f"{name} ")]
    status = line[4:15].strip()
    assert status == ("not checked" if name in {"N3", "V2", "S3"} else "ok"), line


def test_name_and_version_are_new_to_the_zoo(released: Released, tmp_path: Path) -> None:
    listed = tmp_path / "model_info.json"
    listed.write_text(json.dumps({f"{name}_v0.1.0": {} for name in ZOO}))
    results = run_checks(Release(released.folder, released.repository, listed), ["N3", "V2"])
    assert [result.status for result in results] == [Status.OK, Status.OK], results


def test_the_page_lists_every_assertion_and_nothing_else() -> None:
    listed = re.findall(r"^\| ([A-Z]\d+) \|", PAGE.read_text(), flags=re.MULTILINE)
    assert listed == known_ids()


def test_tests_and_commands_that_the_page_names_exist() -> None:
    text = PAGE.read_text()
    names = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text))
    assert len(names) > 4
    for file, test in names:
        assert f"def {test}" in (ROOT / file).read_text(), f"{file}::{test}"
    for script in re.findall(r"(?<!/)\bscripts/\w+\.py", text):
        assert (ROOT / script).is_file(), script


@CWD
def test_verify_metadata(root: Path, tmp_path: Path) -> None:
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")  # a file that is there is not downloaded
    verify_metadata(meta_file=str(root / "configs/metadata.json"), filepath=schema)


@CWD
def test_verify_metadata_refuses_metadata_without_authors(root: Path, tmp_path: Path) -> None:
    content = json.loads((root / "configs/metadata.json").read_text())
    del content["authors"]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=schema)


def ids(root: Path, config: str) -> dict[str, str]:
    files = {"meta_file": str(root / "configs/metadata.json"), "config_file": str(root / "configs" / config)}
    return {"net_id": "network_def", "bundle_root": str(root), **files}


@pytest.fixture(scope="module")
def expected(bundle: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume, and what plain MONAI makes of it with the released weights."""
    encoder = SegResEncoder(**ENCODER).eval()
    encoder.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return image, encoder(image)[-1]


@CWD
@pytest.mark.parametrize("config", ["inference.yaml", "inference.json"])
def test_verify_net_in_out(root: Path, config: str) -> None:
    verify_net_in_out(**ids(root, config))


@CWD
def test_ckpt_export(root: Path, tmp_path: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    file = str(root / "models/model.pt")
    ckpt_export(**ids(root, "inference.json"), ckpt_file=file, filepath=str(tmp_path / "model.ts"))
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(expected[0]), expected[1])


@CWD
def test_onnx_export(root: Path, tmp_path: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    file = str(root / "models/model.pt")
    onnx_export(**ids(root, "inference.yaml"), ckpt_file=file, filepath=str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (pred,) = session.run(None, {session.get_inputs()[0].name: expected[0].numpy()})
    np.testing.assert_allclose(pred, expected[1].numpy(), atol=1e-4)


@CWD
def test_load_gives_the_network_with_its_weights(
    root: Path, bundle: Path, expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    network = load(NAME, bundle_dir=str(bundle.parent), workflow_type="inference", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(expected[0]), expected[1])


@CWD
def test_load_fills_a_network_of_ones_own(root: Path, bundle: Path) -> None:
    network = load(NAME, SegResEncoder(**ENCODER), bundle_dir=str(bundle.parent), device="cpu")
    weights = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


@CWD
@pytest.mark.parametrize("config", ["train", "inference", "finetune_segmentation"])
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_check_properties(root: Path, data: Path, tmp_path: Path, config: str, suffix: str) -> None:
    options: dict[str, Any] = {"device": "cpu", "num_workers": 0, "output_dir": str(tmp_path / "output")}
    if config == "train":
        options |= {**TINY, "cache_dir": str(data / "cache"), "dataset_dir": str(data / "volumes")}
    elif config == "inference":
        options |= {"dataset_dir": str(data / "volumes")}
    else:
        classes = json.loads((data / "classes.json").read_text())
        options |= {"cache_dir": str(data / "cache"), "dataset_dir": str(data / "labelled"), "classes": classes}
        options |= {"crop_size": [32, 32, 32]}
    flow = ConfigWorkflow(
        str(root / f"configs/{config}.{suffix}"),
        workflow_type="infer" if config == "inference" else "train",
        bundle_root=str(root),
        **options,
    )
    flow.initialize()
    assert flow.check_properties() == []


def test_a_preset_means_the_same_on_the_twin(bundle: Path) -> None:
    def merged(suffix: str) -> Any:
        parser = ConfigParser()
        parser.read_config([str(bundle / f"configs/train.{suffix}"), str(bundle / "configs/preset_dev.yaml")])
        return parser.get()

    assert merged("json") == merged("yaml")
    assert merged("json")["encoder"]["init_filters"] == 8


@pytest.fixture(scope="module")
def used(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What is left when the release was used from another folder, with nothing else on Python's path."""
    output = tmp_path_factory.mktemp("used")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "tests/zoo/use_release.py"), str(bundle), str(data), str(output)]
    done = subprocess.run(line, cwd=output, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, json.loads((output / "report.json").read_text())


def test_the_release_runs_its_own_code(used: tuple[Path, dict[str, Any]], bundle: Path) -> None:
    assert Path(used[1]["code"]) == bundle / "bundle/__init__.py"


def test_the_release_trains_embeds_and_fine_tunes(used: tuple[Path, dict[str, Any]]) -> None:
    output, report = used
    encoder = torch.load(output / "run/model.pt", weights_only=True)
    about = json.loads((output / "run/model.json").read_text())
    assert about["sha256"] == hashlib.sha256((output / "run/model.pt").read_bytes()).hexdigest()
    assert len(list((output / "embeddings/embeddings").glob("*.npz"))) == len(VOLUMES)
    network = torch.load(output / "segmentation/model.pt", weights_only=True)
    shapes = {name.removeprefix("encoder."): tensor.shape for name, tensor in network.items()}
    assert {name: shapes.get(name) for name in encoder} == {name: tensor.shape for name, tensor in encoder.items()}
    assert report["missing_in_train"] == report["missing_in_inference"] == []


def test_the_release_takes_part_in_a_federated_round(used: tuple[Path, dict[str, Any]]) -> None:
    result = used[1]["federated"]
    assert result["tensors"] > 50 and result["changed"] == result["tensors"]
    assert 0 < float(result["metrics"]["validation/reconstruction"]) < 10


def test_using_a_release_leaves_its_files_as_they_were(
    used: tuple[Path, dict[str, Any]], bundle: Path, released: Released
) -> None:
    for file in released.folder.rglob("*"):
        if file.is_file():
            assert (bundle / file.relative_to(released.folder)).read_bytes() == file.read_bytes(), file


def test_published_weights_are_what_the_json_and_the_configs_say() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "models"], capture_output=True, text=True, check=True)
    if "models/model.pt" not in listed.stdout.split():
        assert "No weights are shipped yet" in (ROOT / "models/README.md").read_text()
        return
    file = ROOT / "models/model.pt"
    about = json.loads(file.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size <= 25 * 10**6
    weights = torch.load(file, weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/inference.yaml"))
    parser["bundle_root"] = str(ROOT)
    parser.get_parsed_content("network_def").load_state_dict(weights, strict=True)
    assert parser.get("settings")["defaults"]["encoder"] == about["encoder"]
