# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/inference.yaml as a user runs it: real volumes in, embeddings and feature maps out."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.networks.nets.segresnet_ds import SegResEncoder

from bundle.data import Foregroundd
from bundle.errors import UserError, user_error_in
from bundle.runs import release_folders
from tests.commands import run_python

from .data.volumes import ct_phantom, write_nifti

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/inference.yaml")
ENCODER: dict[str, Any] = {"init_filters": 4, "blocks_down": [1, 1, 1, 1, 1], "norm": ["instance", {"affine": True}]}
SETTINGS: dict[str, Any] = {
    "encoder": {"name": "SegResEncoder", **ENCODER},
    "crop_size": [32, 32, 32],
    "spacing": [4, 4, 4],
    "ct_window": [-1000, 1000],
    "mr_percentiles": [0.5, 99.5],
}
PERSON = {"PatientName": "Doe^Jane", "PatientID": "4711-0815", "AccessionNumber": "A987654", "StudyDate": "20010203"}


def make_models(root: Path, **changed) -> Path:
    """A folder with a random small encoder of MONAI's own and its settings."""
    arguments = {**ENCODER, **changed}
    folder = root / "models"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(SegResEncoder(**arguments).state_dict(), folder / "model.pt")
    digest = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    settings = {**SETTINGS, "encoder": {"name": "SegResEncoder", **arguments}, "sha256": digest}
    (folder / "model.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("bundle"))


def workflow(models: Path, dataset: Path, output: Path, **overrides) -> ConfigWorkflow:
    given = {"bundle_root": str(models.parent), "dataset_dir": str(dataset), "output_dir": str(output)}
    given |= {"device": "cpu", "num_workers": 0, **overrides}
    return ConfigWorkflow(CONFIG, workflow_type="infer", **given)


def run(models: Path, dataset: Path, output: Path, **overrides) -> dict[str, dict[str, str]]:
    """Runs the config; returns the rows of its manifest by the names of the volumes."""
    flow = workflow(models, dataset, output, **overrides)
    flow.initialize()
    flow.run()
    flow.finalize()
    with (output / "manifest.csv").open(newline="") as file:
        return {row["volume"]: row for row in csv.DictReader(file)}


def command(*arguments: object, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    environment |= {} if path is None else {"PYTHONPATH": str(path)}
    return run_python("-m", "monai.bundle", *arguments, cwd=cwd, env=environment)


def voxels_to_mm(affine: np.ndarray, places: np.ndarray) -> np.ndarray:
    return places @ affine[:3, :3].T + affine[:3, 3]


@pytest.fixture(scope="module")
def folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT and an MR file, a DICOM series, and a file that is none."""
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("ct_body_totalseg", "mr_body_totalseg"):
        (folder / "a").mkdir(exist_ok=True)
        shutil.copy(data_dir / f"volumes/{name}.nii.gz", folder / f"a/{name}.nii.gz")
    (folder / "series").mkdir()
    for number, file in enumerate(sorted((data_dir / "dicom/ct_body_totalseg").iterdir())):
        slice_ = pydicom.dcmread(file)
        for tag, text in PERSON.items():
            setattr(slice_, tag, text)
        slice_.save_as(folder / f"series/{number}.dcm")
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def finished(models: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run over the folder, with feature maps and a process that prepares."""
    output = tmp_path_factory.mktemp("results") / "out"
    run(models, folder, output, feature_maps=True, num_workers=1)
    return output


def test_every_volume_has_a_row_and_what_the_row_names(finished: Path):
    rows = list(csv.DictReader((finished / "manifest.csv").open()))
    assert [row["volume"] for row in rows] == ["a/ct_body_totalseg", "a/mr_body_totalseg", "broken", "series"]
    assert [row["modality"] for row in rows] == ["CT", "MR", "", "CT"]
    assert rows[0]["shape"] == "122 101 112" and rows[0]["spacing"] == "3 3 3"
    assert rows[3]["shape"] == "512 512 20" and rows[3]["spacing"] == "0.976562 0.976562 2"
    assert rows[2]["skipped"].startswith("cannot be read") and not rows[2]["file"]
    for row in (rows[0], rows[1], rows[3]):
        assert not row["skipped"] and int(row["cells"]) > 1 and float(row["seconds"]) > 0
        with np.load(finished / row["file"], allow_pickle=False) as arrays:
            assert arrays["mean"].shape == arrays["std"].shape == (64,)
            assert np.isfinite(arrays["mean"]).all() and (arrays["std"] > 0).all()
            assert arrays["cells"] == int(row["cells"]) and arrays["spacing"].tolist() == [4, 4, 4]
        assert nibabel.load(finished / row["feature_map"]).shape[3] == 64


def test_a_tilted_scan_has_the_shape_and_the_spacing_of_its_file(models: Path, tmp_path: Path):
    tilted = np.diag([2.0, 2, 3, 1])
    tilted[1, 2] = 2  # each slice lies a voxel further along the second axis
    write_nifti(tmp_path / "in/tilted.nii.gz", ct_phantom((60, 50, 40)), tilted)
    write_nifti(tmp_path / "in/straight.nii.gz", ct_phantom((60, 50, 40)), np.diag([2.0, 2, 3, 1]))
    rows = run(models, tmp_path / "in", tmp_path / "out")
    assert rows["tilted"]["shape"] == rows["straight"]["shape"] == "60 50 40"
    assert rows["straight"]["spacing"] == "2 2 3" and rows["tilted"]["spacing"] == "2 2 3.60555"


def test_nothing_of_a_dicom_header_is_in_the_results(finished: Path, folder: Path):
    header = pydicom.dcmread(folder / "series/0.dcm", stop_before_pixels=True)
    telling = [*PERSON.values(), "Doe", header.FrameOfReferenceUID, header.StationName]
    files = [file for file in finished.rglob("*") if file.is_file()]
    assert len(files) == 8
    for file in files:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert not any(text.encode() in content for text in telling), file


def test_the_results_say_which_weights_made_them(finished: Path, models: Path):
    about = json.loads((finished / "about.json").read_text())
    assert about["sha256"] == hashlib.sha256((models / "model.pt").read_bytes()).hexdigest()
    assert (about["mr_floor"], about["orientation"]) == (3.0, "RAS")
    assert about["spacing"] == [4, 4, 4] and about["encoder"]["name"] == "SegResEncoder"


def test_the_embedding_is_what_plain_monai_and_numpy_compute(models: Path, folder: Path, tmp_path: Path):
    part = nibabel.load(folder / "a/ct_body_totalseg.nii.gz").slicer[20:78, :61, 40:100]
    (tmp_path / "in").mkdir()
    nibabel.save(part, tmp_path / "in/ct.nii.gz")
    # the volume's own spacing and one window: nothing but the steps below
    row = run(models, tmp_path / "in", tmp_path / "out", spacing=None, crop_size=[64, 64, 64])["ct"]
    image = nibabel.as_closest_canonical(part)
    hu = image.get_fdata(dtype=np.float32)
    meta = MetaTensor(torch.from_numpy(hu.copy())[None], affine=torch.from_numpy(image.affine))
    body = Foregroundd()({"image": meta, "modality": "CT", "name": "ct"})["foreground"][0].numpy() > 0
    box = tuple(
        slice(max(int(where.min()) - 4, 0), min(int(where.max()) + 5, size))
        for where, size in zip(np.nonzero(body), hu.shape)
    )
    scaled = np.clip(hu, -1000, 1000)[box] / 1000
    padding = [((size - n) // 2, size - n - (size - n) // 2) for size, n in zip((64, 64, 64), scaled.shape)]
    scaled, body = np.pad(scaled, padding, constant_values=scaled.min()), np.pad(body[box], padding)
    encoder = SegResEncoder(**ENCODER).eval()
    encoder.load_state_dict(torch.load(models / "model.pt", weights_only=True))
    with torch.no_grad():
        features = encoder(torch.from_numpy(scaled)[None, None])[-1][0].numpy()
    share = body.reshape(4, 16, 4, 16, 4, 16).mean((1, 3, 5))
    chosen = features[:, share >= share.max() / 2]
    with np.load(tmp_path / "out" / row["file"]) as arrays:
        assert arrays["cells"] == chosen.shape[1] == int(row["cells"])
        np.testing.assert_allclose(arrays["mean"], chosen.mean(1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(arrays["std"], chosen.std(1), rtol=1e-3, atol=1e-4)


def test_volumes_are_prepared_by_the_steps_of_pre_training():
    def steps(config: str, path: tuple[str, ...]) -> list[dict[str, Any]]:
        content = ConfigParser.load_config_file(ROOT / "configs" / config)
        for key in path:
            content = content[key]
        own = ("NoteOwnGridd", "WeightMapd", "PadToCropd", "PadToWindowd", "ToPlainTensorsd", "ToPlainScand")
        rest = [dict(step) for step in content if step["_target_"].rpartition(".")[2] not in own]
        for step in rest:  # pre-training asks the weights that it may go on from
            step.update({k: f"@{v[14:]}" for k, v in step.items() if str(v).startswith("$@preparation.")})
            step.update({k: f"@{v[11:]}" for k, v in step.items() if str(v).startswith("$@settings.")})
        crop = next(step for step in rest if step["_target_"].endswith("CropForegroundd"))
        crop["keys"] = [key for key in crop["keys"] if key != "weight_map"]
        crop.pop("allow_missing_keys", None)
        return rest

    prepared = steps("train.yaml", ("prepare", "transforms"))
    assert len(prepared) == 7 and steps("inference.yaml", ("preprocessing", "transforms")) == prepared


def cell_means(size: int) -> dict[str, Any]:
    """A network whose only feature is the cell's mean intensity."""
    return {"_target_": "torch.nn.AvgPool3d", "kernel_size": size}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_affine_places_each_cell_where_its_voxels_are(models: Path, tmp_path: Path, axis: int):
    # turned, mirrored, oblique, of long voxels, and every voxel's value is its own position in mm
    turn = np.array([[0.0, 0.96, -0.28], [-1, 0, 0], [0, 0.28, 0.96]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([1.5, -2, 3]), (40, -30, 200)
    shape = (90, 70, 50)
    grid = np.indices(shape).reshape(3, -1).T
    image = voxels_to_mm(affine, grid)[:, axis].reshape(shape).astype(np.float32)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "in/ramp.nii.gz")
    options = {"spacing": [2, 2, 2], "modality": "CT", "network": cell_means(16), "feature_maps": True}
    row = run(models, tmp_path / "in", tmp_path / "out", **options)["ramp"]
    map_ = nibabel.load(tmp_path / "out" / row["feature_map"])
    values, cells = map_.get_fdata()[..., 0].reshape(-1), np.indices(map_.shape[:3]).reshape(3, -1).T
    # cells that lie in the volume with all their voxels
    corners = cells[:, None] + np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, -1).T
    original = voxels_to_mm(np.linalg.inv(affine), voxels_to_mm(map_.affine, corners.reshape(-1, 3))).reshape(-1, 8, 3)
    inside = ((original >= 0) & (original <= np.array(shape) - 1)).all((1, 2))
    assert inside.sum() >= 12
    np.testing.assert_allclose(values[inside] * 1000, voxels_to_mm(map_.affine, cells)[inside, axis], atol=0.02)


def test_a_dicom_series_feature_map_lies_over_its_slices(models: Path, data_dir: Path, tmp_path: Path):
    series = data_dir / "dicom/ct_body_totalseg"
    options = {"encoder": {"name": "SegResNet"}, "network": cell_means(8), "spacing": None, "feature_maps": True}
    run(models, series, tmp_path / "out", **options)
    map_ = nibabel.load(tmp_path / "out/feature_maps/ct_body_totalseg.nii.gz")
    headers = sorted((pydicom.dcmread(file) for file in series.iterdir()), key=lambda h: h.ImagePositionPatient[2])
    first = np.array(headers[0].ImagePositionPatient, dtype=float)
    hu = np.stack([h.pixel_array * float(h.RescaleSlope) + float(h.RescaleIntercept) for h in headers])  # z, y, x
    scaled = np.clip(hu, -1000, 1000) / 1000
    steps = np.array([*headers[0].PixelSpacing[::-1], headers[1].ImagePositionPatient[2] - first[2]], dtype=float)
    checked = 0
    for cell in np.ndindex(map_.shape[:3]):
        if 0 in cell[:2] or cell[0] == map_.shape[0] - 1 or cell[1] == map_.shape[1] - 1:
            continue  # may hold padding
        lps = voxels_to_mm(map_.affine, np.array([cell], dtype=float))[0] * (-1, -1, 1)
        low = np.round((lps - first) / steps - 3.5).astype(int)
        if (low >= 0).all() and (low + 8 <= (512, 512, 20)).all():
            block = scaled[low[2] : low[2] + 8, low[1] : low[1] + 8, low[0] : low[0] + 8]
            assert abs(block.mean() - map_.dataobj[cell][0]) < 1e-4
            checked += 1
    assert checked > 500


def test_a_bright_spot_shows_in_the_encoders_features_where_it_is(tmp_path: Path):
    models = make_models(tmp_path, norm="batch")  # an instance norm would tell the whole window of the spot
    affine = np.diag([-2.0, -2, 2, 1])
    affine[:3, 3] = (120, 90, -300)
    plain = np.random.default_rng(0).normal(0, 30, (80, 80, 80)).astype(np.float32)
    spot = plain.copy()
    spot[30:38, 50:58, 22:30] = 900
    (tmp_path / "in").mkdir()
    for name, image in (("plain", plain), ("spot", spot)):
        nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / f"in/{name}.nii.gz")
    run(models, tmp_path / "in", tmp_path / "out", spacing=None, modality="CT", feature_maps=True)
    one, other = (nibabel.load(tmp_path / f"out/feature_maps/{name}.nii.gz") for name in ("plain", "spot"))
    difference = np.linalg.norm(other.get_fdata() - one.get_fdata(), axis=3)
    peak = np.unravel_index(difference.argmax(), difference.shape)
    found = voxels_to_mm(other.affine, np.array([peak], dtype=float))[0]
    assert np.abs(found - voxels_to_mm(affine, np.array([[33.5, 53.5, 25.5]]))[0]).max() <= 2 * 16


def test_hashed_names_hide_the_path_in_all_results(models: Path, folder: Path, tmp_path: Path):
    (tmp_path / "in/jane").mkdir(parents=True)
    shutil.copy(folder / "a/mr_body_totalseg.nii.gz", tmp_path / "in/jane/doe.nii.gz")
    (tmp_path / "in/jane/smith.nii.gz").write_bytes(b"")
    rows = run(models, tmp_path / "in", tmp_path / "out", hash_names=True)
    expected = {hashlib.sha256(f"jane/{name}.nii.gz".encode()).hexdigest()[:16] for name in ("doe", "smith")}
    assert set(rows) == expected
    for file in (tmp_path / "out").rglob("*"):
        content = file.read_text(errors="replace") if file.is_file() else ""
        assert not any(word in str(file.relative_to(tmp_path)) + content for word in ("jane", "doe", "smith"))


def test_results_are_not_written_over_unless_told(models: Path, folder: Path, tmp_path: Path):
    run(models, folder / "a", tmp_path / "out")
    with pytest.raises(RuntimeError) as error:
        run(models, folder / "a", tmp_path / "out")
    assert "--overwrite" in message(error.value)
    # own voxels may be called so, as in training
    assert len(run(models, folder / "a", tmp_path / "out", overwrite=True, spacing="own")) == 2
    # and weights may be the folder that they lie in, as everywhere
    assert len(run(models, folder / "a", tmp_path / "out", overwrite=True, weights=str(models))) == 2


def message(error: BaseException) -> str:
    found = user_error_in(error)
    assert found is not None, f"not a UserError: {error!r}"
    assert "\n" not in str(found)
    return str(found)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("weights", "/nowhere/model.pt", "/nowhere/model.pt does not exist"),
        ("encoder", {"name": "SegResEncoder", "init_filters": 8}, "model.pt does not fit the network"),
        ("encoder", {"name": "SegResNetEncoder"}, "did you mean 'SegResEncoder'"),
        ("crop_size", [40, 32, 32], "--crop_size"),
        ("overlap", 1, "--overlap"),
        ("modality", "PET", "--modality"),
        ("spacing", [1, 0, 1], "--spacing"),
        ("dataset_dir", "/nowhere", "--dataset_dir"),
        ("num_workers", -1, "--num_workers -1 cannot work"),
        ("device", "cuda:7", "device"),
        ("hash_name", True, "hash_names"),
        ("output_dir", 2026, "--output_dir 2026 cannot work: give a folder; one that is called by a number as ./2026"),
        ("output_dir", None, "--output_dir is missing: give the folder"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(models: Path, folder: Path, tmp_path: Path, option, value, expected):
    with pytest.raises((RuntimeError, UserError)) as error:
        run(models, folder / "a", tmp_path / "out", **{option: value})
    assert expected in message(error.value)
    release_folders()  # as at the end of the process
    assert not (tmp_path / "out").exists()


def test_without_any_usable_volume_the_run_fails(models: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.nii.gz").write_bytes(b"no image")
    with pytest.raises((RuntimeError, UserError)) as error:
        run(models, tmp_path / "in", tmp_path / "out")
    assert "none of the 1 volumes can be used" in message(error.value)
    assert "cannot be read" in (tmp_path / "out/manifest.csv").read_text()


def test_monai_finds_all_properties_of_an_inference_bundle(models: Path, folder: Path, tmp_path: Path):
    flow = workflow(models, folder, tmp_path / "out")
    flow.initialize()
    assert flow.check_properties() == []
    assert set(flow.network_def.state_dict()) == set(torch.load(models / "model.pt", weights_only=True))


def test_truncated_weights_are_one_line_of_the_bare_command_anywhere(models: Path, folder: Path, tmp_path: Path):
    (tmp_path / "model.pt").write_bytes((models / "model.pt").read_bytes()[:5000])
    shutil.copy(models / "model.json", tmp_path)
    options = ["--bundle_root", ROOT, "--dataset_dir", folder, "--output_dir", tmp_path / "out", "--device", "cpu"]
    # neither the bundle's folder nor PYTHONPATH: MONAI finds the components beside the config
    done = command("run", "--config_file", CONFIG, *options, "--weights", tmp_path / "model.pt", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {tmp_path}/model.pt is not the file that model.json describes, it is damaged")
    assert "Traceback" not in done.stderr + done.stdout


def test_the_bare_command_runs_from_another_folder(models: Path, folder: Path, tmp_path: Path):
    options = ["--bundle_root", models.parent, "--dataset_dir", folder / "a", "--output_dir", tmp_path / "out"]
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", CONFIG, *options, "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 volumes embedded, 0 skipped" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_zoos_check_of_the_networks_shapes_passes(elsewhere: bool, tmp_path: Path):
    # without weights: the settings in the config hold, and the shapes are those in metadata.json
    options = ["--net_id", "network_def", "--meta_file", ROOT / "configs/metadata.json", "--config_file", CONFIG]
    root = tmp_path if elsewhere else "."
    done = command("verify_net_in_out", *options, "--bundle_root", root, cwd=tmp_path if elsewhere else ROOT, path=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "verified with no error" in done.stdout + done.stderr


def test_the_zoos_export_to_torchscript_takes_the_flat_file(models: Path, tmp_path: Path):
    options = ["--net_id", "network_def", "--filepath", tmp_path / "model.ts", "--config_file", CONFIG]
    options += ["--meta_file", ROOT / "configs/metadata.json", "--bundle_root", models.parent]
    done = command("ckpt_export", *options, cwd=tmp_path, path=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    encoder = SegResEncoder(**ENCODER).eval()
    encoder.load_state_dict(torch.load(models / "model.pt", weights_only=True))
    image = torch.randn(1, 1, 32, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), encoder(image)[-1])
