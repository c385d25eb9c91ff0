# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Formats from a user's file: each brings its way to write and its check, and nothing in the package changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNetDS
from torch import Tensor

from bundle.errors import UserError
from bundle.export import FORMATS, Format, PlainModel, export_model, plain_model, plain_network
from tests.export.models import write_model
from tests.networks.encoder_cases import CASES

CASE = CASES["SegResEncoder"]

# ---- what a user writes: a numpy archive of the weights, compared tensor by tensor ----------------------------------


def write_npz(model: PlainModel, path: Path) -> str:
    np.savez(path, **{key: value.numpy() for key, value in model.weights.items()})
    return "numpy arrays"


def verify_npz(path: Path, name: str, model: PlainModel, images: Sequence[Tensor]) -> tuple[float, float]:
    with np.load(path) as arrays:
        network = plain_network(model.settings, {key: torch.from_numpy(arrays[key]) for key in arrays.files})
    pairs = zip(network.state_dict().values(), model.network.state_dict().values(), strict=True)
    apart = max(float((given - expected).abs().max()) for given, expected in pairs)
    if apart > 0:
        raise UserError(f"the {name} file holds other weights, by up to {apart:.1e}: export it again")
    return apart, apart


# ---- and a whole segmentation network, as its loader wants it --------------------------------------------------------


def segmentation_network() -> SegResNetDS:
    torch.manual_seed(0)
    return SegResNetDS(out_channels=3, **CASE.arguments).eval()


def write_whole_network(model: PlainModel, path: Path) -> str:
    weights = segmentation_network().state_dict() | {f"encoder.{key}": value for key, value in model.weights.items()}
    torch.save({"network_weights": weights, "current_epoch": 0}, path)
    return "a checkpoint of SegResNetDS"


def verify_whole_network(path: Path, name: str, model: PlainModel, images: Sequence[Tensor]) -> tuple[float, float]:
    network = segmentation_network()
    network.load_state_dict(torch.load(path, weights_only=True)["network_weights"], strict=True)
    difference = 0.0
    for image in (torch.ones(1, 1, 16, 16, 16), *images):
        with torch.no_grad():
            pairs = zip(network.encoder(image), model.network(image), strict=True)
            difference = max(difference, *(float((given - expected).abs().max()) for given, expected in pairs))
    if difference > 1e-5:
        raise UserError(f"the encoder in the {name} file gives other features: export it again")
    return difference, difference


@pytest.fixture(autouse=True)
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "npz", Format(".npz", write_npz, verify_npz))
    monkeypatch.setitem(FORMATS, "whole", Format(".pth", write_whole_network, verify_whole_network))


@pytest.fixture
def model(tmp_path: Path) -> PlainModel:
    return plain_model(write_model(tmp_path, CASE)[0])


def test_a_numpy_archive_holds_the_weights(model: PlainModel, tmp_path: Path):
    done = export_model(model, "npz", tmp_path / "model.npz")
    assert (done.difference, done.how) == (0.0, "numpy arrays")
    with np.load(done.file) as arrays:
        assert set(arrays.files) == set(model.weights)
        assert all(np.array_equal(arrays[key], value.numpy()) for key, value in model.weights.items())


def test_a_whole_network_has_the_encoder_in_it(model: PlainModel, tmp_path: Path):
    image = torch.randn(1, 1, 16, 24, 16)
    done = export_model(model, "whole", tmp_path / "model.pth", [image])
    network = SegResNetDS(out_channels=3, **CASE.arguments).eval()
    network.load_state_dict(torch.load(done.file, weights_only=True)["network_weights"])
    with torch.no_grad():
        for given, expected in zip(network.encoder(image), model.network(image), strict=True):
            torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def change_npz(path: Path) -> None:
    with np.load(path) as arrays:
        content = dict(arrays)
    content["conv_init.weight"].flat[0] += 1
    np.savez(path, **content)


def change_whole(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["network_weights"]["encoder.conv_init.weight"].view(-1)[0] += 1
    torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [("npz", change_npz, "holds other weights, by up to 1.0e"), ("whole", change_whole, "gives other features")],
)
def test_a_file_in_which_the_verifier_finds_a_difference_does_not_stay(
    name: str, change: Callable[[Path], None], message: str, model: PlainModel, tmp_path: Path, monkeypatch
):
    right = FORMATS[name]

    def write(model: PlainModel, path: Path) -> str:
        right.write(model, path)
        change(path)
        return ""

    monkeypatch.setitem(FORMATS, name, Format(right.suffix, write, right.verify))
    with pytest.raises(UserError, match=message) as error:
        export_model(model, name, tmp_path / f"exports/model{right.suffix}")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_verifier_that_fails_is_one_line(model: PlainModel, tmp_path: Path, monkeypatch):
    def write(model: PlainModel, path: Path) -> str:
        path.write_bytes(b"no archive")
        return ""

    monkeypatch.setitem(FORMATS, "npz", Format(".npz", write, verify_npz))
    with pytest.raises(UserError, match="the npz file cannot be read back"):
        export_model(model, "npz", tmp_path / "model.npz")
    assert not (tmp_path / "model.npz").exists()
