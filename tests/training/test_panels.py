# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import matplotlib.image
import numpy as np

from bundle.figures.reconstruction import draw_panels
from bundle.runs.folder import RunFolder
from bundle.training import panels
from bundle.training.panels import ReconstructionPanels

from .toy import ToyLoss, ToyNetwork, toy_evaluator


def test_every_picture_goes_to_a_file(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        panels, "draw_panels", lambda crops, title: drawn.append(crops) or draw_panels(crops, title=title)
    )
    handler = ReconstructionPanels(
        run_folder=RunFolder(tmp_path), restore=ToyLoss().restore, crops=2, names=["a", "b", "c"]
    )
    evaluator = toy_evaluator(ToyNetwork(), [handler])
    for epoch in (2, 4):
        evaluator.run(epoch)

    assert sorted(file.name for file in (tmp_path / "panels").iterdir()) == ["epoch_0002.png", "epoch_0004.png"]
    picture = matplotlib.image.imread(tmp_path / "panels" / "epoch_0002.png")
    assert np.array_equal((255 * picture[..., :3]).round(), draw_panels(drawn[0], title="epoch 2"))

    assert [[shown.name for shown in crops] for crops in drawn] == [["a", "b"]] * 2
    first = drawn[0][0]
    output, batch = evaluator.state.output, evaluator.state.batch
    assert first.spacing == (1.0, 1.0, 2.0)
    assert first.image.shape == first.reconstruction.shape == tuple(batch["image"].shape[2:])
    assert first.visible.shape == tuple(output["pred"]["visible"].shape[2:])
    assert np.array_equal(drawn[0][1].image, drawn[1][1].image), "the same crops in every epoch"
