# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/training/tensorboard.py: MONAI's TensorBoardStatsHandler is the oracle of the scalars."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from monai.handlers import TensorBoardStatsHandler, ValidationHandler
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD

from bundle.runs import RunFolder
from bundle.training import Scalars, TensorBoard
from bundle.training.panels import ReconstructionPanels
from bundle.training.scalars import latest_scalars

from .toy import ToyLoss, ToyNetwork, toy_evaluator, toy_loader, toy_trainer

EPOCHS, VALIDATED = 4, [2, 4]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run, and the events that MONAI's own handlers write of the same run."""
    path, oracle = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("oracle")
    network, folder = ToyNetwork(), RunFolder(path)
    optimizer = SGD(network.parameters(), lr=0.25)
    monai_validation = TensorBoardStatsHandler(log_dir=str(oracle), iteration_log=False)
    panels = ReconstructionPanels(run_folder=folder, restore=ToyLoss().restore, crops=2)
    evaluator = toy_evaluator(network, [Scalars(name="validation"), monai_validation, panels])
    handlers = [
        Scalars(name="train", interval=3, optimizer=optimizer),
        TensorBoardStatsHandler(log_dir=str(oracle), iteration_log=3, output_transform=latest_scalars),
        ValidationHandler(2, evaluator),
        TensorBoard(run_folder=folder, validator=evaluator, picture="reconstruction", interval=3),
    ]
    toy_trainer(network, optimizer, toy_loader(), EPOCHS, handlers).run()
    return path, oracle


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tags_steps_and_values_are_those_of_monais_handlers(runs: tuple[Path, Path]):
    path, oracle = runs
    ours = scalars(path / "tensorboard")
    assert ours == scalars(oracle)
    assert [step for step, _ in ours["reconstruction"]] == [3, 6, 9, 12, 15]
    assert [step for step, _ in ours["train/reconstruction"]] == [1, 2, 3, 4]
    assert [step for step, _ in ours["validation/reconstruction"]] == VALIDATED


def test_the_picture_of_each_validation_is_that_of_the_file(runs: tuple[Path, Path]):
    path, _ = runs
    shown = events(path / "tensorboard").Images("reconstruction")
    assert [event.step for event in shown] == VALIDATED
    for event in shown:
        pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        file = matplotlib.image.imread(path / f"panels/epoch_{event.step:04d}.png")
        np.testing.assert_array_equal(pixels[..., :3], (255 * file[..., :3]).round())


def test_without_validation_the_trainers_metrics_are_written(tmp_path: Path):
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=0.25)
    handlers = [Scalars(name="train", optimizer=optimizer), TensorBoard(run_folder=RunFolder(tmp_path))]
    toy_trainer(network, optimizer, toy_loader(), 1, handlers).run()
    found = scalars(tmp_path / "tensorboard")
    assert found["train/learning_rate"] == [(1, 0.25)]
    assert not any(tag.startswith("validation") for tag in found)
