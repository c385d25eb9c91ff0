# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from monai.networks import nets
from torch import nn

from bundle.errors import UserError
from bundle.networks import reestimate_batch_norm
from bundle.tasks.classification import EncoderClassifier
from bundle.transfer import Transfer
from bundle.transfer.finetuned import heads_loaded, load_rest
from bundle.weights import ModelFiles
from tests.export.models import write_model
from tests.networks.encoder_cases import Case

SEGRES = {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": "batch"}
DYNUNET = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 4, 8]}


def segresnet(**more) -> nets.SegResNetDS:
    torch.manual_seed(0)
    return nets.SegResNetDS(**{"out_channels": 2, **SEGRES, **more})


def transfer(tmp_path: Path, network: nn.Module | None = None, **more) -> Transfer:
    path, _ = write_model(tmp_path, Case("SegResEncoder", SEGRES, ()))
    return Transfer(network or segresnet(), path, encoder={"name": "SegResEncoder", **SEGRES}, **more)


def test_the_network_is_loaded_and_knows_its_encoders_depths(tmp_path: Path):
    done = transfer(tmp_path)
    given = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(done.network.encoder.state_dict()[key], value) for key, value in given.items())
    assert done.levels == 3 and done.total_stride == (4, 4, 4)
    assert done.depths.keys() == {f"encoder.{key}" for key in given}
    assert done.depths["encoder.conv_init.weight"] == done.depths["encoder.layers.0.blocks.0.conv1.weight"] == 0
    # the convolution between two levels counts as the deeper one's
    assert done.depths["encoder.layers.0.downsample.weight"] == done.depths["encoder.layers.1.blocks.0.norm1.bias"] == 1
    assert done.depths["encoder.layers.2.blocks.0.conv2.weight"] == 2


def test_from_scratch_the_network_stays_as_it_is_and_so_does_the_random_generator():
    network = segresnet()
    before, state = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    done = Transfer(network, None, encoder={"name": "SegResEncoder", **SEGRES})
    assert done.report is None and done.depths["encoder.conv_init.weight"] == 0
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_both_names_of_a_shared_layer_have_its_depth():
    network = nets.DynUNet(spatial_dims=3, in_channels=1, out_channels=3, **DYNUNET)
    done = Transfer(network, None, encoder={"name": "DynUNet", **DYNUNET})
    assert done.depths["downsamples.0.conv1.conv.weight"] == 1
    assert done.depths["skip_layers.next_layer.downsample.conv1.conv.weight"] == 1
    assert not any("upsample." in key or "output_block" in key for key in done.depths)


def test_frozen_takes_gradients_from_the_encoder_only_and_keeps_its_running_statistics(tmp_path: Path):
    done = transfer(tmp_path, schedule="frozen")
    frozen = {name for name, parameter in done.network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in done.network.named_parameters() if name.startswith("encoder.")}
    before = {name: buffer.clone() for name, buffer in done.network.named_buffers()}
    done.network.train()
    done.network(5 + torch.randn(2, 1, 8, 8, 8))
    for name, buffer in done.network.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith("encoder."), name


def test_a_frozen_encoder_takes_part_in_reestimating_statistics_once(tmp_path: Path):
    done = transfer(tmp_path, schedule="frozen")
    images = [5 + torch.randn(2, 1, 8, 8, 8) for _ in range(3)]
    reestimate_batch_norm(done.network, images)
    norm = done.network.encoder.layers[0]["blocks"][0].norm1
    stem = torch.stack([done.network.encoder.conv_init(image).mean((0, 2, 3, 4)) for image in images])
    assert torch.allclose(norm.running_mean, stem.mean(0), atol=1e-5)
    kept = norm.running_mean.clone()
    done.network.train()
    done.network(torch.randn(2, 1, 8, 8, 8))
    assert torch.equal(norm.running_mean, kept)


def test_a_part_of_the_encoder_alone_is_one_line(tmp_path: Path):
    network, file = nets.SegResNetDS(init_filters=4, blocks_down=(1, 1, 1), out_channels=2), tmp_path / "model.pt"
    torch.save(dict(list(network.encoder.state_dict().items())[:10]), file)
    encoder = {"name": "SegResEncoder", "init_filters": 4, "blocks_down": [1, 1, 1]}
    with pytest.raises(UserError, match=r"has 10 of the encoder's \d+ tensors, it lacks encoder.layers.*: give a file"):
        Transfer(network, file, encoder=encoder)


def test_another_activation_or_stride_than_in_pretraining_is_told(tmp_path: Path, caplog):
    with caplog.at_level(logging.WARNING):
        transfer(tmp_path)
        assert not caplog.records
        transfer(tmp_path, segresnet(act="leakyrelu"))
    assert "act1 is LeakyReLU" in caplog.text and "instead of ReLU" in caplog.text


def test_more_input_channels_are_no_difference(tmp_path: Path, caplog):
    with caplog.at_level(logging.WARNING):
        done = transfer(tmp_path, segresnet(in_channels=4))
    assert not caplog.records and done.report is not None and list(done.report.adapted) == ["conv_init.weight"]


def test_an_unknown_schedule_is_one_line():
    with pytest.raises(UserError, match="--schedule 'thaw' is not known: choose one of full, sawtooth, frozen"):
        Transfer(segresnet(), None, encoder={"name": "SegResEncoder", **SEGRES}, schedule="thaw")


def test_a_network_without_the_encoder_is_one_line():
    with pytest.raises(UserError, match="BasicUNet does not contain the encoder SegResEncoder"):
        Transfer(nets.BasicUNet(), None, encoder={"name": "SegResEncoder", **SEGRES})


def finetuned(folder: Path, network: nn.Module, **about: object) -> Path:
    """A network as fine-tuning leaves it."""
    torch.manual_seed(5)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    files = ModelFiles(folder / "model.pt")
    files.write(network.state_dict(), {"encoder": {"name": "SegResEncoder", **SEGRES}, **about})
    return files.weights


def same(one: nn.Module, other: nn.Module) -> dict[str, bool]:
    there = other.state_dict()
    return {
        key: torch.equal(value, there[key])
        for key, value in one.state_dict().items()
        if key in there
        and value.shape == there[key].shape
        and not {"running_mean", "running_var", "num_batches_tracked"} & {key.rpartition(".")[2]}
    }


@pytest.mark.parametrize("decoder", [None, True, False])
@pytest.mark.parametrize("classes", [["liver"], ["spleen"], ["liver", "spleen"]], ids=str)
def test_a_fine_tuned_network_gives_its_encoder_its_decoder_and_heads_of_the_same_classes(
    tmp_path: Path, classes: list[str], decoder: bool | None, caplog: pytest.LogCaptureFixture
):
    source = segresnet()
    path = finetuned(tmp_path, source, classes={"liver": 1})
    with caplog.at_level("INFO"):
        done = Transfer(
            segresnet(out_channels=1 + len(classes)), path, encoder={"name": "SegResEncoder", **SEGRES},
            classes=classes, pretrained_decoder=decoder,
        )  # fmt: skip
    taken = same(done.network, source)
    assert done.report is not None and done.report.prefix == "encoder." and done.report.share == 1
    assert all(value for key, value in taken.items() if key.startswith("encoder."))
    rest = {key: value for key, value in taken.items() if not key.startswith("encoder.")}
    body = [value for key, value in rest.items() if ".head." not in key]
    assert all(body) if decoder is not False else not any(body)
    heads = [value for key, value in rest.items() if ".head." in key]
    assert done.heads_loaded == (classes == ["liver"] and decoder is not False)
    assert all(heads) if done.heads_loaded else not any(heads)
    assert done.depths["encoder.conv_init.weight"] == 0 and done.peak_lr(None) == (1e-3 if decoder is False else 3e-4)
    said = {("spleen",): "its heads are left: they are of liver, and here of spleen", ("liver",): "the same classes"}
    assert decoder is False or said.get(tuple(classes), "here of liver, spleen") in caplog.text


def test_heads_under_a_second_name_are_left_as_well(tmp_path: Path):
    def dynunet() -> nn.Module:
        return nets.DynUNet(spatial_dims=3, in_channels=1, out_channels=2, deep_supervision=True, deep_supr_num=1,
                            **{**DYNUNET, "kernel_size": [3] * 4, "strides": [1, 2, 2, 2],
                               "upsample_kernel_size": [2] * 3, "filters": [4, 4, 8, 8]})  # fmt: skip

    source, network = dynunet(), dynunet()
    encoder = {"name": "DynUNet", "kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3,
               "filters": [4, 4, 8, 8]}  # fmt: skip
    path = finetuned(tmp_path, source, classes={"liver": 1}, encoder=encoder)
    Transfer(network, path, encoder=encoder, classes=["spleen"])
    taken = same(network, source)
    heads = {key for key in taken if "output_block" in key or "super" in key}
    assert len(heads) > 4 and not any(taken[key] for key in heads)
    assert all(value for key, value in taken.items() if key not in heads)


def test_another_network_takes_the_encoder_of_a_fine_tuned_one_alone(tmp_path: Path):
    path = finetuned(tmp_path, segresnet(), classes={"liver": 1})
    network = EncoderClassifier({"name": "SegResEncoder", **SEGRES}, findings=1)
    done = Transfer(network, path, encoder={"name": "SegResEncoder", **SEGRES}, classes=["liver"])
    assert done.report is not None and done.report.share == 1 and done.decoder_report is None and not done.heads_loaded
    assert done.depths["encoder.conv_init.weight"] == 0


def test_the_first_layers_of_a_fine_tuned_encoder_are_refused_as_those_of_a_pretrained_one_are(tmp_path: Path):
    source = segresnet()
    del source.encoder.layers[2:]  # a detector has the first ones only
    path = finetuned(tmp_path, source, classes={"liver": 1})
    with pytest.raises(UserError, match=r"of the encoder's 39 tensors, it lacks encoder\.layers\.2"):
        Transfer(segresnet(), path, encoder={"name": "SegResEncoder", **SEGRES}, classes=["liver"])


@pytest.mark.parametrize("same_meaning", [True, False])
def test_a_detectors_last_layers_are_its_heads(same_meaning: bool):
    def head() -> nn.Module:
        return nn.ModuleDict(
            {"classification_head": nn.ModuleDict({"conv": nn.Linear(2, 2), "cls_logits": nn.Linear(2, 3)})}
        )

    source, network = head(), head()
    report = load_rest(network, source.state_dict(), same_meaning=same_meaning)
    taken = same(network, source)
    assert all(value for key, value in taken.items() if "cls_logits" not in key)
    assert all(value == same_meaning for key, value in taken.items() if "cls_logits" in key)
    assert heads_loaded(network, report) == same_meaning
