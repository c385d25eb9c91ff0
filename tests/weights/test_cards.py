# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Published weights, as files of their layout and real size made with the public classes: the files are not here."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from monai.networks.nets.segresnet_ds import SegResEncoder
from safetensors.torch import save_file
from torch import nn

from bundle.errors import UserError
from bundle.networks import build_encoder
from bundle.transfer import PretrainedSettings, load_encoder, origin
from bundle.weights import CARDS, ModelFiles, turn_kernels

ROOT = Path(__file__).parents[2]
AFFINE = ("instance", {"affine": True})


def ct_fm() -> nn.Module:
    return SegResEncoder(init_filters=32, blocks_down=(1, 2, 2, 4, 4))


def vista3d() -> nn.Module:
    return SegResEncoder(init_filters=48, blocks_down=(1, 2, 2, 4, 4), norm=AFFINE)


def suprem() -> nn.Module:
    return nets.SegResNet(init_filters=16, blocks_down=(1, 2, 2, 4), out_channels=32, dropout_prob=0.0)


def medicalnet(depth: int) -> Callable[[], nn.Module]:
    return lambda: nets.ResNetFeatures(f"resnet{depth}", pretrained=False)


def resenc() -> nn.Module:
    """ResEnc L, as nnssl builds it from its name."""
    return build_encoder("ResidualEncoderUNet").network


def nnssl(dataset: str, spacing: list[float] | None, paper: str = "") -> dict[str, Any]:
    """A checkpoint as nnssl publishes it."""
    configuration = {"spacing": spacing, "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]}
    return {
        "network_weights": tensors(resenc),
        "citations": [{"type": "Pre-Training Method", "name": "a paper", "apa_citations": [paper]}],
        "nnssl_adaptation_plan": {
            "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None},
            "pretrain_plan": {"dataset_name": dataset, "configurations": {"onemmiso": configuration}},
            "recommended_downstream_patchsize": [160, 160, 160],
            "key_to_encoder": "encoder.stages",
        },
    }


def tensors(make: Callable[[], nn.Module], prefix: str = "") -> dict[str, torch.Tensor]:
    """Of a network's real shapes, each one number, which takes no time and no room on the disk."""
    with torch.device("meta"):
        network = make()
    return {f"{prefix}{key}": torch.ones(()).expand(value.shape) for key, value in network.state_dict().items()}


LAYOUTS = {
    "CT-FM's feature extractor": ("ct_fm", lambda: tensors(ct_fm)),
    "CT-FM's SegResNetDS": (
        "ct_fm",
        lambda: tensors(lambda: nets.SegResNetDS(init_filters=32, blocks_down=(1, 2, 2, 4, 4), out_channels=2)),
    ),
    "CT-FM's Lightning checkpoint": ("ct_fm", lambda: {"epoch": 3, "state_dict": tensors(ct_fm, "backbone.")}),
    "VISTA3D's bundle": (
        "vista3d",
        lambda: {**tensors(vista3d, "image_encoder.encoder."), "class_head.embedding": torch.zeros(4, 48)},
    ),
    "SuPreM's SegResNet": (
        "suprem_segresnet",
        lambda: {"net": tensors(suprem, "module."), "optimizer": {"lr": 0.1}, "epoch": 7},
    ),
    "MedicalNet 10": ("medicalnet", lambda: {"state_dict": tensors(medicalnet(10), "module.")}),
    "MedicalNet 18": ("medicalnet", lambda: {"state_dict": tensors(medicalnet(18), "module.")}),
    "OpenMind's MAE": ("openmind", lambda: nnssl("Dataset745_OpenNeuro_v2", [1, 1, 1])),
    "nnFoundationCNN": ("nnfoundationcnn", lambda: nnssl("Dataset900_All", None, "nnFoundation, arXiv:2609.26924")),
    "another ResEnc-L of nnssl's": ("nnssl", lambda: nnssl("Dataset800_Liver", [1.5, 1.5, 1.5])),
    "MedicalNet 50": ("medicalnet", lambda: {"state_dict": tensors(medicalnet(50), "module.")}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_known_weights_are_recognised_and_all_of_their_encoder_is_loaded(layout, tmp_path, caplog):
    name, make = LAYOUTS[layout]
    file = tmp_path / "downloaded.pth"
    torch.save(make(), file)
    settings = PretrainedSettings(file, encoder={})
    with torch.device("meta"):
        encoder = build_encoder(**settings.encoder)
    with caplog.at_level(logging.WARNING):
        report = load_encoder(encoder.network, file)
    assert set(encoder.network_state_dict()) <= set(report.names) and report.share == 1
    assert settings.intensity_scheme == CARDS[name].intensity_scheme
    spacing = {"ct_fm": [1, 1, 3], "medicalnet": None, "openmind": [1, 1, 1], "nnfoundationcnn": None}
    assert settings.spacing == spacing.get(name, [1.5, 1.5, 1.5])  # R, A, S
    assert origin(file)["origin"][0]["trained_on"].startswith(CARDS[name].trained_on)
    assert CARDS[name].title in caplog.text and CARDS[name].licence in caplog.text


def test_safetensors_are_read_as_well(tmp_path):
    save_file(
        {key: value.contiguous() for key, value in tensors(medicalnet(10)).items()}, tmp_path / "model.safetensors"
    )
    described = ModelFiles(tmp_path / "model.safetensors").describe()
    assert described is not None and described.content["card"] == "medicalnet"
    assert described.spacing is None and described.encoder["model_name"] == "resnet10"


@pytest.mark.parametrize(
    "arguments",
    [
        {"init_filters": 32, "blocks_down": (1, 2, 2, 4)},
        {"init_filters": 32, "blocks_down": (1, 2, 2, 4, 4), "norm": AFFINE},
        {"init_filters": 32, "blocks_down": (1, 2, 2, 4, 4), "in_channels": 2},
        {"init_filters": 16, "blocks_down": (1, 2, 2, 4, 4)},
    ],
)
def test_other_sizes_are_nobodys(arguments, tmp_path):
    torch.save(tensors(lambda: SegResEncoder(**arguments)), tmp_path / "model.pt")
    assert ModelFiles(tmp_path / "model.pt").describe() is None


def test_a_json_beside_the_file_says_that_it_is_something_else(tmp_path):
    weights = {**tensors(ct_fm), "conv_init.weight": torch.rand(32, 1, 3, 3, 3)}
    torch.save(weights, tmp_path / "model.pt")
    about = {"encoder": {"name": "SegResEncoder", "init_filters": 32, "blocks_down": [1, 2, 2, 4, 4], "norm": "batch"}}
    (tmp_path / "model.json").write_text(json.dumps(about))
    read = ModelFiles(tmp_path / "model.pt").read_encoder()
    assert torch.equal(read["conv_init.weight"], weights["conv_init.weight"])  # not turned
    assert PretrainedSettings(tmp_path / "model.pt", encoder={}).intensity_scheme is None


def test_a_damaged_file_is_one_line(tmp_path):
    file = tmp_path / "model.pt"
    torch.save(SegResEncoder(init_filters=8).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match="is damaged or no weights file"):
        PretrainedSettings(file, encoder={})


def test_a_window_on_the_command_line_replaces_the_cards_intensities(tmp_path, caplog):
    torch.save(tensors(ct_fm), tmp_path / "model.pt")
    settings = PretrainedSettings(tmp_path / "model.pt", encoder={}, ct_window=[-200, 300])
    assert settings.intensity_scheme is None and settings.ct_window == [-200, 300]
    assert "replaces it" in caplog.text


# ---- axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["SPL", "RAS", "LPS", "SAR", "AIL", "PRI"])
def test_turned_kernels_give_the_turned_features(axes):
    """An odd number of voxels on each axis at each level: a stride of 2 then meets the same voxels from both ends."""
    torch.manual_seed(0)
    network = SegResEncoder(init_filters=4, blocks_down=(1, 1, 1)).double().eval()
    image = torch.randn(1, 1, 17, 13, 21, dtype=torch.float64)  # axes to R, A and S
    with torch.no_grad():
        seen = [to_axes(features, "RAS", axes) for features in network(image)]
        turned = SegResEncoder(init_filters=4, blocks_down=(1, 1, 1)).double().eval()
        turned.load_state_dict(turn_kernels(network.state_dict(), "RAS", to=axes))
        found = turned(to_axes(image, "RAS", axes))
    for a, b in zip(seen, found, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def to_axes(volume: torch.Tensor, now: str, then: str) -> torch.Tensor:
    """By MONAI's own transform."""
    from monai.data import MetaTensor  # noqa: PLC0415
    from monai.transforms import Orientation  # noqa: PLC0415

    codes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[3, 3] = 1
    for axis, code in enumerate(now):
        world, sign = codes[code]
        affine[world, axis] = sign
    turned = Orientation(axcodes=then, labels=(("L", "R"), ("P", "A"), ("I", "S")))(
        MetaTensor(volume[0], affine=affine)
    )
    return turned.as_tensor()[None]


def test_turning_there_and_back_changes_nothing():
    weights = {"conv.weight": torch.randn(2, 3, 1, 2, 3), "norm.weight": torch.randn(5), "proj": torch.randn(4, 4)}
    back = turn_kernels(turn_kernels(weights, "SPL"), "RAS", to="SPL")
    assert all(torch.equal(back[key], value) for key, value in weights.items())
    assert turn_kernels(weights, "SPL")["conv.weight"].shape == (2, 3, 3, 2, 1)


@pytest.mark.parametrize("axes", ["RRS", "RAX", "RA", "RLS"])
def test_axes_that_are_none_are_refused(axes):
    with pytest.raises(UserError, match="give one letter of R/L, A/P and S/I for each axis"):
        turn_kernels({}, axes)


def test_the_page_names_every_source_and_its_licence():
    page = (ROOT / "docs/how-to/start_from_published_weights.md").read_text()
    for card in CARDS.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| {card.title}"))
        assert card.licence in row and card.axes in row
        for value in (card.intensity_scheme or {}).get("window", ()):
            assert f"{value:.1f}".removesuffix(".0") in row
