# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Exported files give the features of MONAI's own network in other programs, and a wrong file never stays."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime
import pytest
import torch
from monai.transforms import CenterSpatialCrop
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bundle.data import read_volume
from bundle.errors import UserError
from bundle.export import FORMATS, PlainModel, export_model, formats, plain_model, verify_file
from bundle.networks import build_encoder
from bundle.transfer import load_encoder
from tests.export.models import write_model
from tests.networks.encoder_cases import CASES, dense_features

ENCODERS = ["SegResEncoder", "DynUNet, anisotropic", "ResNet 18, basic block, shortcut A", "MedNeXt"]
TINY = CASES["SegResEncoder"]

#: formats that can hold any encoder
OF_ANY = [name for name, format_ in FORMATS.items() if not format_.encoders]


@pytest.fixture(scope="module")
def real(data_dir: Path) -> Tensor:
    volume = read_volume([str(data_dir / "volumes/ct_body_totalseg.nii.gz")], "body").as_tensor()
    return (CenterSpatialCrop(64)(volume).clamp(-1000, 1000) / 1000)[None].contiguous()


def write_tiny(folder: Path) -> PlainModel:
    return plain_model(write_model(folder, TINY, crop_size=[16, 16, 16], licence="Apache-2.0")[0])


@pytest.fixture
def tiny(tmp_path: Path) -> PlainModel:
    return write_tiny(tmp_path)


class Exported(NamedTuple):
    """A small model, and the folder of its files, `model` with each format's ending: not to be changed."""

    model: PlainModel
    folder: Path

    def file(self, name: str) -> Path:
        """The file of a format; written when first asked for, since some take seconds."""
        path = self.folder / f"model{FORMATS[name].suffix}"
        if not path.exists():
            export_model(self.model, name, path)
        return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    return Exported(write_tiny(tmp_path_factory.mktemp("tiny")), folder)


def run(name: str, path: Path, image: Tensor) -> Sequence[Tensor]:
    """The file's features, by the library that a user of the format would call."""
    if name == "torchscript":
        return torch.jit.load(path)(image)
    if name == "torch_export":
        return torch.export.load(path).module()(image)
    assert name == "onnx"
    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()][:2] == ["features_0", "features_1"]
    return [torch.from_numpy(array) for array in session.run(None, {"image": image.numpy()})]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", ["torchscript", "onnx", "torch_export"])
def test_a_file_gives_monais_features_on_a_size_it_has_not_seen(name: str, encoder: str, real: Tensor, tmp_path: Path):
    case = CASES[encoder]
    path, network = write_model(tmp_path, case)
    model = plain_model(path)
    done = export_model(model, name, tmp_path / f"model{FORMATS[name].suffix}", [real])
    assert done.size == done.file.stat().st_size > 0
    assert 0 <= done.relative <= (1e-4 if name == "onnx" else 1e-6)
    image = real[..., : 2 * model.network.strides[-1][2]].expand(3, -1, -1, -1, -1).contiguous()
    with torch.no_grad():
        expected = dense_features(network, case.outputs, image)
        for mine, its in zip(run(name, done.file, image), expected, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)
            assert its.std() > 0  # zeros would agree whatever the file holds


@pytest.mark.parametrize(("encoder", "how"), [("SegResEncoder", "scripted"), ("MedNeXt", "traced")])
def test_torchscript_is_traced_where_it_cannot_be_scripted(encoder: str, how: str, tmp_path: Path):
    model = plain_model(write_model(tmp_path, CASES[encoder])[0])
    assert export_model(model, "torchscript", tmp_path / "model.ts").how == how


@pytest.mark.parametrize("encoder", ENCODERS)
def test_safetensors_hold_every_key_for_a_downstream_network(encoder: str, tmp_path: Path):
    case = CASES[encoder]
    path, _ = write_model(tmp_path, case)
    done = export_model(plain_model(path), "safetensors", tmp_path / "model.safetensors")
    weights, given = torch.load(path, weights_only=True), load_file(done.file)
    assert weights.keys() == given.keys()
    assert all(torch.equal(weights[key], given[key]) for key in weights)
    fresh = build_encoder(case.name, **case.arguments).network
    assert load_encoder(fresh, done.file).share == 1
    assert all(torch.equal(fresh.state_dict()[key], weights[key]) for key in weights)


def test_torch_alone_runs_the_files_and_finds_the_settings_inside(exported: Exported):
    for name in ("torchscript", "torch_export"):
        exported.file(name)
    code = (
        "import json, sys, torch\n"
        "a, b = {'model.json': ''}, {'model.json': ''}\n"
        "script = torch.jit.load('model.ts', _extra_files=a)\n"
        "program = torch.export.load('model.pt2', extra_files=b).module()\n"
        "image = torch.ones(1, 1, 12, 8, 16)\n"
        "assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(script(image), program(image)))\n"
        "assert json.loads(a['model.json']) == json.loads(b['model.json'])\n"
        "assert not {'bundle', 'monai'} & set(sys.modules)\n"
        "print(json.loads(a['model.json'])['licence'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=exported.folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "Apache-2.0", done.stderr


def test_onnx_and_safetensors_hold_the_settings(exported: Exported):
    graph = onnx.load(exported.file("onnx"))
    onnx.checker.check_model(graph)
    assert json.loads({p.key: p.value for p in graph.metadata_props}["model.json"]) == exported.model.settings
    with safe_open(exported.file("safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["model.json"]) == exported.model.settings


# ---- wrong files -----------------------------------------------------------------------------------------------------


def break_one_weight(name: str, path: Path) -> None:
    """Adds 1 to one element of a convolution's weight in a written file."""
    if name == "safetensors":
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        weights = load_file(path)
        weights["conv_init.weight"].view(-1)[0] += 1
        save_file(weights, path, metadata=about)
    elif name == "torchscript":
        extra = {"model.json": ""}
        script = torch.jit.load(path, _extra_files=extra)
        next(p for p in script.parameters() if p.ndim == 5).data.view(-1)[0] += 1
        torch.jit.save(script, path, _extra_files=extra)
    elif name == "torch_export":
        extra = {"model.json": ""}
        program = torch.export.load(path, extra_files=extra)
        next(p for p in program.state_dict.values() if p.ndim == 5).data.view(-1)[0] += 1
        torch.export.save(program, path, extra_files=extra)
    else:
        graph = onnx.load(path)
        tensor = next(t for t in graph.graph.initializer if len(t.dims) == 5)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[0] += 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(graph, path)


@pytest.mark.parametrize("name", OF_ANY)
def test_one_wrong_weight_is_found_and_the_file_does_not_stay(
    name: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    format_ = FORMATS[name]
    path = tmp_path / "exports" / f"model{format_.suffix}"
    right = exported.file(name)

    def write(model: PlainModel, path: Path) -> str:
        shutil.copy(right, path)
        break_one_weight(name, path)
        return ""

    monkeypatch.setitem(FORMATS, name, replace(format_, write=write))
    with pytest.raises(UserError, match="gives other features than the network"):
        export_model(exported.model, name, path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", OF_ANY)
def test_a_truncated_file_cannot_be_read_back(name: str, exported: Exported, tmp_path: Path):
    path = tmp_path / exported.file(name).name
    path.write_bytes(exported.file(name).read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read back"):
        verify_file(path, name, exported.model)


def test_settings_of_another_model_are_found(tiny: PlainModel, tmp_path: Path):
    export_model(tiny, "safetensors", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="other settings"):
        verify_file(tmp_path / "out.safetensors", "safetensors", replace(tiny, settings={**tiny.settings, "x": 1}))


class SizeFixed(nn.Module):
    """Cannot be scripted, and a trace of it is good for one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.make = functools.partial(torch.ones)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.make([int(n) for n in x.shape])


class ValueDependent(nn.Module):
    """No graph can hold it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_a_trace_that_is_good_for_one_size_is_found(tiny: PlainModel, tmp_path: Path):
    tiny.network.stages[0].append(SizeFixed())
    with pytest.raises(UserError, match="the torchscript file does not run on"):
        export_model(tiny, "torchscript", tmp_path / "out.ts")
    assert not (tmp_path / "out.ts").exists()


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_an_encoder_that_a_format_cannot_hold_says_so(name: str, tiny: PlainModel, tmp_path: Path):
    tiny.network.stages[0].append(ValueDependent())
    with pytest.raises(UserError, match=f"format {name} cannot hold this encoder, SegResEncoder"):
        export_model(tiny, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tiny: PlainModel, tmp_path: Path):
    path = tmp_path / "out.safetensors"
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already: pass --replace"):
        export_model(tiny, "safetensors", path)
    assert path.read_text() == "mine"
    export_model(tiny, "safetensors", path, replace=True)
    assert load_file(path).keys() == tiny.weights.keys()


@pytest.mark.parametrize("name", [name for name in OF_ANY if name != "safetensors"])
def test_no_file_tells_where_the_source_code_lies(name: str, exported: Exported):
    file = exported.file(name)
    inside = file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            inside = b"".join(archive.read(entry) for entry in archive.namelist())
    assert not [path for path in (Path(__file__).parents[2], sys.prefix) if os.fsencode(path) in inside]


def test_exporting_leaves_the_network_as_it_was(tmp_path: Path):
    model = plain_model(write_model(tmp_path, CASES["ResNet 18, basic block, shortcut A"])[0])
    before = [(name, type(module)) for name, module in model.network.named_modules()]
    formats.exportable(model.network)
    assert [(name, type(module)) for name, module in model.network.named_modules()] == before
    assert all(parameter.requires_grad for parameter in model.network.parameters())


def test_a_package_that_is_missing_is_named_with_the_command(tiny: PlainModel, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        UserError, match=r"onnx needs onnxscript: run \"python -m pip install -c constraints\.txt onnxs"
    ):
        export_model(tiny, "onnx", tmp_path / "out.onnx")


def test_the_extra_installs_what_onnx_needs_and_the_tests_have_it():
    root = Path(__file__).parents[2]
    extra = re.search(r"^export = \[(.+?)\]", (root / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert extra is not None
    assert set(extra[1].replace('"', "").split(", ")) == set(FORMATS["onnx"].packages)
    assert set(FORMATS["onnx"].packages) <= set((root / "requirements-dev.txt").read_text().splitlines())


def test_an_unknown_format_lists_those_there_are(tiny: PlainModel, tmp_path: Path):
    with pytest.raises(UserError, match="choose among safetensors, torchscript, onnx, torch_export"):
        export_model(tiny, "tensorrt", tmp_path / "out.trt")
