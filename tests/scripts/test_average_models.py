# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/average_models.py: two models in, their average out, or one line that says why not."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

import average_models
import pytest
import torch

from bundle.errors import UserError
from bundle.transfer import load_decoder, load_encoder, origin
from bundle.weights import ModelFiles, read_weights

WEIGHTS = {"conv_init.weight": torch.arange(54.0).reshape(2, 1, 3, 3, 3), "count": torch.tensor(3)}
DECODER = {"mask_tokens.0": torch.ones(2), "head.weight": torch.full((1, 2), 4.0)}


def write(folder: Path, times: float, *, decoder: bool = True, count: int = 3, **settings: object) -> Path:
    folder.mkdir()
    weights = {**{k: v * times for k, v in WEIGHTS.items()}, "count": torch.tensor(count)}
    about = {"encoder": {"name": "SegResEncoder"}, "orientation": "RAS", "licence": "Apache-2.0", **settings}
    ModelFiles(folder / "model.pt").write(
        weights, about, {k: v * times for k, v in DECODER.items()} if decoder else None
    )
    return folder


def average(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["average_models.py", *map(str, arguments)])
    average_models.main()


def test_every_tensor_is_the_mean_and_the_settings_say_of_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = write(tmp_path / "first", 1.0, epochs=10)
    second = write(tmp_path / "second", 3.0, count=7, epochs=24, spacing=[1, 1, 1], **origin(first))
    average(monkeypatch, first, second, "--share", 0.75, "--output_dir", tmp_path / "made")
    made = ModelFiles(tmp_path / "made")
    weights, decoder, about = made.read_weights(), made.read_decoder(), made.read_settings()
    assert about is not None
    for found, given in ((weights, WEIGHTS), (decoder, DECODER)):
        assert found.keys() == given.keys()
        for name, value in given.items():
            if value.is_floating_point():
                torch.testing.assert_close(found[name], value * 2.5)  # 0.25 * 1 + 0.75 * 3
    assert weights["count"] == 7
    content = about.content
    assert (content["average"], content["epochs"], content["spacing"]) == ({"share": 0.75}, 24, [1, 1, 1])
    assert content["licence"] == "Apache-2.0"
    files = (first / "model.pt", second / "model.pt")
    assert [step["sha256"] for step in content["origin"]] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    ]
    with pytest.raises(UserError, match="holds a model: give another folder"):
        average(monkeypatch, first, second, "--output_dir", tmp_path / "made")


def test_models_that_name_no_common_weights_are_averaged_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="bundle")
    root = write(tmp_path / "root", 1.0)
    first, second = (write(tmp_path / name, times, **origin(root)) for name, times in (("first", 2.0), ("second", 3.0)))
    average(monkeypatch, root, second, "--output_dir", tmp_path / "went_on")
    average(monkeypatch, first, second, "--output_dir", tmp_path / "branches")
    assert caplog.text == ""
    other = write(tmp_path / "other", 5.0, **origin(write(tmp_path / "other_root", 4.0)))
    average(monkeypatch, first, other, "--output_dir", tmp_path / "made")
    assert "name no weights that both come from" in caplog.text and (tmp_path / "made/model.pt").is_file()


@pytest.mark.parametrize("axes", ["RAS", "SPL", "LSP"])
def test_encoder_and_decoder_keep_the_axes_of_the_models(axes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kernel = torch.arange(6.0).reshape(1, 1, 1, 2, 3)
    about = {"encoder": {"name": "PlainConvUNet"}, "orientation": axes, "licence": "Apache-2.0"}
    for name, times in (("first", 1), ("second", 3)):
        (tmp_path / name).mkdir()
        files = ModelFiles(tmp_path / name / "model.pt")
        files.write({"a.weight": kernel * times}, about, {"b.weight": kernel * times})
    average(monkeypatch, tmp_path / "first", tmp_path / "second", "--output_dir", tmp_path / "made")
    made = ModelFiles(tmp_path / "made")
    for found, part in ((read_weights(made.weights), "a"), (read_weights(made.decoder), "b")):
        assert torch.equal(found[f"{part}.weight"], kernel * 2)
    one = ModelFiles(tmp_path / "first").read_decoder()["b.weight"]  # as whoever goes on from it sees it
    assert torch.equal(made.read_decoder()["b.weight"], one * 2)
    with (tmp_path / "first/model_decoder.pt").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"model_decoder\.pt is not the file that model\.json"):
        average(monkeypatch, tmp_path / "first", tmp_path / "second", "--output_dir", tmp_path / "again")


def test_with_one_decoder_the_average_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = write(tmp_path / "first", 1.0), write(tmp_path / "second", 1.0, decoder=False)
    average(monkeypatch, first, second, "--output_dir", tmp_path / "made")
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["model.json", "model.pt"]


def test_what_has_no_average_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = write(tmp_path / "first", 1.0, ct_window=[-1000, 1000])
    other = tmp_path / "other"
    other.mkdir()
    ModelFiles(other).write({"conv_init.weight": torch.ones(4, 1, 3, 3, 3)}, {"orientation": "RAS"})
    made = tmp_path / "made"
    for second, share, message in (
        (other, 0.5, "different networks, 2 tensors such as conv_init.weight differ"),
        (write(tmp_path / "turned", 1.0, orientation="LPS"), 0.5, "want different axes"),
        (write(tmp_path / "window", 1.0, ct_window=[-160, 240]), 0.5, "differ in ct_window"),
        (first, 1.5, "--share 1.5 is no share"),
    ):
        with pytest.raises(UserError, match=message):
            average(monkeypatch, first, second, "--share", share, "--output_dir", made)
    (other / "model.json").unlink()
    with pytest.raises(UserError, match="is missing: copy it beside"):
        average(monkeypatch, first, other, "--output_dir", made)
    assert not made.exists()


SAID = {
    "task": "segmentation",
    "classes": {"liver": 1, "spleen": 2},
    "in_channels": 1,
    "modality": "CT",
    "input": None,
    "spacing": [1.0, 1.0, 1.0],
    "encoder": {"name": "SegResEncoder", "init_filters": 8, "norm": "batch"},
    "network": {"name": "SegResNetDS", "act": "relu"},
}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("classes", {"spleen": 2, "liver": 1}, "classes"),  # the order is that of the outputs
        ("spacing", [3.0, 3.0, 3.0], "spacing"),
        ("spacing", None, "spacing"),
        ("in_channels", 2, "in_channels"),
        ("modality", "MR", "modality"),
        ("input", "straightened", "input"),
        ("encoder", {"name": "SegResEncoder", "init_filters": 8, "norm": "instance"}, "encoder#norm"),
        ("encoder", {"name": "SegResEncoder", "init_filters": 8}, "encoder#norm"),
        ("network", {"name": "SegResNetDS", "act": "prelu"}, "network#act"),
        ("network", {"name": "SegResNetDS", "act": "relu", "dsdepth": 2}, "network#dsdepth"),
        ("network", "EncoderClassifier", "network"),
    ],
)
def test_models_that_mean_something_else_are_refused_by_name(
    key: str, value: object, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = write(tmp_path / "first", 1.0, **SAID), write(tmp_path / "second", 1.0, **{**SAID, key: value})
    with pytest.raises(UserError, match=rf"differ in {named} \(.*\): average a training and what") as caught:
        average(monkeypatch, first, second, "--output_dir", tmp_path / "made")
    assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()


def test_what_one_does_not_say_and_the_order_of_arguments_are_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder = dict(reversed(SAID["encoder"].items()))
    first = write(tmp_path / "first", 1.0, **{**SAID, "encoder": encoder, "modality": "auto"})
    second = write(tmp_path / "second", 1.0, **SAID)  # went on from volumes of both kinds, with CT alone
    less = write(tmp_path / "less", 1.0, **{**SAID, "encoder": {}, "network": {}})
    for other, made in ((second, "made"), (less, "again")):
        average(monkeypatch, first, other, "--output_dir", tmp_path / made)
        assert torch.equal(ModelFiles(tmp_path / made).read_weights()["count"], WEIGHTS["count"])


def test_what_is_not_there_and_where_nothing_can_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = write(tmp_path / "first", 1.0)
    with pytest.raises(UserError, match="none does not exist: give a run's folder"):
        average(monkeypatch, first, tmp_path / "none", "--output_dir", tmp_path / "made")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output_dir .*file/made cannot be written \(Not a directory\)"):
        average(monkeypatch, first, first, "--output_dir", tmp_path / "file/made")


def test_the_average_of_the_shipped_weights_with_themselves_is_loaded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from monai.networks.nets.segresnet_ds import SegResNetDS  # noqa: PLC0415

    models = Path(__file__).parents[2] / "models"
    average(monkeypatch, models, models, "--output_dir", tmp_path / "made")
    networks = [
        SegResNetDS(init_filters=16, blocks_down=(1, 2, 2, 1, 1), norm=("instance", {"affine": True})) for _ in "12"
    ]
    for network, folder in zip(networks, (models, tmp_path / "made")):
        torch.manual_seed(0)
        load_encoder(network, folder / "model.pt")
        load_decoder(network, folder / "model.pt")
    for name, value in networks[0].state_dict().items():
        if "head" not in name:
            torch.testing.assert_close(networks[1].state_dict()[name], value)
