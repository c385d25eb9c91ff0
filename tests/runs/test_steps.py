# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch.distributed as dist

from bundle.errors import UserError
from bundle.runs import crops_per_process


def test_a_global_batch_goes_round_the_processes(monkeypatch: pytest.MonkeyPatch):
    assert crops_per_process(batch_size=2) == 2
    assert crops_per_process(batch_size=2, global_batch=7) == 7
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    assert crops_per_process(batch_size=2) == 2
    assert crops_per_process(batch_size=2, global_batch=16) == 4
    with pytest.raises(UserError, match="--global_batch 10 does not go round 4 processes evenly: give a multiple of 4"):
        crops_per_process(batch_size=2, global_batch=10)
