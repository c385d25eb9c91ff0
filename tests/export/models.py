# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A small pre-trained encoder on disk, as a run leaves it, and MONAI's own network with the same weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.networks import build_encoder
from tests.networks.encoder_cases import Case


def write_model(folder: Path, case: Case, **settings: Any) -> tuple[Path, nn.Module]:
    """Writes `model.pt` and `model.json`; the path of the first, and the network in eval mode."""
    torch.manual_seed(11)
    encoder = build_encoder(case.name, **case.arguments)
    for name, buffer in encoder.network.named_buffers():
        if name.endswith("running_mean"):  # such as training leaves, not 0 and 1
            buffer.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    path = folder / "model.pt"
    torch.save(encoder.network_state_dict(), path)
    about = {"encoder": encoder.settings, **settings, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path, encoder.network.eval()
