# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/export_model.py: the command from model.pt and a real volume to verified files and one table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import export_model
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import CenterSpatialCrop
from safetensors.torch import load_file

from bundle.export import plain_model
from tests.commands import run_python
from tests.export.models import write_model
from tests.networks.encoder_cases import CASES

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "crop_size": [32, 24, 16], "spacing": [4, 4, None], "orientation": "RAS", "modality": "auto",
    "ct_window": [-500, 800], "mr_percentiles": [1, 99],
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path, CASES["SegResEncoder"], **SETTINGS)[0]


@pytest.fixture
def volume(data_dir: Path) -> Path:
    return data_dir / "volumes/ct_body_totalseg.nii.gz"


def rows(text: str) -> dict[str, list[str]]:
    """Cells of each row of the table, by format."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[0] == ["format", "file", "MiB", "max difference", "of the largest", "remark"]
    return {line[0]: line[1:] for line in lines[2:]}


def test_all_formats_are_written_verified_and_listed(model: Path, volume: Path, tmp_path: Path, capsys):
    out = tmp_path / "exports"
    assert export_model.main([str(model), "--output_dir", str(out), "--input", str(volume)]) == 0
    written = capsys.readouterr()
    table = rows(written.out)
    assert list(table) == ["safetensors", "torchscript", "onnx", "torch_export"]
    for file, mib, difference, share, _ in table.values():
        assert Path(file).stat().st_size / 2**20 == pytest.approx(float(mib), abs=0.06)
        assert 0 <= float(difference) < 1e-3 and 0 <= float(share) < 1e-3
    assert sorted(path.name for path in out.iterdir()) == [
        "model.json", "model.onnx", "model.pt2", "model.safetensors", "model.ts"
    ]  # fmt: skip
    assert json.loads((out / "model.json").read_text()) == json.loads(model.with_suffix(".json").read_text())
    assert "on noise, 32 x 24 x 16, 16 x 12 x 8;" in written.out
    assert "no --input" not in written.out
    assert "exporting" in written.err  # the progress bar


@pytest.mark.parametrize(
    ("name", "told", "floor"),
    [
        ("ct_body_totalseg.nii.gz", {}, 3.0),
        ("mr_breast_radiomics.nrrd", {}, 3.0),  # of models that do not say it, which are older than the option
        ("mr_breast_radiomics.nrrd", {"mr_floor": None}, None),
    ],
)
def test_a_real_volume_is_prepared_as_configs_train_yaml_does(
    name: str, told: dict, floor: float | None, data_dir: Path, tmp_path: Path
):
    model, _ = write_model(tmp_path, CASES["SegResEncoder"], **SETTINGS, **told)
    file = data_dir / "volumes" / name
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.yaml"))
    # the same values as in the model's settings, through the names of the configuration
    parser.update({key: value for key, value in SETTINGS.items() if key != "orientation"})
    parser.update({"mr_floor": floor})
    parser.update({"encoder#init_filters": 4, "encoder#blocks_down": [1, 2, 1]})
    prepare = parser.get_parsed_content("prepare")
    expected = prepare({"image": [str(file)], "name": name, "modality": ""})["image"]
    given, half = export_model.real_images(plain_model(model), file)
    torch.testing.assert_close(given[0], CenterSpatialCrop([32, 24, 16])(expected), rtol=0, atol=0)
    assert half.shape == (1, 1, 16, 12, 8)


def test_a_dicom_series_is_an_input_too(model: Path, data_dir: Path):
    folder = next(path.parent for path in sorted((data_dir / "dicom").rglob("*")) if path.is_file())
    given, _ = export_model.real_images(plain_model(model), folder)
    assert given.shape == (1, 1, 32, 24, 16) and given.std() > 0


def test_without_a_volume_it_says_that_only_noise_was_compared(model: Path, capsys):
    assert export_model.main([str(model), "--formats", "safetensors"]) == 0
    assert "no --input: no real volume was compared" in capsys.readouterr().out
    assert (model.parent / "model.safetensors").is_file()  # beside the model


def test_files_that_are_there_stay_and_the_others_are_written(model: Path, capsys):
    (model.parent / "model.safetensors").write_text("mine")
    assert export_model.main([str(model), "--formats", "safetensors", "torchscript"]) == 1
    table = rows(capsys.readouterr().out)
    assert "is there already: pass --replace" in table["safetensors"][-1]
    assert table["torchscript"][-1] == "scripted"
    assert (model.parent / "model.safetensors").read_text() == "mine"
    assert export_model.main([str(model), "--formats", "safetensors", "--replace"]) == 0
    assert load_file(model.parent / "model.safetensors").keys() == torch.load(model, weights_only=True).keys()


def test_settings_of_another_model_in_the_folder_are_not_overwritten(model: Path, tmp_path: Path, capsys):
    out = tmp_path / "exports"
    out.mkdir()
    (out / "model.json").write_text("{}")
    options = [str(model), "--formats", "safetensors", "--output_dir", str(out)]
    assert export_model.main(options) == 1
    assert "is of another model: pass --replace" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["model.json"]
    assert export_model.main([*options, "--replace"]) == 0
    assert json.loads((out / "model.json").read_text())["crop_size"] == [32, 24, 16]


def test_no_fingerprint_of_a_scan_is_handed_on(model: Path, tmp_path: Path, capsys):
    own = model.with_suffix(".json")
    about = json.loads(own.read_text())
    began_with = {"file": "a.pt", "sha256": "5d5d", "licence": "x", "fingerprints": {"training": ["f1f1f1f1"]}}
    own.write_text(json.dumps({**about, "fingerprints": {"training": ["e2e2e2e2"]}, "origin": [began_with]}))
    before, out = own.read_bytes(), tmp_path / "exports"
    line = [str(model), "--formats", "safetensors", "torchscript"]
    assert export_model.main([*line, "--output_dir", str(out)]) == 0
    assert export_model.main([*line, "--output_dir", str(out), "--replace"]) == 0  # what is there is this model's
    written = {file.name: file.read_bytes() for file in out.iterdir()}
    assert written.keys() == {"model.json", "model.safetensors", "model.ts"}
    assert not [name for name, text in written.items() if b"f1f1f1f1" in text or b"e2e2e2e2" in text]
    assert json.loads(written["model.json"])["origin"] == [{"file": "a.pt", "sha256": "5d5d", "licence": "x"}]
    assert export_model.main(line) == 0
    assert own.read_bytes() == before  # beside the model its own settings stay


def test_without_onnx_the_other_formats_are_written(model: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_model.main([str(model), "--formats", "onnx", "safetensors"]) == 1
    table = rows(capsys.readouterr().out)
    assert "needs onnxruntime" in table["onnx"][-1]
    assert table["safetensors"][-1] == "MONAI's keys"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"no volume", "cannot be read")], ids=["missing", "damaged"]
)
def test_an_input_that_cannot_be_used_ends_in_one_line(content, message: str, model: Path, tmp_path: Path):
    volume = tmp_path / "volume.nii.gz"
    if content is not None:
        volume.write_bytes(content)
    done = run_python(ROOT / "scripts/export_model.py", model, "--input", volume, cwd=ROOT)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "warning" not in line.lower()]
    assert line.startswith("error: ") and message in line and "volume.nii.gz" in line
    assert not (tmp_path / "model.ts").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--input_channels", "0"], "--input_channels 0 is no number of channels: give 1 or more"),
        (["--nnunet_plans", "{tmp}/list.json"], "--nnunet_plans is a json without configurations"),
        (["--nnunet_plans", "{tmp}/other.json"], "--nnunet_plans is a json without configurations"),
        (["--nnunet_plans", "{tmp}/none.json"], "none.json is no readable json"),
        (["--output_dir", "{tmp}/list.json/x"], "list.json/x cannot be written (Not a directory): give another folder"),
    ],
)
def test_a_wrong_option_ends_in_one_line_before_anything_is_written(
    options: list[str], said: str, model: Path, tmp_path: Path, capsys
):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"a": 1}')
    before = sorted(tmp_path.rglob("*"))
    assert export_model.main([str(model), *(option.format(tmp=tmp_path) for option in options)]) == 1
    written = capsys.readouterr()
    assert said in written.err and written.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_where_no_format_can_be_written_nothing_is(model: Path, tmp_path: Path, capsys):
    assert export_model.main([str(model), "--formats", "nnunet", "--output_dir", str(tmp_path / "out")]) == 1
    remark = rows(capsys.readouterr().out)["nnunet"][-1]
    assert remark.count("use another of --formats") == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_runs_folder_will_do(model: Path, tmp_path: Path):
    out = tmp_path / "exports"
    assert export_model.main([str(model.parent), "--output_dir", str(out), "--formats", "safetensors"]) == 0
    assert (out / "model.safetensors").is_file() and (out / "model.json").is_file()
