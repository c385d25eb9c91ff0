# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A short fine-tuning for an experiment: trains with a config, then measures whole volumes after the last step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.inferers import sliding_window_inference
from monai.metrics import compute_hausdorff_distance
from monai.networks.utils import one_hot
from torch import Tensor, nn
from tqdm import tqdm

from bundle.errors import UserError
from bundle.runs import RunFolder
from bundle.training.history import read_history

__all__ = ["Trial", "class_means", "dice", "evaluate", "hausdorff95", "run_trial"]

#: of a prediction and a label map ``[D, H, W]``, the number of classes and the spacing in mm: one value per class
Measure = Callable[[Tensor, Tensor, int, Tensor], list[float]]


@dataclass(frozen=True)
class Trial:
    """What a short fine-tuning gave.

    Attributes:
        names: of the volumes that were measured.
        dice: of each volume and class, as the function `dice` gives it.
        history: the metrics of each epoch.
        skipped: volumes that could not be used.
        lr: the learning rate at its peak.
        cpu_seconds: of the processor, for the training alone.
        hausdorff95: likewise, in mm, if it was asked for.
    """

    names: list[str]
    dice: list[list[float]]
    history: list[dict[str, float]]
    skipped: list[str]
    lr: float
    cpu_seconds: float
    hausdorff95: list[list[float]] | None = None


def run_trial(
    configs: Sequence[str],
    overrides: Mapping[str, Any],
    *,
    crop: Sequence[int],
    classes: int,
    shown: int = 1,
    distances: bool = False,
) -> Trial:
    """Trains with a config of segmentation, and measures all validation volumes with the weights of the last step.

    Args:
        configs: files, the base first.
        overrides: by id.
        crop: voxels per axis of the sliding window.
        classes: how many, without the background.
        shown: how many of the volumes are validated in training, too, for learning curves.
        distances: whether to measure distances of surfaces as well.
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
    measures: list[Measure] = [_dice, hausdorff95] if distances else [_dice]
    rows, *further = measure(get("validate#evaluator").network, volumes.validation, crop, classes, measures)
    folder: RunFolder = get("run_folder")
    done = Trial(
        names=[volume.name for volume in volumes.validation],
        dice=rows,
        history=read_history(folder.history),
        skipped=[volume.name for volume in volumes.skipped],
        lr=float(get("peak_lr")),
        cpu_seconds=seconds,
        hausdorff95=further[0] if further else None,
    )
    flow.finalize()
    return done


def dice(prediction: Tensor, label: Tensor, classes: int) -> list[float]:
    """Of each class but the background, from 0 to 1; NaN where neither has it, as in an evaluation.

    It is counted here and not by `bundle.evaluation.mask_metrics`, which would measure surfaces, too, and take longer.
    """
    pairs = [(prediction == c, label == c) for c in range(1, classes + 1)]
    return [2 * int((p & q).sum()) / total if (total := int(p.sum() + q.sum())) else math.nan for p, q in pairs]


def hausdorff95(prediction: Tensor, label: Tensor, classes: int, spacing: Tensor) -> list[float]:
    """95 % Hausdorff distance in mm of each class; the grid's diagonal where one of the two lacks it.

    Where neither has the class it is NaN. An evaluation says infinite and leaves that out of its means; here a class
    that a network misses must count, so that the means of two networks are over the same volumes.
    """
    pair = [one_hot(voxels[None, None].long(), classes + 1)[:, 1:] for voxels in (prediction, label)]
    diagonal = float((torch.tensor(label.shape) * spacing).norm())
    found = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing.tolist())[0]
    has = torch.stack([channels.flatten(2).any(2)[0] for channels in pair])
    values = torch.where(has.all(0), found, torch.where(has.any(0), diagonal, math.nan))
    return [float(value) for value in values]


def _dice(prediction: Tensor, label: Tensor, classes: int, spacing: Tensor) -> list[float]:  # noqa: ARG001 - a Measure
    return dice(prediction, label, classes)


def class_means(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each class over the volumes in which it has a value, to five digits.

    Args:
        rows: of each volume and class, NaN where there is none.

    Raises:
        UserError: if a class has no value in any volume.
    """
    means = []
    for number, values in enumerate(zip(*rows), start=1):
        known = [value for value in values if not math.isnan(value)]
        if not known:
            raise UserError(
                f"class {number} is in none of {len(rows)} test volumes, nor predicted: leave it out of --classes"
            )
        means.append(round(sum(known) / len(known), 5))
    return means


def evaluate(network: nn.Module, volumes: Sequence[Any], crop: Sequence[int], classes: int) -> list[list[float]]:
    """Dice of every volume and class, as `measure` finds it."""
    return measure(network, volumes, crop, classes, [_dice])[0]


@torch.no_grad()
def measure(
    network: nn.Module, volumes: Sequence[Any], crop: Sequence[int], classes: int, measures: Sequence[Measure]
) -> list[list[list[float]]]:
    """Of every measure, volume and class; the prepared label map holds all labelled voxels.

    Args:
        network: from image to scores, of which the first is the finest; on the CPU or a GPU.
        volumes: prepared ones, with `image` and `label`, and `spacing` in mm, without which it is 1.
        crop: voxels per axis of the sliding window.
        classes: how many, without the background.
        measures: what to measure.
    """
    network.eval()
    device = next(network.parameters(), torch.empty(0)).device

    def finest(image: Tensor) -> Tensor:
        output = network(image)
        return (output[0] if isinstance(output, (list, tuple)) else output).softmax(1)

    rows: list[list[list[float]]] = [[] for _ in measures]
    for volume in tqdm(volumes, desc="measuring", leave=False):
        item = volume.load(keys=["image", "label", "spacing"])
        scores = sliding_window_inference(
            item["image"][None], crop, 8, finest, overlap=0.25, mode="gaussian", sw_device=device, device="cpu"
        )
        prediction, spacing = scores[0].argmax(0), item.get("spacing", torch.ones(3))
        for found, one in zip(rows, measures):
            found.append(one(prediction, item["label"][0], classes, spacing))
    return rows
