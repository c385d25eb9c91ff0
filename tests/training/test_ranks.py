# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Handlers that log and write guard their own rank, so that no config has to."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch.distributed as dist
from ignite.engine import Engine

from bundle.tasks.detection import DetectionPanels
from bundle.tasks.segmentation import SegmentationPanels
from bundle.training import (
    CostReport,
    EvaluationReport,
    ExportEncoder,
    History,
    Progress,
    ReconstructionPanels,
    RecordConfig,
    Summary,
    TargetRange,
    TensorBoard,
)

HANDLERS = (
    CostReport, DetectionPanels, EvaluationReport, ExportEncoder, History, Progress, ReconstructionPanels, RecordConfig,
    SegmentationPanels, Summary, TargetRange, TensorBoard,
)  # fmt: skip


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
def test_a_handler_that_writes_acts_on_the_first_process_only(
    handler: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    registered = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        engine, folder = Engine(lambda *_: None), tmp_path / str(rank)
        folder.mkdir()
        monkeypatch.chdir(folder)
        handler.attach(MagicMock(interval=1), engine)
        registered.append(sum(len(handlers) for handlers in engine._event_handlers.values()))
    assert registered[0] > 0
    assert registered[1] == 0 and not list(folder.iterdir())
