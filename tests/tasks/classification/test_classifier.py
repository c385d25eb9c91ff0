# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The classifier: it contains each encoder, pools as it says, and does not mind the features' scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bundle.errors import UserError
from bundle.networks import total_stride
from bundle.tasks.classification import EncoderClassifier
from bundle.transfer import PretrainedSettings, Transfer
from tests.export.models import write_model
from tests.networks.encoder_cases import CASES

TINY = {"name": "SegResEncoder", "init_filters": 4, "blocks_down": [1, 1, 1]}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_encoder_goes_into_it_tensor_by_tensor(case, tmp_path: Path):
    file, _ = write_model(tmp_path, case)
    encoder = PretrainedSettings(file, encoder={}).encoder
    model = EncoderClassifier(encoder, findings=3)
    transfer = Transfer(model, file, encoder=encoder, min_matched=1.0)
    assert transfer.report is not None and transfer.report.prefix == "encoder."
    weights, given = model.encoder.state_dict(), torch.load(file, weights_only=True)
    assert weights.keys() == given.keys() and all(torch.equal(weights[key], given[key]) for key in given)
    assert set(transfer.depths) == {f"encoder.{key}" for key in given}
    size = [2 * step for step in total_stride(encoder)]
    assert model.eval()(torch.randn(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize("pooling", ["mean", "mean+max"])
def test_logits_are_a_linear_head_on_the_normalised_pooled_features(pooling: str):
    model = EncoderClassifier(TINY, findings=2, pooling=pooling, dropout=0.5).eval()
    image = torch.randn(2, 1, 16, 8, 8)
    features = model.encoder(image)
    for sample, logits in zip(features, model(image)):
        values = [channel.sum() / channel.numel() for channel in sample]
        if pooling == "mean+max":
            values += [channel.max() for channel in sample]
        pooled = torch.stack(values)
        normalised = (pooled - pooled.mean()) / (pooled.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(logits, model.head.weight @ normalised + model.head.bias)


def test_the_scale_of_the_features_does_not_matter():
    model = EncoderClassifier(TINY, findings=2).eval()
    image, logits = torch.randn(2, 1, 16, 16, 16), []
    for scale in (10.0, 1e4):  # far from the constant that LayerNorm adds
        hook = model.encoder.register_forward_hook(lambda *call, scale=scale: call[-1] * scale)
        logits.append(model(image))
        hook.remove()
    torch.testing.assert_close(*logits, atol=1e-3, rtol=1e-3)


def test_logits_keep_their_digits_under_autocast():
    model = EncoderClassifier(TINY, findings=2).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.randn(4, 1, 16, 16, 16))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(
    ("option", "value"), [("pooling", "max"), ("dropout", 1.0), ("dropout", -0.1), ("dropout", math.nan)]
)
def test_a_setting_that_does_not_fit_is_named(option: str, value):
    with pytest.raises(UserError, match=f"--{option}"):
        EncoderClassifier(TINY, findings=1, **{option: value})
