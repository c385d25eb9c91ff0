# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Encoder weights find their place in downstream networks, and nothing goes wrong silently."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks import nets
from safetensors.torch import save_file
from torch import nn

from bundle.errors import UserError
from bundle.networks import build_encoder
from bundle.transfer import load_encoder
from bundle.weights import read_checkpoint, read_weights

RESNET = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 16, 32], "conv1_t_stride": 2}
SEGRES = {"init_filters": 4, "blocks_down": (1, 1, 1), "norm": "instance"}


def pretrained(name: str = "SegResEncoder", **arguments) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return build_encoder(name, **(arguments or SEGRES)).network_state_dict()


class Detector(nn.Module):
    """Where torchvision's feature extractors, and so MONAI's RetinaNet, keep the backbone."""

    def __init__(self) -> None:
        super().__init__()
        body = nets.ResNet(**RESNET, n_input_channels=1, feed_forward=False)
        self.feature_extractor = nn.ModuleDict({"body": body, "fpn": nn.Conv3d(32, 8, 1)})


@pytest.mark.parametrize(
    ("weights", "network", "prefix"),
    [
        (pretrained(), nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), norm="instance"), "encoder."),
        (pretrained(), nets.segresnet_ds.SegResEncoder(**SEGRES), ""),
        (pretrained("ResNet", **RESNET), nets.ResNet(**RESNET, n_input_channels=1, num_classes=14), ""),
        (pretrained("ResNet", **RESNET), Detector(), "feature_extractor.body."),
        (
            pretrained("ResNetFeatures", model_name="resnet10"),
            nets.FlexibleUNet(1, 2, "resnet10", spatial_dims=3),
            "encoder.",
        ),
        (
            pretrained(
                "DynUNet", kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(4, 6, 8)
            ),
            nets.DynUNet(3, 1, 5, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 6, 8)),
            "",
        ),
    ],
    ids=["SegResNetDS", "SegResEncoder", "ResNet classifier", "detector", "FlexibleUNet", "DynUNet"],
)
def test_every_tensor_arrives_where_the_network_reads_it(weights, network, prefix):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = load_encoder(network, weights)
    assert report.prefix == prefix
    assert report.share == 1 and not report.unexpected and not report.reshaped
    after = network.state_dict()
    for key, value in weights.items():
        assert torch.equal(after[prefix + key], value), key
    for key in report.missing:
        assert torch.equal(after[key], before[key]), key
    assert len(report.loaded) + len(report.missing) == len([key for key in after if key.startswith(prefix)])


def test_a_loaded_encoder_gives_the_same_features():
    encoder = build_encoder("SegResEncoder", **SEGRES).eval()
    network = nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), norm="instance").eval()
    load_encoder(network, encoder.network_state_dict())
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for a, b in zip(network.encoder(image), encoder(image), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_stem_for_more_channels_gives_the_same_features_of_the_same_image_on_each(channels: int):
    encoder = build_encoder("SegResEncoder", **SEGRES).eval()
    network = nets.segresnet_ds.SegResEncoder(in_channels=channels, **SEGRES).eval()
    report = load_encoder(network, encoder.network_state_dict())
    assert list(report.adapted) == ["conv_init.weight"]
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for a, b in zip(network(image.expand(-1, channels, -1, -1, -1)), encoder(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_too_little_that_fits_is_an_error_that_names_an_example_and_changes_nothing():
    network = nets.segresnet_ds.SegResEncoder(init_filters=8, blocks_down=(1, 1, 1), norm="instance")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=r"fit into SegResEncoder, at least 90%.*for example \S+ \[4"):
        load_encoder(network, pretrained())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_weights_of_a_2d_network_are_called_so():
    flat = {key: value[..., 0] if value.ndim == 5 else value for key, value in pretrained().items()}
    with pytest.raises(
        UserError, match=r"conv_init.weight \[.*these are weights of a 2D network: take those of a 3D one"
    ):
        load_encoder(nets.segresnet_ds.SegResEncoder(**SEGRES), flat)


def without(start: str) -> dict[str, torch.Tensor]:
    """The pre-trained weights but for some."""
    return {key: weight for key, weight in pretrained().items() if not key.startswith(start)}


@pytest.mark.parametrize("network", [nets.SegResNetDS, nets.segresnet_ds.SegResEncoder])
@pytest.mark.parametrize("start", ["layers.2", "conv_init"])
def test_a_part_of_an_encoder_is_named(network: type[nn.Module], start: str, caplog: pytest.LogCaptureFixture):
    for weights in (pretrained(), without(start)):
        caplog.clear()
        load_encoder(network(**SEGRES), weights)
        named = re.search(
            r"holds a part of the encoder: \d+ of its tensors stay as they were, such as (\S+)", caplog.text
        )
        assert (named is not None) == (len(weights) < len(pretrained()))
    assert named is not None and named[1].startswith(start)


def test_a_decoder_that_lies_beside_the_encoder_is_no_part_of_it(caplog: pytest.LogCaptureFixture):
    arguments = {"filters": [4, 8, 8], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
    given = pretrained("DynUNet", **arguments)
    whole = nets.DynUNet(spatial_dims=3, in_channels=1, out_channels=2, **arguments)
    for network, prefix in ((whole, ""), (nn.ModuleDict({"model": whole}), "model.")):
        report = load_encoder(network, given)
        assert report.prefix == prefix and report.missing
    assert "holds a part" not in caplog.text


@pytest.mark.parametrize("network", [nets.SegResNetDS, nets.segresnet_ds.SegResEncoder])
def test_a_first_convolution_of_another_size_is_named(network: type[nn.Module], caplog: pytest.LogCaptureFixture):
    larger = pretrained() | {"conv_init.weight": torch.ones(4, 1, 7, 7, 7)}
    assert list(load_encoder(network(**SEGRES), larger, min_matched=0.5).reshaped) == ["conv_init.weight"]
    assert "1 of its tensors stay as they were, such as conv_init.weight" in caplog.text


def test_foreign_weights_are_refused():
    with pytest.raises(UserError, match="0% of its"):
        load_encoder(nets.UNet(3, 1, 2, (4, 8), (2,)), pretrained())


def test_the_report_is_a_table_of_all_kinds():
    network = nets.SegResNetDS(in_channels=2, init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    table = load_encoder(network, pretrained()).table(most=2)
    assert "| loaded |" in table and "1 -> 2 input channels" in table and "more |" in table


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
@pytest.mark.parametrize("parallel", [False, True])
def test_usual_checkpoints_are_unpacked(nest: str | None, parallel: bool, tmp_path: Path):
    weights = pretrained()
    content = {f"module.{k}": v for k, v in weights.items()} if parallel else weights
    torch.save(content if nest is None else {nest: content, "epoch": 3}, tmp_path / "model.pt")
    found = read_weights(tmp_path / "model.pt")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    "wrapper", ["module.encoder_q.", "teacher.backbone.", "student.backbone.", "feature_extractor.", "layers"]
)
def test_wrappers_of_other_trainings_are_found(wrapper: str, tmp_path: Path):
    weights = pretrained()
    if wrapper == "layers":  # a part alone was compiled
        given = {key.replace(".conv1.", ".conv1._orig_mod."): value for key, value in weights.items()}
    else:
        given = {f"{wrapper}{key}": value for key, value in weights.items()}
    assert given.keys() != weights.keys()
    torch.save({**given, "queue": torch.ones(2)} if "encoder_q" in wrapper else given, tmp_path / "model.pt")
    network = nets.segresnet_ds.SegResEncoder(**SEGRES)
    load_encoder(network, tmp_path / "model.pt")
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("nested", [False, True])
def test_of_student_and_teacher_the_teacher_is_taken(nested: bool, tmp_path: Path):
    teacher = pretrained()
    student = {key: value + 1 for key, value in teacher.items()}
    both = {"student": student, "teacher": teacher}
    flat = {f"{name}.{key}": value for name, one in both.items() for key, value in one.items()}
    torch.save(both if nested else flat, tmp_path / "model.pt")
    network = nets.segresnet_ds.SegResEncoder(**SEGRES)
    load_encoder(network, tmp_path / "model.pt", min_matched=0.5)
    assert all(torch.equal(value, teacher[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("nest", ["encoder", "encoder_state_dict"])
def test_an_encoder_beside_its_decoder_is_unpacked(nest: str, tmp_path: Path):
    torch.save({nest: pretrained(), "decoder": {"a": torch.ones(1)}}, tmp_path / "model.pt")
    assert read_weights(tmp_path / "model.pt").keys() == pretrained().keys()


def test_a_file_is_known_by_its_first_bytes_whatever_its_ending(tmp_path: Path):
    weights = pretrained()
    torch.save(weights, tmp_path / "model.safetensors")
    assert read_weights(tmp_path / "model.safetensors").keys() == weights.keys()
    first = set()
    for length in range(0, 256, 8):  # of the header, whose lowest byte may be that of a pickle
        save_file(weights, tmp_path / "model.bin", metadata={"about": "x" * length})
        first.add((tmp_path / "model.bin").read_bytes()[:1])
        assert read_weights(tmp_path / "model.bin").keys() == weights.keys()
    assert b"\x80" in first


def test_harmless_objects_beside_the_weights_are_read(tmp_path: Path):
    beside = {
        "args": argparse.Namespace(lr=0.1),
        "callbacks": collections.defaultdict(int, best=3),
        "made": dt.datetime(2026, 1, 2, tzinfo=None),  # noqa: DTZ001
        "scores": np.array([0.5, 0.25], dtype=np.float16),
    }
    torch.save({"state_dict": pretrained(), **beside}, tmp_path / "model.pt")
    found, about = read_checkpoint(tmp_path / "model.pt")
    assert found.keys() == pretrained().keys()
    assert about["callbacks"] == {"best": 3} and about["scores"].tolist() == [0.5, 0.25] and about["args"].lr == 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2).to_sparse()}, r"but a \(a tensor of layout torch.sparse_coo\): give"),
        ({"a": torch.ones(2, device="meta")}, r"but a \(a tensor without values\): give"),
        ({0: torch.ones(2)}, r"but 0 \(a tensor under no name\): give"),
    ],
)
def test_tensors_that_are_no_weights_are_one_line(content, message, tmp_path: Path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "model.pt")


def test_a_missing_file_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        read_weights(tmp_path / "model.pt")


def test_a_truncated_file_is_damaged(tmp_path: Path):
    torch.save(pretrained(), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 50):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged"):
            read_weights(tmp_path / "cut.pt")


def test_the_page_of_a_failed_download_is_damaged(tmp_path: Path):
    (tmp_path / "model.pt").write_text("<html>404 not found</html>")
    with pytest.raises(UserError, match="is damaged or no weights file"):
        read_weights(tmp_path / "model.pt")


def test_weights_below_two_usual_names_are_unpacked(tmp_path: Path):
    torch.save({"model": {"state_dict": pretrained(), "epoch": 1}, "state_dict": None}, tmp_path / "model.pt")
    assert read_weights(tmp_path / "model.pt").keys() == pretrained().keys()


class Code:
    """What an unsafe checkpoint could hold."""


def test_code_in_a_file_is_never_run(tmp_path: Path):
    torch.save({"state_dict": Code()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="more than tensors"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"a": torch.ones(1), "b": 2}])
def test_a_file_without_weights_says_so(content, tmp_path: Path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match="no state dict"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "model.", "encoder.", "backbone.", "module.model.encoder.", "model._orig_mod.backbone."]
)
def test_an_encoder_is_found_below_the_names_of_others_modules(tmp_path: Path, prefix: str):
    given = {f"{prefix}{name}": value for name, value in pretrained().items()}
    others = {} if prefix == "_orig_mod." else {"decoder.0.weight": torch.ones(3), "criterion.bias": torch.ones(1)}
    torch.save({"state_dict": given | others}, tmp_path / "theirs.pt")
    network = nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    report = load_encoder(network, tmp_path / "theirs.pt")
    assert report.share == 1.0
    loaded = network.encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in pretrained().items())


def test_a_whole_network_below_a_wrapper_keeps_its_encoder_and_the_rest():
    source = nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    network = nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    load_encoder(network, {f"model.{name}": value for name, value in source.state_dict().items()})
    assert all(torch.equal(network.state_dict()[name], value) for name, value in source.state_dict().items())


def test_weights_that_have_diverged_are_refused_and_the_network_is_untouched():
    network = nets.segresnet_ds.SegResEncoder(**SEGRES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = pretrained()
    given[next(iter(given))].view(-1)[0] = torch.nan
    with pytest.raises(UserError, match="the weights holds NaN or infinite values"):
        load_encoder(network, given)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_another_width_is_compared_with_the_tensor_that_is_meant():
    network = nets.SegResNetDS(init_filters=8, blocks_down=(1, 1, 1), norm="instance")
    with pytest.raises(UserError, match=r"conv_init\.weight \[4, 1, 3, 3, 3\] -> \[8, 1, 3, 3, 3\]"):
        load_encoder(network, pretrained())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_whole_numbers_are_no_weights(dtype: torch.dtype):
    network = nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        UserError, match=f"holds {name} values in encoder.conv_init.weight, where the network has float32"
    ):
        load_encoder(network, {key: (100 * value).to(dtype) for key, value in pretrained().items()})
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fractions_of_another_precision_are(dtype: torch.dtype):
    network = nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    given = {key: value.to(dtype) for key, value in pretrained().items()}
    load_encoder(network, given)
    assert torch.equal(network.state_dict()["encoder.conv_init.weight"], given["conv_init.weight"].float())
