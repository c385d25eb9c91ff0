# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging

import pytest
import torch
from ignite.engine import Events
from torch.optim import SGD

from bundle.networks import Level
from bundle.runs.folder import RunFolder
from bundle.training.export import ExportEncoder

from .toy import ToyNetwork, toy_loader, toy_trainer


def train(path, *, replace_model=False, fail=False, seed=0):
    torch.manual_seed(seed)
    network = ToyNetwork()
    export = ExportEncoder(
        run_folder=RunFolder(path / f"run{seed}"), network=network, models_dir=path / "models",
        settings={"crop_size": [8, 8, 8], "where": path}, replace_model=replace_model,
    )  # fmt: skip
    trainer = toy_trainer(network, SGD(network.parameters(), lr=0.1), toy_loader(), 2, [export])
    if fail:
        trainer.add_event_handler(Events.EPOCH_STARTED(once=2), lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    trainer.run()
    return network


def assert_is(path, network):
    weights = torch.load(path, weights_only=True)
    torch.nn.Module.load_state_dict(ToyNetwork().encoder, weights, strict=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.encoder.state_dict().items())
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    return about


def test_the_encoder_is_published_as_a_flat_state_dict_with_its_settings(tmp_path):
    network = train(tmp_path)
    assert_is(tmp_path / "run0" / "model.pt", network)
    about = assert_is(tmp_path / "models" / "model.pt", network)
    assert about["crop_size"] == [8, 8, 8]
    assert (about["epochs"], about["iterations"]) == (2, 8)
    assert about["parameters"] == sum(tensor.numel() for tensor in network.encoder.state_dict().values())


def test_the_settings_name_the_projects_version_and_the_levels(tmp_path):
    network = ToyNetwork()
    export = ExportEncoder(
        run_folder=RunFolder(tmp_path / "run"), network=network, models_dir=tmp_path / "models",
        settings={"levels": [Level(8, (1, 1, 1)), Level(16, (2, 2, 1))]},
    )  # fmt: skip
    toy_trainer(network, SGD(network.parameters(), lr=0.1), toy_loader(), 1, [export]).run()
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    assert about["levels"] == [{"channels": 8, "stride": [1, 1, 1]}, {"channels": 16, "stride": [2, 2, 1]}]
    assert about["version"] == importlib.metadata.version("ct_mr_sparse_mim_pretraining")


def test_a_published_model_stays_and_the_log_says_how_to_replace_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bundle")
    first = train(tmp_path)
    second = train(tmp_path, seed=1)
    assert_is(tmp_path / "models" / "model.pt", first)
    assert_is(tmp_path / "run1" / "model.pt", second)
    assert "--replace_model" in caplog.text


def test_replacing_keeps_every_earlier_model(tmp_path):
    networks = [train(tmp_path, replace_model=True, seed=seed) for seed in range(3)]
    for name, network in zip(["model_previous.pt", "model_previous_2.pt", "model.pt"], networks, strict=True):
        assert_is(tmp_path / "models" / name, network)


def test_a_run_that_stops_early_has_a_model_but_publishes_none(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        train(tmp_path, fail=True)
    assert json.loads((tmp_path / "run0" / "model.json").read_text())["epochs"] == 1
    assert not (tmp_path / "models").exists()


def test_with_a_loader_the_weights_are_fitted_to_whole_crops_and_training_goes_on_unchanged(tmp_path):
    given = []

    class Network(ToyNetwork):
        def products(self, images=()):
            given.append([image.shape[0] for image in images])
            return super().products()

    def last_loss(loader):
        torch.manual_seed(0)
        network = Network()
        export = ExportEncoder(
            run_folder=RunFolder(tmp_path / f"run{loader is None}"), network=network, models_dir=tmp_path / "models",
            settings={}, loader=loader, batches=2,
        )  # fmt: skip
        trainer = toy_trainer(network, SGD(network.parameters(), lr=0.1), toy_loader(), 2, [export])
        trainer.run()
        return torch.rand(1), trainer.state.output["loss"]

    assert last_loss(toy_loader(draws=6, batch_size=2)) == last_loss(None)
    assert given == [[2, 2], [2, 2], [], []]


class WithDecoder(ToyNetwork):
    def products(self, images=()):
        return super().products(images)[0], self.head.state_dict()


def publish(path, network):
    export = ExportEncoder(
        run_folder=RunFolder(path / f"run_{type(network).__name__}"), network=network, models_dir=path / "models",
        settings={}, replace_model=True,
    )  # fmt: skip
    toy_trainer(network, SGD(network.parameters(), lr=0.1), toy_loader(), 1, [export]).run()


def test_a_decoder_goes_beside_the_encoder_and_never_stays_with_another(tmp_path):
    models, network = tmp_path / "models", WithDecoder()
    publish(tmp_path, network)
    weights = torch.load(models / "model_decoder.pt", weights_only=True)
    assert weights.keys() == network.head.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.head.state_dict().items())
    about = assert_is(models / "model.pt", network)
    assert about["decoder_sha256"] == hashlib.sha256((models / "model_decoder.pt").read_bytes()).hexdigest()

    publish(tmp_path, ToyNetwork())  # has no decoder to offer
    assert "decoder_sha256" not in json.loads((models / "model.json").read_text())
    assert sorted(file.name for file in models.iterdir()) == [
        "model.json", "model.pt", "model_previous.json", "model_previous.pt", "model_previous_decoder.pt",
    ]  # fmt: skip
