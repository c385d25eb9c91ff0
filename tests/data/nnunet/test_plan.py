# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import pytest

from bundle.data.nnunet import read_plan
from bundle.errors import UserError
from tests.data.nnunet.folders import KERNELS, STATISTICS, STRIDES, plan, write_plan


def test_a_plan_says_network_patch_spacing_intensities_and_axes(tmp_path: Path):
    found = read_plan(write_plan(tmp_path))
    assert (found.network, found.channels, found.modality) == ("PlainConvUNet", 2, "MR")
    assert (found.arguments["kernel_sizes"], found.arguments["strides"]) == (KERNELS, STRIDES)
    assert found.arguments["input_channels"] == 2
    assert (found.patch_size, found.spacing, found.axes) == ([4, 16, 32], [3.0, 1.0, 0.8], "LSP")
    window = [STATISTICS["percentile_00_5"], STATISTICS["percentile_99_5"]]
    assert found.intensity_scheme == [
        {"kind": "z_score", "over": "nonzero_box"},
        {"kind": "statistics", "window": window, "mean": 60.0, "deviation": 80.0},
    ]


def test_a_configuration_inherits(tmp_path: Path):
    found = read_plan(write_plan(tmp_path), "3d_lowres")
    assert (found.spacing, found.patch_size, found.data_identifier) == ([6.0, 2.0, 1.6], [4, 16, 32], "low")


@pytest.mark.parametrize(
    ("reader", "transpose", "axes"),
    [
        ("SimpleITKIO", [0, 1, 2], "SPL"),
        ("NibabelIO", [1, 0, 2], "PSL"),
        ("NibabelIOWithReorient", [0, 1, 2], "SAR"),
        ("SimpleITKIOWithReorient", [2, 0, 1], "RSA"),
    ],
)
def test_how_arrays_lie(reader: str, transpose: list[int], axes: str, tmp_path: Path):
    content = plan(image_reader_writer=reader, transpose_forward=transpose)
    assert read_plan(write_plan(tmp_path, content)).axes == axes


def test_masks_of_normalisation_and_ct_as_the_first_channel(tmp_path: Path):
    content = plan(schemes=("CTNormalization", "ZScoreNormalization"), masked=(False, True))
    found = read_plan(write_plan(tmp_path, content))
    assert found.modality == "CT"
    assert found.intensity_scheme[1] == {"kind": "z_score", "over": "inside"}


def test_a_plan_of_before_architecture_is_converted_as_nnunet_does(tmp_path: Path):
    content = plan()
    configuration = content["configurations"]["3d_fullres"]
    del configuration["architecture"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "unet_max_num_features": 100,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_kernel_sizes": KERNELS[:3],
        "pool_op_kernel_sizes": STRIDES[:3],
    }
    arguments = read_plan(write_plan(tmp_path, content)).arguments
    assert arguments["features_per_stage"] == [32, 64, 100]
    assert (arguments["n_conv_per_stage"], arguments["strides"]) == ([2, 2, 2], STRIDES[:3])


def test_a_patch_that_does_not_divide_by_the_strides_is_one_line(tmp_path: Path):
    found = read_plan(write_plan(tmp_path, plan(patch=(6, 16, 40))))
    with pytest.raises(UserError, match=r"\[6, 16, 40\] of .* strides \[4, 8, 16\]: give --crop_size, .*\[8,16,48\]"):
        found.patch_size  # noqa: B018 - the property raises


def change(**values) -> dict:
    content = plan()
    content["configurations"]["3d_fullres"] |= values
    return content


@pytest.mark.parametrize(
    ("content", "configuration", "message"),
    [
        (plan(), "2d", "2d is not three-dimensional; give --nnunet_configuration 3d_fullres"),
        (plan(), "3d", "no whole configuration '3d': give --nnunet_configuration one of 2d, 3d_fullres"),
        (plan(), "3d_cascade_fullres", "second stage of a cascade, .* give --nnunet_configuration 3d_lowres"),
        (change(inherits_from="3d_fullres"), "3d_fullres", "no whole configuration"),
        (change(normalization_schemes=["MyOwn"]), "3d_fullres", r"normalises by \['MyOwn'\]: change"),
        (change(normalization_schemes=[]), "3d_fullres", "normalises by nothing: change"),
        (
            change(architecture={"network_class_name": "my.Primus"}),
            "3d_fullres",
            "network my.Primus: pre-training knows",
        ),
        (plan(image_reader_writer="Tiff3DIO"), "3d_fullres", "reads files by Tiff3DIO: pre-training knows SimpleITKIO"),
        (plan(foreground_intensity_properties_per_channel={}), "3d_fullres", "lacks the intensities .*: plan the data"),
        ({"plans_name": "no plan"}, "3d_fullres", "has no configurations, it is no plan: give an nnUNetPlans.json"),
    ],
)
def test_what_cannot_be_pretrained_is_one_line(content: dict, configuration: str, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message) as caught:
        read_plan(write_plan(tmp_path, content), configuration)
    assert "\n" not in str(caught.value)


def test_no_plan_and_no_json_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="needs a plan: give --nnunet_plans"):
        read_plan(None)
    (tmp_path / "plan.json").write_text("{")
    for name in ("plan.json", "missing.json"):
        with pytest.raises(UserError, match=f"{name} is no readable json"):
            read_plan(tmp_path / name)
