# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A small pre-trained encoder on disk, as a run leaves it, and MONAI's own network with the same weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.networks import NnunetSegmentation, build_encoder
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


def write_nnunet_checkpoint(folder: Path) -> Path:
    """Writes a checkpoint as nnU-Net's training leaves it, of a small ResEnc network; its path."""
    encoder = {
        "name": "ResidualEncoderUNet",
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_blocks_per_stage": [1, 1, 1],
    }
    torch.manual_seed(12)
    network = NnunetSegmentation(encoder=encoder)
    configuration = {"spacing": [3, 2, 1], "normalization_schemes": ["ZScoreNormalization"]}
    plans = {"dataset_name": "Dataset004_Hippocampus", "configurations": {"3d_fullres": configuration}}
    folder.mkdir()
    path = folder / "checkpoint_final.pth"
    torch.save({"network_weights": network.state_dict(), "init_args": {"plans": plans}}, path)
    return path
