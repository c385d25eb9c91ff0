# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The file that nnU-Net's training begins with, held against the package's own classes and the loader's own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import export_model as command
import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from bundle.errors import UserError
from bundle.export import FORMATS, export_model, fit_plans, plain_model, plan_axes, write_nnunet
from bundle.networks import build_encoder
from bundle.weights import ModelFiles
from tests.export.models import write_model
from tests.networks.encoder_cases import CASES, Case

NORMS = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}, "conv_bias": True}
#: along the axes that run the other way in nnU-Net's arrays nothing is strided: there turning is exact
ONE_WAY = Case(
    "ResidualEncoderUNet",
    {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 1, 3]],  # R, A, S
        "strides": [[1, 1, 1], [1, 1, 2], [1, 1, 2]],
        "n_blocks_per_stage": [1, 2, 1],
    },
    (),
)
PLAIN = CASES["nnU-Net's PlainConvUNet, anisotropic"]


def theirs(case: Case, in_channels: int, *, turned: bool) -> nn.Module:
    """nnU-Net's network as its trainer builds it from a plan: five classes, deep supervision."""
    arguments = dict(case.arguments)
    for key in ("kernel_sizes", "strides"):
        arguments[key] = [step[::-1] if turned else step for step in arguments[key]]
    arguments.setdefault("n_conv_per_stage_decoder", [1] * (arguments["n_stages"] - 1))
    make = {"ResidualEncoderUNet": ResidualEncoderUNet, "PlainConvUNet": PlainConvUNet}[case.name]
    classes = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    return make(in_channels, num_classes=5, deep_supervision=True, **NORMS, **classes, **arguments)


def load_as_nnunet(network: nn.Module, file: Path) -> dict[str, torch.Tensor]:
    """nnU-Net's rule: all but segmentation layers must be there in their shape; those are copied, the others stay."""
    given: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["network_weights"]
    current = network.state_dict()
    for key, value in current.items():
        assert ".seg_layers." in key or given[key].shape == value.shape, key
    network.load_state_dict(current | {k: v for k, v in given.items() if k in current and ".seg_layers." not in k})
    return given


@pytest.mark.parametrize(("case", "turned"), [(ONE_WAY, True), (ONE_WAY, False), (PLAIN, True)])
def test_nnunets_loader_takes_it_and_its_encoder_gives_the_same_features(case: Case, turned: bool, tmp_path: Path):
    file, _ = write_model(tmp_path, case, orientation="RAS" if turned else "SPL")
    export_model(plain_model(file), "nnunet", tmp_path / "out.pth", [torch.randn(1, 1, 8, 16, 16)])
    network = theirs(case, 1, turned=turned).eval()
    load_as_nnunet(network, tmp_path / "out.pth")
    image = np.random.default_rng(0).normal(size=(8, 12, 16)).astype(np.float32)  # R, A, S
    shown = image.transpose(2, 1, 0)[:, ::-1, ::-1].copy() if turned else image
    with torch.no_grad():
        features = network.encoder(torch.from_numpy(shown)[None, None])
        expected = plain_model(file).network(torch.from_numpy(image)[None, None])
    if case is PLAIN:  # strided along the mirrored axes: the values are others, the sizes are not
        assert [f.shape[2:][::-1] for f in features] == [e.shape[2:] for e in expected]
        return
    for a, b in zip(features, expected, strict=True):
        back = a[0].numpy()[:, :, ::-1, ::-1].transpose(0, 3, 2, 1) if turned else a[0].numpy()
        assert np.abs(back - b[0].numpy()).max() <= 1e-6 * b.abs().max()


def test_the_tensors_are_the_encoders_bit_for_bit_under_all_of_nnunets_names(tmp_path: Path):
    file, _ = write_model(tmp_path, ONE_WAY, orientation="SPL")
    export_model(plain_model(file), "nnunet", tmp_path / "out.pth")
    given = torch.load(tmp_path / "out.pth", weights_only=True)["network_weights"]
    for key, value in torch.load(file, weights_only=True).items():
        assert torch.equal(given[key], value), key
    assert {k.removeprefix("decoder.") for k in given if k.startswith("decoder.encoder.")} == {
        k for k in given if k.startswith("encoder.")
    }


@pytest.mark.usefixtures("formats")
def test_the_stem_is_repeated_for_more_channels_so_that_the_same_image_on_each_gives_the_same(tmp_path: Path):
    file, _ = write_model(tmp_path, ONE_WAY, orientation="SPL")
    plans = tmp_path / "nnUNetPlans.json"
    plans.write_text(json.dumps(plan([16, 16, 16])))
    options = ["--formats", "nnunet", "--input_channels", "3", "--nnunet_plans", str(plans), "--output_dir"]
    assert command.main([str(file), *options, str(tmp_path / "out")]) == 0
    (tmp_path / "out/SparseMimPlans.json").unlink()
    # the weights are there already and stay: a plan is written beside them
    assert command.main([str(file), *options, str(tmp_path / "out")]) == 1
    network = theirs(ONE_WAY, 3, turned=False).eval()
    load_as_nnunet(network, tmp_path / "out/model.nnunet.pth")
    image = torch.randn(1, 1, 8, 8, 16)
    with torch.no_grad():
        features, expected = network.encoder(image.expand(-1, 3, -1, -1, -1)), plain_model(file).network(image)
    for a, b in zip(features, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    written = json.loads((tmp_path / "out/SparseMimPlans.json").read_text())
    assert written["configurations"]["3d_fullres"]["patch_size"] == [16, 16, 16]


def test_the_decoder_begins_as_nnunet_begins_it(tmp_path: Path):
    file, _ = write_model(tmp_path, ONE_WAY, orientation="SPL")
    for name in ("one", "two"):
        export_model(plain_model(file), "nnunet", tmp_path / f"{name}.pth")
    one, two = (torch.load(tmp_path / f"{n}.pth", weights_only=True)["network_weights"] for n in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)  # the same file each time
    convolution = one["decoder.stages.0.convs.0.conv.weight"]
    he = (2 / (1 + 1e-4) / convolution[0].numel()) ** 0.5
    assert convolution.std().item() == pytest.approx(he, rel=0.1)
    assert not one["decoder.stages.0.convs.0.conv.bias"].any()


def test_what_nnunets_tools_for_nnssls_files_read_is_there(tmp_path: Path):
    file, _ = write_model(tmp_path, ONE_WAY, orientation="RAS", spacing=[1.0, 2.0, 3.0], crop_size=[16, 32, 64])
    export_model(plain_model(file), "nnunet", tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    about = content["nnssl_adaptation_plan"]
    configuration = about["pretrain_plan"]["configurations"]["3d_fullres"]
    assert configuration == {"spacing": [3.0, 2.0, 1.0], "patch_size": [64, 32, 16]}
    assert about["pretrain_plan"]["image_reader_writer"] == "SimpleITKIO"
    assert about["pretrain_plan"]["transpose_forward"] == [0, 1, 2]
    assert about["architecture_plans"]["arch_kwargs"]["strides"] == [[1, 1, 1], [2, 1, 1], [2, 1, 1]]
    for key in (about["key_to_encoder"], about["key_to_stem"], *about["keys_to_in_proj"]):
        assert any(name.startswith(f"{key}.") for name in content["network_weights"]), key
    assert json.dumps(about)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("case", [ONE_WAY, PLAIN], ids=lambda case: case.name)
def test_nnunets_loader_of_nnssls_files_takes_encoder_and_stem(case: Case, channels: int, tmp_path: Path):
    """As its PretrainedTrainer: the parts that the network's class names get what is below its keys, strictly."""
    file, _ = write_model(tmp_path, case, orientation="SPL")
    write_nnunet(plain_model(file), tmp_path / "out.pth", channels)
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    given, about = content["network_weights"], content["nnssl_adaptation_plan"]
    assert about["pretrain_num_input_channels"] == channels  # else it repeats the stem once more
    network: Any = theirs(case, channels, turned=False)
    for part, key in ((network.key_to_encoder, about["key_to_encoder"]), (network.key_to_stem, about["key_to_stem"])):
        below = {name.replace(key, "").removeprefix("."): w for name, w in given.items() if name.startswith(key)}
        network.get_submodule(part).load_state_dict(below)
    assert set(about["keys_to_in_proj"]) == set(network.keys_to_in_proj)
    loaded = network.encoder.state_dict()
    assert all(torch.equal(loaded[key], given[f"encoder.{key}"]) for key in loaded)


def test_one_number_for_the_kernels_or_strides_of_all_stages_is_one_for_each(tmp_path: Path):
    given = {"n_stages": 2, "features_per_stage": [4, 6], "n_conv_per_stage": [1, 1]}
    file, _ = write_model(tmp_path, Case("PlainConvUNet", {**given, "kernel_sizes": 3, "strides": 1}, ()))
    export_model(plain_model(file), "nnunet", tmp_path / "out.pth")
    about = torch.load(tmp_path / "out.pth", weights_only=True)["nnssl_adaptation_plan"]["architecture_plans"]
    assert about["arch_kwargs"]["kernel_sizes"] == [[3, 3, 3]] * 2
    assert about["arch_kwargs"]["strides"] == [[1, 1, 1]] * 2
    settings = json.loads(file.with_suffix(".json").read_text())
    fitted = fit_plans(plan([40, 56, 40]), settings)["configurations"]["3d_fullres"]["architecture"]
    assert fitted["arch_kwargs"]["kernel_sizes"] == [[3, 3, 3]] * 2


def with_decoder(file: Path, **settings: Any) -> ModelFiles:
    """A small anisotropic encoder with its decoder, as a pre-training to a plan leaves them."""
    torch.manual_seed(5)
    encoder = build_encoder(PLAIN.name, **PLAIN.arguments)
    whole = encoder.network.state_dict()
    decoder = {
        key.removeprefix("decoder."): value
        for key, value in whole.items()
        if key.startswith("decoder.") and not key.startswith(("decoder.encoder.", "decoder.seg_layers."))
    }
    ModelFiles(file).write(encoder.network_state_dict(), {"encoder": encoder.settings, **settings}, decoder)
    return ModelFiles(file)


@pytest.mark.parametrize("tells", ["the plan", "model.json"])
@pytest.mark.parametrize(
    ("axes", "reader", "transpose"),
    [
        ("SPL", "SimpleITKIO", [0, 1, 2]),
        ("LSP", "NibabelIO", [2, 0, 1]),
        ("PSL", "SimpleITKIO", [1, 0, 2]),
        ("SAR", "NibabelIOWithReorient", [0, 1, 2]),
        ("RSA", "SimpleITKIOWithReorient", [2, 0, 1]),
        ("RAS", None, None),
    ],
)
def test_an_export_read_again_is_the_model_that_it_was_made_from(
    axes: str, reader: str | None, transpose: list[int] | None, tells: str, tmp_path: Path
):
    """Of a pre-training to a plan, and of one without: kernels, spacing and arguments for RAS axes are the same."""
    record = {} if reader is None else {"nnunet": {"reader": reader, "transpose_forward": transpose}}
    about = {"orientation": axes, "spacing": [5.0, 0.8, None], "crop_size": [16, 32, 64], "licence": "x", **record}
    own, exported = with_decoder(tmp_path / "model.pt", **about), tmp_path / "model.nnunet.pth"
    export_model(plain_model(own.weights), "nnunet", exported)
    if tells == "model.json":  # as an export that did not tell reader and order
        content = torch.load(exported, weights_only=True)
        for key in ("image_reader_writer", "transpose_forward"):
            del content["nnssl_adaptation_plan"]["pretrain_plan"][key]
        torch.save(content, exported)
    again = ModelFiles(exported)
    one, other = own.describe(), again.describe()
    assert one is not None and other is not None and other.spacing == one.spacing
    for key in ("kernel_sizes", "strides"):
        assert other.encoder[key] == one.encoder[key]
    weights, read = own.read_encoder(), again.read_encoder()
    assert all(torch.equal(read[key], value) for key, value in weights.items())
    published = again.read_published()
    assert published is not None
    for key, value in own.read_decoder().items():
        assert torch.equal(published.rest[f"decoder.{key}"], value), key


def test_an_encoder_that_nnunet_has_not_is_one_line(tmp_path: Path):
    file, _ = write_model(tmp_path, CASES["SegResEncoder"])
    with pytest.raises(UserError, match="nnU-Net has no network with the encoder SegResEncoder"):
        export_model(plain_model(file), "nnunet", tmp_path / "out.pth")


def plan(patch: list[int]) -> dict[str, Any]:
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": {"patch_size": [56, 40]},
            "3d_fullres": {"patch_size": patch, "batch_size": 9, "spacing": [1, 1, 1], "architecture": {}},
            "3d_cascade": {"inherits_from": "3d_fullres"},
        },
    }  # fmt: skip


def test_a_plan_gets_the_pretrained_network_and_keeps_all_else():
    settings = {"encoder": {"name": ONE_WAY.name, **ONE_WAY.arguments}, "orientation": "RAS"}
    fitted = fit_plans(plan([40, 56, 40]), settings)
    (configuration,) = fitted["configurations"].values()
    assert (configuration["batch_size"], configuration["spacing"]) == (9, [1, 1, 1])
    architecture = configuration["architecture"]
    assert architecture["network_class_name"].endswith("unet.ResidualEncoderUNet")
    assert architecture["arch_kwargs"]["kernel_sizes"] == [[1, 3, 3], [3, 3, 3], [3, 1, 3]]
    assert architecture["arch_kwargs"]["nonlin"] == "torch.nn.LeakyReLU"
    assert (fitted["plans_name"], fitted["dataset_name"]) == ("SparseMimPlans", "Dataset004_Hippocampus")


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "nnunet", FORMATS["nnunet"])  # as before, after the test


@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize(
    ("reader", "transpose", "pretrained"),
    [
        ("SimpleITKIO", [0, 1, 2], "RAS"),
        ("SimpleITKIO", [2, 0, 1], "RAS"),
        ("NibabelIO", [1, 0, 2], "SPL"),
        ("NibabelIOWithReorient", [0, 1, 2], "RAS"),
        ("SimpleITKIOWithReorient", [1, 2, 0], "LPS"),
    ],
)
def test_the_weights_and_the_network_for_a_plan_have_its_axes(
    reader: str, transpose: list[int], pretrained: str, tmp_path: Path
):
    """The network of the written plan says of nnU-Net's array what the encoder says of the same scan."""
    order = [2 - axis for axis in transpose]  # a reader gives axes last first: which of x, y, z each axis of arrays is
    at = ["RL", "AP", "SI"]
    of_scan = [next(i for i, pair in enumerate(at) if code in pair) for code in pretrained]
    given = {"n_stages": 2, "features_per_stage": [4, 6], "n_conv_per_stage": [1, 1]}
    kernels, strides = [[1, 3, 3], [3, 3, 1]], [[1, 1, 1], [1, 1, 1]]
    case = Case("PlainConvUNet", {**given, "kernel_sizes": kernels, "strides": strides}, ())
    file, _ = write_model(tmp_path, case, orientation=pretrained)
    plans = {**plan([16, 16, 16]), "image_reader_writer": reader, "transpose_forward": transpose}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    out = tmp_path / "out"
    options = ["--formats", "nnunet", "--nnunet_plans", str(tmp_path / "plans.json"), "--output_dir", str(out)]
    assert command.main([str(file), *options]) == 0
    written = json.loads((out / "SparseMimPlans.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    network = build_encoder("PlainConvUNet", **written["arch_kwargs"]).network.eval()
    load_as_nnunet(network, out / "model.nnunet.pth")

    scan = np.random.default_rng(1).normal(size=(6, 8, 10)).astype(np.float32)  # x, y, z: right, anterior, superior
    reorients = reader.endswith("WithReorient")
    stored = scan if reorients else scan[::-1, ::-1]  # a file as DICOM has it: left, posterior, superior
    shown = np.ascontiguousarray(stored.transpose(order))
    flips = [number for number, code in enumerate(pretrained) if code in "LPI"]
    prepared = np.ascontiguousarray(np.flip(scan.transpose(of_scan), flips))
    with torch.no_grad():
        features = network.encoder(torch.from_numpy(shown)[None, None])
        expected = plain_model(file).network(torch.from_numpy(prepared)[None, None])
    for ours, theirs in zip(expected, features, strict=True):
        in_scan = np.flip(ours[0].numpy(), [1 + axis for axis in flips]).transpose(0, *(1 + np.argsort(of_scan)))
        as_stored = in_scan if reorients else in_scan[:, ::-1, ::-1]
        again = as_stored.transpose(0, *(1 + axis for axis in order))
        assert np.abs(again - theirs[0].numpy()).max() <= 1e-5 * np.abs(again).max()


@pytest.mark.usefixtures("formats")
def test_weights_that_lie_there_for_other_axes_get_no_plan(tmp_path: Path, capsys):
    file, _ = write_model(tmp_path, PLAIN, orientation="RAS")
    (tmp_path / "plans.json").write_text(json.dumps({**plan([16, 16, 16]), "transpose_forward": [2, 0, 1]}))
    line = [str(file), "--formats", "nnunet", "--output_dir", str(tmp_path / "out")]
    assert command.main(line) == 0
    assert command.main([*line, "--nnunet_plans", str(tmp_path / "plans.json")]) == 1
    assert "the nnunet file differs from the model in" in capsys.readouterr().err
    assert not (tmp_path / "out/SparseMimPlans.json").exists()


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1], [1, 2, 3], "x", 3])
def test_a_plan_without_an_order_of_axes_is_one_line(order: Any):
    with pytest.raises(UserError, match="which is no order of three axes: plan the data set again"):
        plan_axes({"transpose_forward": order})


@pytest.mark.parametrize(
    ("patch", "configuration", "message"),
    [
        ([42, 56, 40], "3d_fullres", r"\[42, 56, 40\] does not divide by .* \[4, 1, 1\]: .* \[44, 56, 40\]"),
        ([40, 56, 40], "2d", r"\[56, 40\] does not divide"),
        ([40, 56, 40], "3d_lowres", "no configuration '3d_lowres' of its own: give .* 2d, 3d_fullres"),
        ([40, 56, 40], "3d_cascade", "no configuration '3d_cascade' of its own"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(patch, configuration, message):
    settings = {"encoder": {"name": ONE_WAY.name, **ONE_WAY.arguments}, "orientation": "RAS"}
    with pytest.raises(UserError, match=message):
        fit_plans(plan(patch), settings, configuration)
