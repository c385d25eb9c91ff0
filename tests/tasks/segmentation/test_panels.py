# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import torch
from ignite.engine import Engine

from bundle.runs import RunFolder
from bundle.tasks.segmentation import SegmentationPanels

SIZE = (10, 12, 8)


def volume() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]:
    image = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    label = np.zeros(SIZE, dtype=np.int64)
    label[2:5, 3:9, 2:6] = 1
    return image, label, np.zeros_like(label), (1.0, 1.0, 2.0)


def test_the_first_volumes_of_a_validation_are_drawn_once(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.panels.mkdir()
    image, label, prediction, spacing = volume()
    onehot = [torch.nn.functional.one_hot(torch.from_numpy(a), 2).permute(3, 0, 1, 2) for a in (label, prediction)]

    def step(engine: Engine, batch: list[dict]) -> list[dict]:
        return [{"image": torch.from_numpy(image)[None], "label": onehot[0], "pred": onehot[1]}]

    engine = Engine(step)
    panels = SegmentationPanels(run_folder=folder, classes=["liver"], volumes=2)
    panels.attach(engine)
    engine.run([[{"spacing": torch.tensor(spacing)}]] * 3, max_epochs=2)
    assert sorted(file.name for file in folder.panels.iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    assert len(panels._shown) == 2 and matplotlib.image.imread(folder.panels / "epoch_0002.png").ndim == 3
