# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A fine-tuning of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]
QUICK: dict[str, Any] = {
    "bundle_root": str(ROOT),
    "classes": {"left": 1, "right": 2},
    "crop_size": [16, 16, 16],
    "spacing": "own",
    "pretrained": None,
    "encoder#init_filters": 4,
    "encoder#blocks_down": [1, 1, 1],
    "steps_per_epoch": 2,
    "num_workers": 0,
    "device": "cpu",
}
