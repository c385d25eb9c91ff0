# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which settings of configs/finetune_classification.yaml cost what? One change at a time, on a finding that is known.

    python scripts/studies/recipe_classification.py --dataset_dir Task04_Hippocampus --split split.json \
        --crop 48 64 48 --labelled 20 --steps 100 300 --seeds 0 1 2 3 4 --arms config "config + all mirrors"

The finding is whether the labelled structure is larger than the median of all people, as their label maps say: atrophy
of a hippocampus, dilation of an atrium. Else all is as in recipe.py: `split.json` lists files of "dev", of which a seed
draws the labelled people (half of them with the finding), and of "test", whose area under the ROC curve after the last
step is the figure. Runs in --output are not repeated. recipe.md has what was found.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from recipe import add_row, read_rows, table
from tqdm import tqdm

from bundle.errors import UserError
from bundle.training.history import read_history

ROOT = Path(__file__).resolve().parents[2]

#: what a part of an arm's name changes in the config
CHANGES: dict[str, dict[str, Any]] = {
    "all mirrors": {"mirror_axes": [0, 1, 2]},
    "mirrors left to right": {"mirror_axes": [0]},
    "no mirror": {"mirror_axes": []},
    "floor of 3 deviations": {"mr_floor": 3.0},
    "no floor": {"mr_floor": None},
    "warm-up of 5 epochs": {"warmup_epochs": 5},
    "warm-up of a tenth": {"warmup_epochs": None},
    "shipped weights": {"pretrained": str(ROOT / "models/model.pt")},
    "rate 3e-4": {"lr": 3.0e-4},
    "rate 3e-3": {"lr": 3.0e-3},
    "no affine": {"train#preprocessing#transforms#2#prob": 0.0},
}


def find_large(dataset_dir: Path, names: list[str]) -> dict[str, int]:
    """1 for the people whose labelled structure has more mm³ than the median of all `names`, else 0."""
    sizes = []
    for name in names:
        label = nibabel.load(dataset_dir / "labelsTr" / name)
        sizes.append(np.count_nonzero(np.asanyarray(label.dataobj)) * abs(np.linalg.det(label.affine[:3, :3])))
    return dict(zip(names, (np.array(sizes) > np.median(sizes)).astype(int).tolist()))


def draw_people(large: Mapping[str, int], dev: list[str], labelled: int, seed: int) -> list[str]:
    """The labelled people of a seed, the same ones in every arm: half of them with the finding."""
    chance = random.Random(100 + seed)  # noqa: S311 - no secret
    groups = [[name for name in dev if large[name] == value] for value in (1, 0)]
    return [name for number, group in enumerate(groups) for name in chance.sample(group, (labelled + number) // 2)]


def train(arm: str, steps: int, seed: int, options: argparse.Namespace) -> float:
    """Fine-tunes once.

    Returns:
        The area under the ROC curve of the test people after the last step.
    """
    people = draw_people(options.large, options.split_lists["dev"], options.labelled, seed)
    epoch = min(steps, options.steps_per_epoch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "large", "part"])
            for part, names in (("training", people), ("validation", options.people)):
                images = options.dataset_dir.absolute() / "imagesTr"
                writer.writerows([images / one, options.large[one], part] for one in names)
        overrides: dict[str, Any] = {
            "bundle_root": str(ROOT),
            "dataset_dir": str(folder / "labels.csv"),
            "output_dir": str(folder / "run"),
            "cache_dir": str(options.cache_dir),
            "findings": ["large"],
            "spacing": "own",
            "crop_size": options.crop,
            "pretrained": None,
            "seed": seed,
            "epochs": steps // epoch,
            "steps_per_epoch": epoch,
            "val_interval": steps // epoch,  # after the last step alone
            "num_workers": 0,
            "device": options.device,
        }
        for change in arm.split(" + ")[1:]:
            overrides |= CHANGES[change]
        config = str(ROOT / "configs/finetune_classification.yaml")
        flow = ConfigWorkflow([config], workflow_type="train", run_id="training", logging_file=False, **overrides)
        flow.initialize()
        flow.run()
        history = read_history(folder / "run/metrics.csv")
        flow.finalize()
    return float(history[-1]["validation/auc"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked, with `split_lists`, the test `people`, and who is `large`."""
    parser = argparse.ArgumentParser(description="Which settings of fine-tuning a classifier cost what?")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with imagesTr and labelsTr")
    parser.add_argument("--split", type=Path, required=True, help='json with the files of "dev" and "test"')
    parser.add_argument("--arms", nargs="+", default=["config"], help=f'"config + ...": {", ".join(CHANGES)}')
    parser.add_argument("--labelled", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[100])
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    parser.add_argument("--crop", type=int, nargs=3, default=[48, 64, 48], help="voxels per axis")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache_dir", type=Path, default=ROOT / ".cache/recipe")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache/recipe/classification.jsonl")
    options = parser.parse_args(arguments)
    for arm in options.arms:
        base, *changes = arm.split(" + ")
        if base != "config" or not CHANGES.keys() >= set(changes):
            raise UserError(f"--arms {arm!r} is not known: give config, or config + {' + '.join(CHANGES)}")
    if wrong := [steps for steps in options.steps if steps % min(steps, options.steps_per_epoch)]:
        raise UserError(
            f"--steps {wrong[0]} is no multiple of --steps_per_epoch {options.steps_per_epoch}: change either"
        )
    options.split_lists = json.loads(options.split.read_text())
    options.people = options.split_lists["test"]
    options.large = find_large(options.dataset_dir, options.split_lists["dev"] + options.people)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    try:
        options = parse(arguments)
        rows = read_rows(options.output)
        about = {"data": options.dataset_dir.name, "labelled": options.labelled}
        cases = [
            {**about, "steps": steps, "arm": arm, "seed": seed}
            for steps in options.steps for arm in options.arms for seed in options.seeds
        ]  # fmt: skip
        missing = [case for case in cases if not any(case.items() <= row.items() for row in rows)]
        for case in tqdm(missing, desc="runs"):
            with torch.random.fork_rng():
                auc = train(case["arm"], case["steps"], case["seed"], options)
            rows.append({**case, "auc": round(auc, 5)})
            add_row(rows[-1], options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for steps in options.steps:
        wanted = [row for row in rows if {**about, "steps": steps}.items() <= row.items()]
        # the table of recipe.py, of one "class"
        here = [{**row, "dice": [row["auc"]]} for row in wanted if row["arm"] in options.arms]
        print(f"{steps} steps, area under the ROC curve\n\n{table(here, options.arms[0]).replace('Dice', 'AUC')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
