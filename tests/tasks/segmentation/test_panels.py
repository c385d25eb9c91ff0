# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import torch
from ignite.engine import Engine

from bundle.data import PlainStore, PreparedVolume
from bundle.figures.segmentation import draw_segmentation
from bundle.runs import RunFolder
from bundle.tasks.segmentation import SegmentationPanels, TrainingLabels

SIZE = (10, 12, 8)


def volume() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]:
    image = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    label = np.zeros(SIZE, dtype=np.int64)
    label[2:5, 3:9, 2:6] = 1
    return image, label, np.zeros_like(label), (1.0, 1.0, 2.0)


def test_volumes_with_other_axes_are_drawn_as_those_in_ras(tmp_path: Path):
    shown = []
    for axes in ("RAS", "LPS"):
        image, label, *_ = (torch.from_numpy(part.copy()) for part in volume()[:3])
        if axes == "LPS":
            image, label = image.flip(0, 1), label.flip(0, 1)
        onehot = torch.nn.functional.one_hot(label, 2).permute(3, 0, 1, 2)
        engine = Engine(lambda _, __, item={"image": image[None], "label": onehot, "pred": onehot}: [item])
        panels = SegmentationPanels(run_folder=RunFolder(tmp_path / axes), classes=["liver"], axes=axes)
        (tmp_path / axes / "panels").mkdir(parents=True)
        panels.attach(engine)
        engine.run([[{"spacing": torch.tensor([1.0, 1.0, 2.0])}]], max_epochs=1)
        shown.append(panels._shown[0])
    ras, lps = shown
    assert (list(ras.indices), list(ras.aspects)) == (list(lps.indices), list(lps.aspects))
    pairs = [pair for planes in zip(ras.pictures, lps.pictures, strict=True) for pair in zip(*planes, strict=True)]
    assert len(pairs) == 9 and all(np.array_equal(one, other) for one, other in pairs)


def test_the_first_volumes_of_a_validation_are_drawn_once(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.panels.mkdir()
    image, label, prediction, spacing = volume()
    onehot = [torch.nn.functional.one_hot(torch.from_numpy(a), 2).permute(3, 0, 1, 2) for a in (label, prediction)]

    def step(engine: Engine, batch: list[dict]) -> list[dict]:
        return [{"image": torch.from_numpy(image)[None], "label": onehot[0], "pred": onehot[1]}]

    engine = Engine(step)
    data = [PreparedVolume(name, PlainStore(tmp_path), name, "MR", SIZE) for name in ("scan_a", "scan_b", "scan_c")]
    panels = SegmentationPanels(run_folder=folder, classes=["liver"], volumes=2, data=data)
    panels.attach(engine)
    engine.run([[{"spacing": torch.tensor(spacing), "volume": torch.tensor(n)}] for n in (2, 0, 1)], max_epochs=2)
    assert [shown.name for shown in panels._shown] == ["scan_c", "scan_a"]
    assert sorted(file.name for file in folder.panels.iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    assert len(panels._shown) == 2 and matplotlib.image.imread(folder.panels / "epoch_0002.png").ndim == 3


def test_the_labels_are_drawn_once_before_the_first_step_and_not_again_by_a_resume(tmp_path: Path, monkeypatch):
    store, (image, label, _, spacing) = PlainStore(tmp_path / "store"), volume()
    image, label = (torch.from_numpy(array)[None] for array in (image, label))
    tensors = {"image": image, "valid": torch.ones_like(label), "label": label.to(torch.uint8), "modality": "MR"}
    titles: list[str] = []
    monkeypatch.setattr(
        "bundle.tasks.segmentation.panels.draw_segmentation",
        lambda rows, *, title, **more: titles.append(title) or draw_segmentation(rows, title=title, **more),
    )
    for name in ("scan_a", "scan_b", "scan_c"):
        store.write(name, {**tensors, "spacing": torch.tensor(spacing)})
    data = [PreparedVolume(name, store, name, "MR", SIZE) for name in ("scan_a", "scan_b", "scan_c")]
    for resumed in (False, True):
        engine = Engine(lambda *_: None)
        folder = RunFolder(tmp_path / "run", resumed=resumed)
        TrainingLabels(run_folder=folder, data=data, classes=["liver"], most=2).attach(engine)
        engine.run([0], max_epochs=2)
    assert titles == ["the first 2 of 3 training volumes"]
    assert matplotlib.image.imread(folder.labels).ndim == 3
