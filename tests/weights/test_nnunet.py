# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of nnU-Net's and nnssl's, made with the package's own classes in the layout of their trainers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from bundle.errors import UserError
from bundle.networks import build_encoder
from bundle.transfer import load_encoder
from bundle.weights import ModelFiles, read_checkpoint, read_weights
from bundle.weights.nnunet_plan import _warn_of_scheme, array_axes, reader_of

ARCHITECTURE: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 1]],  # slices, rows, columns
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]],
    "n_blocks_per_stage": [1, 2, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin_kwargs": {"inplace": True},
}
NAMES = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "nonlin": "torch.nn.LeakyReLU",
}
CT = {"percentile_00_5": -900.0, "percentile_99_5": 300.0, "mean": 40.0, "std": 120.0}


def network(kind: type[nn.Module] = ResidualEncoderUNet, **changes: Any) -> nn.Module:
    torch.manual_seed(3)
    arguments = {**ARCHITECTURE, **changes}
    if kind is PlainConvUNet:
        arguments["n_conv_per_stage"] = arguments.pop("n_blocks_per_stage")
    usual = {"input_channels": 1, "conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    return kind(num_classes=3, deep_supervision=True, **{**usual, **arguments})


def checkpoint(made: nn.Module, *, scheme: str = "CTNormalization", images: int = 1, **plan: Any) -> dict[str, Any]:
    """What nnU-Net's trainer saves."""
    name = type(made).__name__
    arguments = {**ARCHITECTURE, **NAMES}
    if name == "PlainConvUNet":
        arguments["n_conv_per_stage"] = arguments.pop("n_blocks_per_stage")
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments,
        "_kw_requires_import": list(NAMES),
    }
    configurations = {
        "3d_fullres": {
            "spacing": [3.0, 2.0, 1.0],
            "patch_size": [16, 32, 32],
            "normalization_schemes": [scheme] * images,
            "use_mask_for_norm": [False] * images,
            "architecture": architecture,
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    }
    plans = {
        "dataset_name": "Dataset009_Spleen",
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": CT},
        "configurations": configurations,
        **plan,
    }
    return {
        "network_weights": made.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "logging": {"train_losses": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.25)]},
        "_best_ema": np.float64(0.25),
        "current_epoch": 2,
        "init_args": {"plans": plans, "configuration": "3d_cascade_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def save(content: dict[str, Any], folder: Path) -> Path:
    torch.save(content, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


@pytest.mark.parametrize("kind", [ResidualEncoderUNet, PlainConvUNet])
def test_the_encoder_of_an_anisotropic_plan_is_read_with_its_axes(kind: type[nn.Module], tmp_path: Path):
    made = network(kind)
    files = ModelFiles(save(checkpoint(made), tmp_path))
    settings = files.describe()
    assert settings is not None
    assert settings.encoder["name"] == kind.__name__
    assert settings.encoder["kernel_sizes"] == [[3, 3, 1], [3, 3, 3], [1, 3, 3]]  # R, A, S
    assert settings.encoder["strides"] == [[1, 1, 1], [2, 2, 1], [1, 2, 2]]
    assert settings.spacing == [1.0, 2.0, 3.0] and settings.content["modality"] == "CT"
    assert settings.intensity_scheme == {"kind": "statistics", "window": [-900, 300], "mean": 40, "deviation": 120}
    assert "Dataset009_Spleen" in settings.content["trained_on"]
    encoder = build_encoder(**settings.encoder)
    assert set(encoder.network_state_dict()) == set(files.read_encoder())
    assert load_encoder(encoder.network, files.weights).share == 1
    if kind is PlainConvUNet:  # the other's average pooling takes no odd number of voxels
        assert_same_features(encoder, made)


def assert_same_features(encoder: Any, made: Any) -> None:
    """Along the axes that run the other way, a stride of 2 on an odd number of voxels meets the same voxels."""
    image = torch.randn(1, 1, 9, 17, 20, dtype=torch.float64)  # R, A, S
    with torch.no_grad():
        ours = encoder.double().eval()(image)
        theirs = made.double().eval().encoder(image.permute(0, 1, 4, 3, 2).flip(3, 4))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b.flip(3, 4).permute(0, 1, 4, 3, 2), rtol=0, atol=1e-12)


def test_the_plans_own_order_of_axes_is_undone(tmp_path: Path):
    settings = ModelFiles(save(checkpoint(network(), transpose_forward=[2, 0, 1]), tmp_path)).describe()
    assert settings is not None
    assert settings.encoder["strides"] == [[1, 1, 1], [1, 2, 2], [2, 1, 2]]  # R lies first, then S, then A
    assert settings.spacing == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("axes", ["SPL", "LSP", "PLS", "SAR", "ARS", "RAS"])
def test_reader_and_order_of_axes_lead_back_to_them(axes: str):
    assert array_axes(*reader_of(axes)) == axes


@pytest.mark.parametrize("axes", ["LAS", "SPP", ""])
def test_axes_that_no_reader_has_are_one_line(axes: str):
    with pytest.raises(UserError, match=r"no reader whose arrays run to .*: give axes of SPL or SAR in any order"):
        reader_of(axes)


def test_a_plan_from_before_architecture_and_an_unknown_normalization(tmp_path: Path, caplog):
    content = checkpoint(network(), scheme="MyOwnNormalization")
    configuration = content["init_args"]["plans"]["configurations"]["3d_fullres"]
    del configuration["architecture"]
    configuration["pool_op_kernel_sizes"] = ARCHITECTURE["strides"]
    with caplog.at_level(logging.WARNING):
        settings = ModelFiles(save(content, tmp_path)).describe()
    assert settings is not None
    assert settings.encoder["strides"] == [[1, 1, 1], [2, 2, 1], [1, 2, 2]] and settings.intensity_scheme is None
    assert "MyOwnNormalization of nnU-Net's plan is not known" in caplog.text


@pytest.mark.parametrize(
    ("scheme", "said"), [("CTNormalization", "lacks its statistics"), ("MyNormalization", "is not known here")]
)
def test_what_a_normalization_lacks_is_said_once_for_all_images_and_readings(
    scheme: str, said: str, tmp_path: Path, caplog
):
    _warn_of_scheme.cache_clear()
    content = checkpoint(network(), scheme=scheme, images=3, foreground_intensity_properties_per_channel={})
    files = ModelFiles(save(content, tmp_path))
    for _ in range(2):
        settings = files.describe()
        assert settings is not None and settings.intensity_scheme is None
    assert [record.getMessage() for record in caplog.records] == [
        f"the normalization {scheme} of nnU-Net's plan {said}: intensities are brought to our scale"
    ]


def test_the_normalizations_of_a_users_plan_are_known_in_a_checkpoint_too(tmp_path: Path):
    settings = ModelFiles(save(checkpoint(network(), scheme="RGBTo01Normalization"), tmp_path)).describe()
    assert settings is not None
    assert settings.intensity_scheme == {"kind": "range", "window": [0, 255], "to": [0, 1]}


@pytest.mark.parametrize("kind", [ResidualEncoderUNet, PlainConvUNet])
def test_batch_norm_that_the_plan_does_not_name_is_built(kind: type[nn.Module], tmp_path: Path):
    """nnUNetTrainerBN trains another network than the plan says."""
    made = network(kind, norm_op=nn.BatchNorm3d)
    for key, value in made.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 2)
    file = save(checkpoint(made), tmp_path)
    settings = ModelFiles(file).describe()
    assert settings is not None
    encoder = build_encoder(**settings.encoder)
    report = load_encoder(encoder.network, file)
    assert report.share == 1 and not report.unexpected
    norms = [module for module in encoder.network.encoder.modules() if isinstance(module, nn.BatchNorm3d)]
    assert norms and all(norm.eps == 1e-5 and norm.affine for norm in norms)
    if kind is PlainConvUNet:
        assert_same_features(encoder, made)


@pytest.mark.parametrize("kind", [ResidualEncoderUNet, PlainConvUNet])
def test_of_a_cascades_inputs_the_masks_are_left_out(kind: type[nn.Module], tmp_path: Path, caplog):
    """Without structures in the masks the network computes what it did."""
    made = network(kind, input_channels=3)
    file = save(checkpoint(made), tmp_path)
    with caplog.at_level(logging.WARNING):
        settings = ModelFiles(file).describe()
    assert "has 3 inputs, and their plan 1 images: the last 2 inputs, masks" in caplog.text
    assert settings is not None
    encoder = build_encoder(**settings.encoder)
    assert load_encoder(encoder.network, file).adapted == {}
    image = torch.randn(1, 1, 8, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        theirs = image.permute(0, 1, 4, 3, 2).flip(3, 4)
        first = made.double().eval().encoder(torch.cat([theirs, torch.zeros_like(theirs).repeat(1, 2, 1, 1, 1)], 1))[0]
        ours = encoder.double().eval()(image)[0]
    assert torch.allclose(ours, first.flip(3, 4).permute(0, 1, 4, 3, 2), rtol=0, atol=1e-12)


def test_images_that_are_normalised_alike_have_one_scheme(tmp_path: Path):
    made = network(input_channels=4)
    alike = ModelFiles(save(checkpoint(made, scheme="ZScoreNormalization", images=4), tmp_path)).describe()
    assert alike is not None and alike.encoder["input_channels"] == 4
    assert alike.intensity_scheme == {"kind": "z_score", "over": "nonzero_box"}
    content = checkpoint(made, scheme="ZScoreNormalization", images=4)
    content["init_args"]["plans"]["configurations"]["3d_fullres"]["normalization_schemes"][2] = "NoNormalization"
    other = ModelFiles(save(content, tmp_path)).describe()
    assert other is not None and [one["kind"] for one in other.intensity_scheme] == [
        "z_score",
        "z_score",
        "none",
        "z_score",
    ]


def test_weights_of_a_2d_network_are_called_so(tmp_path: Path):
    flat = {"kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [2, 2]]}
    made = network(PlainConvUNet, conv_op=nn.Conv2d, norm_op=nn.InstanceNorm2d, **flat)
    with pytest.raises(UserError, match=r"weights of a 2D network, and the encoders here are 3D: take .* 3d_fullres"):
        load_encoder(network(), save({"network_weights": made.state_dict()}, tmp_path))


def test_without_a_plan_the_decoder_tells_the_strides(tmp_path: Path):
    made = network(strides=[[1, 1, 1], [2, 1, 1], [2, 1, 1]])
    file = save({"network_weights": made.state_dict()}, tmp_path)
    settings = ModelFiles(file).describe()
    assert settings is not None
    assert settings.encoder["strides"] == [[1, 1, 1], [1, 1, 2], [1, 1, 2]]
    encoder = build_encoder(**settings.encoder)
    load_encoder(encoder.network, file)
    assert_same_features(encoder, made)


def test_an_encoder_alone_is_read_if_its_kernels_leave_no_doubt(tmp_path: Path):
    usual = network(PlainConvUNet, kernel_sizes=3, strides=[1, 2, 2])
    bare = {key.removeprefix("encoder."): w for key, w in usual.state_dict().items() if key.startswith("encoder.")}
    short = {key: value for key, value in bare.items() if ".all_modules." not in key}
    assert len(short) < len(bare)
    file = save(short, tmp_path)
    settings = ModelFiles(file).describe()
    assert settings is not None
    encoder = build_encoder(**settings.encoder)
    load_encoder(encoder.network, file)
    assert_same_features(encoder, usual)
    doubtful = {
        key: value
        for key, value in network().state_dict().items()
        if key.startswith(("encoder.stem", "encoder.stages"))
    }
    with pytest.raises(UserError, match="nothing in this file tells the strides of its network"):
        ModelFiles(save(doubtful, tmp_path)).describe()


def test_a_plan_of_another_network_is_one_line(tmp_path: Path):
    content = checkpoint(network(features_per_stage=[4, 8, 8]))
    with pytest.raises(UserError, match=r"says features_per_stage \[4, 6, 8\], and its tensors have \[4, 8, 8\]"):
        ModelFiles(save(content, tmp_path)).describe()


def test_a_transformer_is_one_line(tmp_path: Path):
    about = {"architecture_plans": {"arch_class_name": "PrimusM"}, "pretrain_plan": {"configurations": {}}}
    file = save({"network_weights": {"eva.blocks.0.weight": torch.ones(2)}, "nnssl_adaptation_plan": about}, tmp_path)
    with pytest.raises(UserError, match="are of PrimusM, a transformer"):
        ModelFiles(file).describe()


@pytest.mark.parametrize("axes", ["another", "the same"])
def test_kernels_in_another_order_of_axes_are_named(axes: str, tmp_path: Path):
    """A json without the order of axes beside the file, so that nothing turns them."""
    file = save({"network_weights": network().state_dict()}, tmp_path)
    file.with_suffix(".json").write_text("{}")
    turned = {key: [step[::-1] for step in ARCHITECTURE[key]] for key in ("kernel_sizes", "strides")}
    target = network(**turned) if axes == "another" else network(features_per_stage=[4, 6, 16])
    with pytest.raises(UserError, match="tensors fit") as raised:
        load_encoder(target, file)
    assert ("their axes lie in another order" in str(raised.value)) == (axes == "another")
    assert str(raised.value).count("\n") == 0


def test_few_kernels_in_another_order_of_axes_are_refused_too(tmp_path: Path):
    """All other kernels are cubes: they fit, and would be read in the wrong order without a word."""
    cubes = {"kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}
    one, other = ({**cubes, "kernel_sizes": [flat, [3, 3, 3], [3, 3, 3]]} for flat in ([1, 3, 3], [3, 3, 1]))
    file = save({"network_weights": network(**one).state_dict()}, tmp_path)
    file.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match="their axes lie in another order: say which"):
        load_encoder(network(**other), file, min_matched=0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"checkpoints": [{"weight": torch.ones(2)}]}, r"holds no state dict of tensors, but checkpoints \(list\)"),
        ({"state_dict": {"a": torch.ones(2), "epoch": 3}}, r"but epoch \(int\)"),
        ([torch.ones(2)], "but a list"),
        ({}, "but an empty dict"),
        (
            {"state_dict": {"a": torch.ones(2)}, "made": Path("here")},
            r"holds more than tensors, pathlib\S* which is not",
        ),
    ],
)
def test_what_holds_no_tensors_by_name_says_what_it_holds(content, message, tmp_path: Path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "model.pt")


def test_what_stands_beside_the_weights_is_read_too(tmp_path: Path):
    weights, about = read_checkpoint(save(checkpoint(network()), tmp_path))
    assert about["trainer_name"] == "nnUNetTrainer" and about["_best_ema"] == 0.25
    assert set(weights) == set(network().state_dict())
