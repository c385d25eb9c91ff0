# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from bundle.data import PlainStore, PreparedVolume
from bundle.runs import RunFolder
from bundle.tasks.detection import DetectionPanels


@pytest.mark.parametrize(
    ("names", "shown"), [(("scan_a", "scan_b"), ["scan_b", "scan_a"]), (None, ["volume 1", "volume 0"])]
)
def test_volumes_are_drawn_under_their_names_with_their_best_boxes(
    names: tuple[str, ...] | None, shown: list[str], tmp_path: Path
):
    data = names and [PreparedVolume(name, PlainStore(tmp_path), name, "MR", (8, 8, 8)) for name in names]
    boxes = torch.tensor([[0.0, 0, 0, 2, 2, 2], [1, 1, 1, 5, 5, 5], [2, 2, 2, 4, 4, 4]])
    output = {
        "image": torch.randn(2, 1, 8, 8, 8),
        "label": [{"box": boxes[:1]}] * 2,
        "pred": [{"box": boxes, "label_scores": torch.tensor([0.1, 0.9, 0.5])}] * 2,
    }
    engine = Engine(lambda *_: output)
    panels = DetectionPanels(run_folder=RunFolder(tmp_path), boxes=2, data=data)
    (tmp_path / "panels").mkdir()
    panels.attach(engine)
    engine.run([{"spacing": torch.ones(2, 3), "volume": torch.tensor([1, 0])}], max_epochs=1)
    assert (tmp_path / "panels/epoch_0001.png").stat().st_size > 0
    assert [one.name for one in panels._shown] == shown
    assert all(np.array_equal(one.predicted, boxes[[1, 2]]) for one in panels._shown)
