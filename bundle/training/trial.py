# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A short fine-tuning for an experiment: trains with a config, then measures whole volumes after the last step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from tqdm import tqdm

from bundle.runs import RunFolder
from bundle.training.history import read_history

__all__ = ["Trial", "dice", "evaluate", "run_trial"]


@dataclass(frozen=True)
class Trial:
    """What a short fine-tuning gave.

    Attributes:
        names: of the volumes that were measured.
        dice: of each volume and class; 0 where neither has it.
        history: the metrics of each epoch.
        skipped: volumes that could not be used.
        lr: the learning rate at its peak.
        cpu_seconds: of the processor, for the training alone.
    """

    names: list[str]
    dice: list[list[float]]
    history: list[dict[str, float]]
    skipped: list[str]
    lr: float
    cpu_seconds: float


def run_trial(
    configs: Sequence[str], overrides: Mapping[str, Any], *, crop: Sequence[int], classes: int, shown: int = 1
) -> Trial:
    """Trains with a config of segmentation, and measures all validation volumes with the weights of the last step.

    Args:
        configs: files, the base first.
        overrides: by id.
        crop: voxels per axis of the sliding window.
        classes: how many, without the background.
        shown: how many of the volumes are validated in training, too, for learning curves.
    """
    given = {
        "validate#dataset#data": f"$@volumes.validation[:{shown}]", "validate#additional_metrics": None, **overrides
    }  # fmt: skip
    flow = ConfigWorkflow(list(configs), workflow_type="train", run_id="training", logging_file=False, **given)
    flow.initialize()
    start = time.process_time()
    flow.run()
    seconds = time.process_time() - start
    get = flow.parser.get_parsed_content
    volumes = get("volumes")
    rows = evaluate(get("transfer").network, volumes.validation, crop, classes)
    folder: RunFolder = get("run_folder")
    done = Trial(
        names=[volume.name for volume in volumes.validation],
        dice=rows,
        history=read_history(folder.history),
        skipped=[volume.name for volume in volumes.skipped],
        lr=float(get("peak_lr")),
        cpu_seconds=seconds,
    )
    flow.finalize()
    return done


def dice(prediction: Tensor, label: Tensor, classes: int) -> list[float]:
    """Of each class but the background, from 0 to 1; 0 where neither has it."""
    pairs = [(prediction == c, label == c) for c in range(1, classes + 1)]
    return [2 * int((p & q).sum()) / max(1, int(p.sum() + q.sum())) for p, q in pairs]


@torch.no_grad()
def evaluate(network: nn.Module, volumes: Sequence[Any], crop: Sequence[int], classes: int) -> list[list[float]]:
    """Dice of every volume and class; the prepared label map holds all labelled voxels.

    Args:
        network: from image to scores, of which the first is the finest; on the CPU or a GPU.
        volumes: prepared ones, with `image` and `label`.
        crop: voxels per axis of the sliding window.
        classes: how many, without the background.
    """
    network.eval()
    device = next(network.parameters(), torch.empty(0)).device

    def finest(image: Tensor) -> Tensor:
        output = network(image)
        return (output[0] if isinstance(output, (list, tuple)) else output).softmax(1)

    rows = []
    for volume in tqdm(volumes, desc="measuring", leave=False):
        item = volume.load(keys=["image", "label"])
        scores = sliding_window_inference(
            item["image"][None], crop, 8, finest, overlap=0.25, mode="gaussian", sw_device=device, device="cpu"
        )
        rows.append(dice(scores[0].argmax(0), item["label"][0], classes))
    return rows
