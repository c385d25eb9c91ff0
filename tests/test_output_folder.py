# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Inference and reconstruction of files with hostile names: nothing is written outside the folder of the results."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.commands import run_python
from tests.data.volumes import ct_phantom, ellipsoid, mr_phantom, write_dicom, write_nifti
from tests.test_inference import CONFIG as INFERENCE
from tests.test_inference import make_models
from tests.test_inference import run as embed
from tests.test_reconstruct import reconstruct
from tests.tiny_run import bundle_root, train

SIZE = (40, 40, 40)
AFFINE = np.diag([4.0, 4, 4, 1])
ODD = [
    "=1+1.nii.gz",
    "-2.nii.gz",
    "a\nforged: yes.nii.gz",
    "\x1b[31mred.nii.gz",
    "quo\"te's $x_{$.nii.gz",
    "same.nii.gz",
]


def volume(seed: int) -> np.ndarray:
    return mr_phantom(SIZE, seed)


def snapshot(folder: Path) -> dict[bytes, str]:
    """The sha256 of each file below a folder."""
    return {
        os.fsencode(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = bundle_root(tmp_path_factory.mktemp("bundle"), data_dir)
    return root, train(root, epochs=1)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Volumes with odd names in place/in, one outside, and a list that names them by odd paths."""
    folder = tmp_path / "place/in"
    for number, name in enumerate(ODD):
        write_nifti(folder / "plain.nii.gz", volume(number), AFFINE).rename(folder / name)
    latin = os.fsencode(folder) + b"/J\xe9r\xf4me.nii.gz"
    os.rename(write_nifti(folder / "plain.nii.gz", volume(9), AFFINE), latin)  # noqa: PTH104 - bytes are no Path
    write_nifti(tmp_path / "place/out.nii.gz", volume(10), AFFINE)
    names = [*ODD, "../out.nii.gz", str(tmp_path / "place/out.nii.gz"), "./same.nii.gz", "../in/same.nii.gz"]
    (folder / "list.json").write_text(json.dumps({"training": names}))
    return folder


def cells(table: Path) -> list[str]:
    with table.open(newline="", encoding="utf-8") as file:
        return [cell for row in csv.reader(file) for cell in row]


def check_results(place: Path, before: dict[bytes, str], output: Path, table: Path, log: str) -> None:
    after = snapshot(place.parents[1])
    assert {name: digest for name, digest in after.items() if name in before} == before
    new = [name for name in after if name not in before]
    assert new and all(Path(os.fsdecode(name)).resolve().is_relative_to(output.resolve()) for name in new)
    assert all(os.fsdecode(name).isprintable() for name in new)
    for cell in cells(table):
        assert "\n" not in cell and cell.isprintable()
        assert (
            not cell.startswith(("=", "+", "-", "@")) or cell.lstrip("-").replace(".", "").replace("e-", "").isdigit()
        )
    assert "volumes embedded" in log or "errors on hidden voxels" in log
    assert "\x1b[31mred" not in log and "\nforged" not in log


@pytest.mark.parametrize("source", ["list.json", "."])
def test_inference_writes_below_its_folder_only(
    models: Path, place: Path, source: str, capfd: pytest.CaptureFixture[str]
):
    before, output = snapshot(place.parents[1]), place.parents[1] / "results"
    rows = embed(models, place / source, output, feature_maps=True)
    assert len(rows) == (10 if source == "list.json" else 7)
    assert not any(row["skipped"] for row in rows.values())
    files = [row[key] for row in rows.values() for key in ("file", "feature_map")]
    assert len(set(files)) == len(files) and all((output / file).is_file() for file in files)
    check_results(place, before, output, output / "manifest.csv", "".join(capfd.readouterr()))


@pytest.mark.parametrize("source", ["list.json", "."])
def test_reconstruction_writes_below_its_folder_only(
    trained: tuple[Path, Path], place: Path, source: str, capfd: pytest.CaptureFixture[str]
):
    before, output = snapshot(place.parents[1]), place.parents[1] / "results"
    reconstruct(trained[0], dataset_dir=str(place / source), output_dir=str(output), device="cpu")
    count = 10 if source == "list.json" else 7
    assert [len(list(output.rglob(f"*{end}"))) for end in ("_masked.nii.gz", "_reconstruction.nii.gz", ".png")] == 3 * [
        count
    ]
    check_results(place, before, output, output / "errors.csv", "".join(capfd.readouterr()))


def test_the_folder_where_one_is_may_be_a_dicom_series(
    models: Path, trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    series = tmp_path / "place/scan"
    write_dicom(series, np.moveaxis(ct_phantom((60, 55, 40)), 2, 0), thickness=2.0)
    before = snapshot(tmp_path)
    monkeypatch.chdir(series)
    embed(models, Path(), tmp_path / "one")
    reconstruct(trained[0], dataset_dir=".", output_dir=str(tmp_path / "two"), device="cpu")
    new = [Path(os.fsdecode(name)) for name in snapshot(tmp_path) if name not in before]
    assert all(file.is_relative_to(tmp_path / "one") or file.is_relative_to(tmp_path / "two") for file in new)
    assert len(list((tmp_path / "one/embeddings").iterdir())) == 1
    assert len(list((tmp_path / "two").iterdir())) == 5  # with a page


def test_results_among_the_inputs_replace_none_of_them(models: Path, trained: tuple[Path, Path], tmp_path: Path):
    folder = tmp_path / "scans"
    for number, name in enumerate(("scan.nii.gz", "scan_masked.nii.gz", "feature_maps/scan.nii.gz")):
        write_nifti(folder / name, volume(number), AFFINE)
    before = snapshot(folder)
    rows = embed(models, folder, folder, overwrite=True, feature_maps=True)
    assert len(rows) == 3 and before.items() <= snapshot(folder).items()
    assert embed(models, folder, folder, overwrite=True, feature_maps=True).keys() == rows.keys(), (
        "results are no inputs"
    )
    assert before.items() <= snapshot(folder).items()
    reconstruct(trained[0], dataset_dir=str(folder), output_dir=str(folder), overwrite=True, device="cpu")
    assert before.items() <= snapshot(folder).items()


def test_label_maps_are_left_out_of_inference_and_reconstruction_unless_included(
    models: Path, trained: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    labels = (ellipsoid(SIZE) * (1 + np.arange(40)[:, None, None] // 4)).astype(np.uint8)
    write_nifti(tmp_path / "in/case/scan.nii.gz", volume(0), AFFINE)
    write_nifti(tmp_path / "in/case/organs.nii.gz", labels, AFFINE)
    write_nifti(tmp_path / "in/labels/scan.nii.gz", labels, AFFINE)
    rows = embed(models, tmp_path / "in", tmp_path / "one")
    assert {name: "label map" in row["skipped"] for name, row in rows.items()} == {
        "case/organs": True, "case/scan": False, "labels/scan": True,
    }  # fmt: skip
    reconstruct(trained[0], dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "two"), device="cpu")
    log = "".join(capfd.readouterr())
    assert "2 of 3 volumes were skipped" in log and "labels/scan.nii.gz: lies in a folder of label maps" in log
    assert [file.name for file in (tmp_path / "two").rglob("*.png")] == ["scan.png"]
    for number, include in enumerate((["*labels/*", "*organs*"], "*")):
        rows = embed(models, tmp_path / "in", tmp_path / f"three{number}", include=include)
        assert [row["skipped"] for row in rows.values()] == ["", "", ""]


def test_the_command_line_takes_patterns_without_quotes_in_them(models: Path, tmp_path: Path):
    write_nifti(tmp_path / "in/scan.nii.gz", volume(0), AFFINE)
    write_nifti(tmp_path / "in/scan_seg.nii.gz", volume(1), AFFINE)
    line = ["-m", "monai.bundle", "run", "--config_file", INFERENCE, "--bundle_root", models.parent]
    line += ["--dataset_dir", "in", "--output_dir", "out", "--device", "cpu", "--include", "[labels/*, *_seg*]"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_python(*line, cwd=tmp_path, env=environment)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert 'error: --include "labels/*" fits none of the 2 volumes' in done.stderr
    line[-1] = "[*_seg*]"
    done = run_python(*line, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 volumes embedded, 0 skipped" in done.stdout + done.stderr
