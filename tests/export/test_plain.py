# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The plain encoder gives the features of MONAI's own network, for every kind of encoder, from the two files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bundle.errors import UserError
from bundle.export import plain_model, plain_network
from bundle.export.nnunet import NNUNET_ENCODERS
from tests.export.models import write_model
from tests.networks.encoder_cases import CASES, Case, dense_features

TINY = CASES["SegResEncoder"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_features_are_those_inside_monais_own_forward(case: Case, tmp_path: Path):
    path, network = write_model(tmp_path, case)
    plain = plain_model(path).network
    image = torch.randn(1, 1, *(2 * step for step in plain.strides[-1]))
    with torch.no_grad():
        given, expected = plain(image), dense_features(network, case.outputs, image)
    for mine, its in zip(given, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
        assert its.std() > 0  # zeros would agree whatever the code does
    assert [level.shape[1] for level in given] == plain.channels
    for level, stride in zip(given, plain.strides, strict=True):
        assert [n * step for n, step in zip(level.shape[2:], stride)] == list(image.shape[2:])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_monais_or_nnunets_modules_in_eval_mode_and_the_encoder_half_only(case: Case, tmp_path: Path):
    path, _ = write_model(tmp_path, case)
    model = plain_model(path)
    for module in list(model.network.modules())[1:]:
        assert type(module).__module__.partition(".")[0] in ("monai", "torch", "dynamic_network_architectures")
        assert not module.training
    storages = {tensor.untyped_storage().data_ptr() for tensor in model.weights.values() if tensor.numel()}
    state = model.network.state_dict()
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values() if tensor.numel()}) == len(storages)
    if case.name not in NNUNET_ENCODERS:  # whose blocks name each module twice
        assert len(state) == len(storages)  # a module that has two names is there once


def test_a_file_that_is_missing_is_named(tmp_path: Path):
    path, _ = write_model(tmp_path, TINY)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"model\.json does not exist"):
        plain_model(path)
    with pytest.raises(UserError, match=r"other\.pt does not exist"):
        plain_model(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is damaged"), ("[1]", "holds no settings"), ("{}", "name no encoder"), ('{"encoder": "x"}', "no encoder")],
)
def test_settings_that_describe_no_encoder_are_refused(text: str, message: str, tmp_path: Path):
    path, _ = write_model(tmp_path, TINY)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=message):
        plain_model(path)


def test_settings_of_another_run_are_refused(tmp_path: Path):
    path, _ = write_model(tmp_path, TINY)
    settings = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**settings, "sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"model\.pt is not the file that model\.json describes"):
        plain_model(path)


@pytest.mark.parametrize("change", ["missing", "left over", "other shape"])
def test_weights_must_fit_to_the_last_tensor(change: str, tmp_path: Path):
    path, _ = write_model(tmp_path, TINY)
    model = plain_model(path)
    weights = dict(model.weights)
    if change == "missing":
        del weights["conv_init.weight"]
    elif change == "left over":
        weights["head.weight"] = torch.ones(1)
    else:
        weights["conv_init.weight"] = weights["conv_init.weight"][:2]
    with pytest.raises(UserError, match=r"1 tensors do not fit SegResEncoder .*(conv_init|head)\.weight"):
        plain_network(model.settings, weights)


@pytest.mark.parametrize(
    ("task", "remedy"),
    [("segmentation", r"scripts/export_bundle\.py"), ("detection", "export the run that it was fine-tuned from")],
)
def test_a_fine_tuned_model_is_told_what_exports_it(task: str, remedy: str, tmp_path: Path):
    path, _ = write_model(tmp_path, TINY, task=task)
    with pytest.raises(UserError, match=rf"fine-tuned for {task}, no encoder: {remedy}"):
        plain_model(path)
