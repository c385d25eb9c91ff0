# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What does each level of an encoder know? A linear probe of tissue or organs on frozen features, level by level.

    python scripts/fetch_data.py --all
    python scripts/studies/levels.py --weights models/model.pt runs/<date>/model.pt

A ridge regression from the features of single voxels (of the cell that a voxel lies in, at coarse levels) to the
classes of a task of transfer_tasks.py, solved in closed form, beside an untrained encoder of the same network.
It takes seconds, and tells in advance which level's weights are worth loading for a segmentation: see
scripts/studies/transfer.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from tqdm import tqdm
from transfer_tasks import TASKS, Task, write_task

from bundle.errors import UserError
from bundle.networks import build_encoder
from bundle.probing import fit_ridge
from bundle.transfer import load_encoder
from bundle.weights import ModelFiles

ROOT = Path(__file__).resolve().parents[2]


def prepared(
    task: Task, settings: Mapping[str, Any], seed: int, data_dir: Path, work_dir: Path
) -> list[dict[str, Tensor]]:
    """The task's volumes as `configs/finetune_segmentation.yaml` prepares them, the one to train on first."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs/finetune_segmentation.yaml")
    parser.update(
        {
            "bundle_root": str(ROOT),
            "dataset_dir": str(write_task(task, task.labels[0], seed, data_dir, work_dir / "tasks")),
            "cache_dir": str(work_dir / "cache"),
            "classes": task.classes,
            "pretrained": None,
            "encoder": settings["encoder"],
            "crop_size": settings["crop_size"],
            **{key: settings[key] for key in ("spacing", "ct_window", "mr_percentiles")},
        }
    )
    volumes = parser.get_parsed_content("volumes")
    return [volume.load() for volume in (*volumes.training, *volumes.validation)]


@torch.no_grad()
def features_at(encoder: nn.Module, image: Tensor, voxels: Tensor) -> list[Tensor]:
    """Each level's features ``[N, channels]`` of the cells that the voxels ``[N, 3]`` lie in, in float64."""
    size = torch.tensor(image.shape[1:])
    found = []
    for features in encoder(image[None].float()):
        shape = torch.tensor(features.shape[2:])
        d, h, w = (voxels * shape // size).unbind(1)
        found.append(features[0, :, d, h, w].T.double())
    return found


def ridge_dice(train: tuple[Tensor, Tensor], tests: Sequence[tuple[Tensor, Tensor]], classes: int) -> float:
    """Dice in %, mean over classes and tests, of ridge regression to one-hot labels.

    Args:
        train: features ``[N, C]``, standardised here, and labels ``[N]``, 0 for none of the classes.
        tests: the same of each volume to test on.
        classes: how many, without 0.
    """
    x, y = train
    predict = fit_ridge(x, torch.nn.functional.one_hot(y.long(), classes + 1).to(x.dtype), 10 / len(x))
    dice = []
    for x, y in tests:
        said = predict(x).argmax(1)
        for index in range(1, classes + 1):
            both = ((said == index) & (y == index)).sum()
            dice.append(200 * both / max(1, int((said == index).sum() + (y == index).sum())))
    return float(torch.stack(dice).mean())


def probe(encoder: nn.Module, volumes: Sequence[dict[str, Tensor]], classes: int, samples: int) -> dict[str, float]:
    """Dice of each level's features, and of all together, from the first volume to the others."""
    sets: list[tuple[list[Tensor], Tensor]] = []
    for number, volume in enumerate(volumes):
        label = volume["label"][0]
        generator = torch.Generator().manual_seed(number)
        inside = volume["valid"][0].nonzero()
        voxels = inside[torch.randperm(len(inside), generator=generator)[:samples]]
        sets.append((features_at(encoder, volume["image"], voxels), label[voxels.unbind(1)]))
    levels = len(sets[0][0])
    chosen = {f"level {level + 1}": [level] for level in range(levels)} | {"all": list(range(levels))}
    dice = {}
    for name, which in chosen.items():
        train, *tests = [(torch.cat([f[i] for i in which], 1), y) for f, y in sets]
        dice[name] = ridge_dice(train, tests, classes)
    return dice


def mean_probe(task: Task, weights: Path, options: argparse.Namespace, *, trained: bool) -> dict[str, float]:
    """`probe` of an encoder with the weights, or untrained, mean over seeds."""
    about = ModelFiles(weights).read_settings()
    if about is None:
        raise UserError(f"{weights} has no json beside it: give the model.pt of a pre-training")
    found = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        encoder = build_encoder(**about.encoder)
        if trained:
            load_encoder(encoder.network, weights)
        volumes = prepared(task, about.content, seed, options.data_dir, options.work_dir)
        found.append(probe(encoder.eval(), volumes, len(task.classes), options.samples))
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="A linear probe of each level of an encoder.")
    parser.add_argument("--weights", type=Path, nargs="+", default=[ROOT / "models/model.pt"])
    parser.add_argument("--task", choices=list(TASKS), default="brain")
    parser.add_argument("--seeds", type=int, default=4, help="labelled parts, and untrained encoders")
    parser.add_argument("--samples", type=int, default=30000, help="voxels of each volume")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data")
    parser.add_argument("--work_dir", type=Path, default=ROOT / ".cache/transfer")
    options = parser.parse_args(arguments)
    try:
        rows = {
            f"{file}, {kind}": mean_probe(TASKS[options.task], file, options, trained=kind == "trained")
            for file in tqdm(options.weights, desc="weights")
            for kind in ("untrained", "trained")
        }
    except UserError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)  # below the bar
        return 1
    names = list(next(iter(rows.values())))
    print(f"| Dice, %, mean of {options.seeds} labelled parts | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for row, dice in rows.items():
        print(f"| {row} | {' | '.join(f'{dice[name]:.1f}' for name in names)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
