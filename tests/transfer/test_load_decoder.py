# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A pre-trained decoder goes where the network has it, with the encoder that it came with, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch
from monai.networks import nets

from bundle.errors import UserError
from bundle.networks import SegResDecoder, build_encoder
from bundle.transfer import FineTuneSchedule, Transfer, layer_wise_groups
from tests.export.models import write_model
from tests.networks.encoder_cases import Case

SEGRES = {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": "instance"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    decoder = SegResDecoder(encoder=build_encoder("SegResEncoder", **SEGRES)).rescaled_state_dict([1.0] * 3)
    torch.save(decoder, tmp_path / "model_decoder.pt")
    digest = hashlib.sha256((tmp_path / "model_decoder.pt").read_bytes()).hexdigest()
    path, _ = write_model(tmp_path, Case("SegResEncoder", SEGRES, ()), decoder_sha256=digest)
    return path


def segresnet(**more) -> nets.SegResNetDS:
    torch.manual_seed(0)
    return nets.SegResNetDS(**{**SEGRES, "out_channels": 4, "dsdepth": 3, **more})


def transfer(model: Path, network=None, **more) -> Transfer:
    encoder = {"name": "SegResEncoder", **SEGRES}
    return Transfer(network or segresnet(), model, encoder=encoder, **{"pretrained_decoder": True, **more})


def test_all_but_the_heads_is_pretrained(model: Path):
    done, untrained = transfer(model), segresnet().state_dict()
    file = torch.load(model.with_name("model_decoder.pt"), weights_only=True)
    given = {key: value for key, value in file.items() if key.startswith("up_layers.") and "head" not in key}
    assert len(file) == len(given) + 2 + 3, "beside a head and three mask tokens"
    own = done.network.state_dict()
    assert given and all(torch.equal(own[key], value) for key, value in given.items())
    heads = [key for key in own if "head" in key]
    assert heads and all(torch.equal(own[key], untrained[key]) for key in heads)
    assert done.decoder_report is not None and done.decoder_report.missing == heads
    # it learns at the decoder's rate, first in a sawtooth, and with a frozen encoder
    assert not any(key.startswith("up_layers") for key in done.depths)
    assert all(p.requires_grad for p in transfer(model, schedule="frozen").network.up_layers.parameters())


def test_a_whole_pretrained_network_learns_more_slowly_unless_told(model: Path):
    whole, half, scratch = transfer(model), transfer(model, pretrained_decoder=False), transfer(None)
    assert [t.peak_lr(None, 49) for t in (whole, half, scratch)] == [3e-4, 1e-3, 1e-3]
    assert [t.peak_lr(None, 50) for t in (whole, half, scratch)] == [1e-3, 1e-3, 1e-3]
    assert [t.peak_lr(None) for t in (whole, half, scratch)] == [3e-4, 1e-3, 1e-3]
    assert [t.peak_lr(0.0, 10) for t in (whole, half, scratch)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["full", "sawtooth", "frozen"])
def test_in_a_sawtooth_it_waits_for_the_heads_as_the_encoder_does(model: Path, kind: str):
    done = transfer(model, schedule=kind)
    optimizer = torch.optim.AdamW(layer_wise_groups(done, lr=1e-3), lr=1e-3)
    FineTuneSchedule(optimizer, kind=kind, t_total=100, warmup_steps=5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    first = {name: rates[id(p)] for name, p in done.network.named_parameters() if id(p) in rates}
    decoder = {rate for name, rate in first.items() if name.startswith("up_layers") and "head" not in name}
    assert decoder == ({0.0} if kind == "sawtooth" else {1e-3 / 5})
    assert {rate for name, rate in first.items() if "head" in name} == {1e-3 / 5}


def test_it_can_be_left_out(model: Path):
    done, untrained = transfer(model, pretrained_decoder=False), segresnet().state_dict()
    assert done.decoder_report is None
    assert all(torch.equal(v, untrained[k]) for k, v in done.network.state_dict().items() if "up_layers" in k)


@pytest.mark.parametrize(
    "network", [nets.segresnet_ds.SegResEncoder(**SEGRES), segresnet(upsample_mode="nontrainable", blocks_up=(1, 0))]
)
def test_a_network_with_another_decoder_starts_with_its_own(model: Path, network, caplog):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level(logging.INFO):
        done = transfer(model, network, min_matched=0.9)
    assert "has another decoder than" in caplog.text and done.decoder_report is None
    assert all(torch.equal(v, before[k]) for k, v in done.network.state_dict().items() if "up_layers" in k)


def test_a_network_with_more_blocks_gets_those_there_are(model: Path):
    done = transfer(model, segresnet(blocks_up=(2, 1)))
    assert done.decoder_report is not None and done.decoder_report.share == 1
    assert "up_layers.0.blocks.1.conv1.weight" in done.decoder_report.missing


def test_a_lost_decoder_is_told_and_one_that_never_was_is_not(model: Path, caplog):
    model.with_name("model_decoder.pt").unlink()
    assert transfer(model).decoder_report is None
    assert "model_decoder.pt is missing, so the decoder starts untrained: copy it beside" in caplog.text
    caplog.clear()
    about = json.loads(model.with_suffix(".json").read_text())
    model.with_suffix(".json").write_text(json.dumps({k: v for k, v in about.items() if k != "decoder_sha256"}))
    assert transfer(model).decoder_report is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_another_encoders_decoder_is_refused(model: Path):
    decoder = model.with_name("model_decoder.pt")
    torch.save({k: v + 1 for k, v in torch.load(decoder, weights_only=True).items()}, decoder)
    with pytest.raises(
        UserError, match=r"model_decoder\.pt is not the file that model\.json describes.*copy both from one run"
    ):
        transfer(model)


def test_a_truncated_decoder_is_damaged(model: Path):
    decoder = model.with_name("model_decoder.pt")
    decoder.write_bytes(decoder.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        transfer(model)
