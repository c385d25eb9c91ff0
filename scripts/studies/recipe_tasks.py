# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which settings of fine-tuning for classification and detection cost what? One change at a time, as in recipe.py.

    python scripts/studies/recipe_tasks.py classification --dataset_dir Task04_Hippocampus --split split.json \
        --labelled 60 --steps 300 --crop 48 64 48 --arms config "config + no mirror"
    python scripts/studies/recipe_tasks.py detection --dataset_dir Task04_Hippocampus --split split.json \
        --labelled 20 --crop 48 64 48 --classes "{anterior: 1, posterior: 2}" --arms config "config + no floor"

Both tasks are made of label maps, so that the truth is known. Classification: is the labelled structure larger than the
median of all people (atrophy of a hippocampus, dilation of an atrium)? The figure is the area under the ROC curve.
Detection: the box around each class, found by a small ResNet; the figure is the average precision, mean over IoU 0.1 to
0.5. `split.json` lists files of "dev", of which a seed draws the labelled people, and of "test", which are measured
after the last step. Runs in --output are not repeated. recipe.md has what was found.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from monai.bundle import ConfigWorkflow
from nibabel.affines import apply_affine
from recipe import add_row, read_rows, table
from tqdm import tqdm

from bundle.errors import UserError
from bundle.training.history import read_history

ROOT = Path(__file__).resolve().parents[2]

#: what a part of an arm's name changes in either config
CHANGES: dict[str, dict[str, Any]] = {
    "all mirrors": {"mirror_axes": [0, 1, 2]},
    "mirrors left to right": {"mirror_axes": [0]},
    "no mirror": {"mirror_axes": []},
    "floor of 3 deviations": {"mr_floor": 3.0},
    "no floor": {"mr_floor": None},
    "warm-up of 5 epochs": {"warmup_epochs": 5},
    "warm-up of a tenth": {"warmup_epochs": None},
    "rate 3e-4": {"lr": 3.0e-4},
    "rate 1e-3": {"lr": 1.0e-3},
    "rate 3e-3": {"lr": 3.0e-3},
    "rate 1e-2": {"lr": 1.0e-2},
}

#: a detector that a CPU trains in minutes
SMALL_DETECTOR: dict[str, Any] = {
    "encoder#block": "basic",
    "encoder#layers": [1, 1, 1, 1],
    "encoder#block_inplanes": [16, 32, 64, 128],
    "encoder#conv1_t_size": 3,
    "encoder#conv1_t_stride": 1,
    "feature_extractor#out_channels": 32,
}


@dataclass(frozen=True)
class Task:
    """What a task adds to the study."""

    config: str
    metric: str
    #: as the table calls it
    title: str
    #: writes the data list of the names by part into a folder, and returns the task's own options
    write: Callable[[Path, Mapping[str, Sequence[str]], argparse.Namespace], dict[str, Any]]
    draw: Callable[[argparse.Namespace, int], list[str]]
    changes: Mapping[str, Mapping[str, Any]]


def find_large(dataset_dir: Path, names: Sequence[str]) -> dict[str, int]:
    """1 for the people whose labelled structure has more mm³ than the median of all `names`, else 0."""
    sizes = []
    for name in names:
        label = nibabel.load(dataset_dir / "labelsTr" / name)
        sizes.append(np.count_nonzero(np.asanyarray(label.dataobj)) * abs(np.linalg.det(label.affine[:3, :3])))
    return dict(zip(names, (np.array(sizes) > np.median(sizes)).astype(int).tolist()))


def find_box(label: nibabel.Nifti1Image, value: int) -> list[float] | None:
    """The box around a class in the world: centre and size in mm, axes RAS; None where the class is not there."""
    places = np.argwhere(np.asanyarray(label.dataobj) == value)
    if not len(places):
        return None
    ends = np.array([places.min(0) - 0.5, places.max(0) + 0.5])
    corners = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    world = apply_affine(label.affine, corners)
    return [*((world.min(0) + world.max(0)) / 2).tolist(), *(world.max(0) - world.min(0)).tolist()]


def draw_balanced(options: argparse.Namespace, seed: int) -> list[str]:
    """The labelled people of a seed, the same ones in every arm: half of them with the finding."""
    chance = random.Random(100 + seed)  # noqa: S311 - no secret
    groups = [[name for name in options.split_lists["dev"] if options.large[name] == value] for value in (1, 0)]
    return [
        name for number, group in enumerate(groups) for name in chance.sample(group, (options.labelled + number) // 2)
    ]


def draw_people(options: argparse.Namespace, seed: int) -> list[str]:
    """The labelled people of a seed, the same ones in every arm."""
    return random.Random(100 + seed).sample(options.split_lists["dev"], options.labelled)  # noqa: S311 - no secret


def write_findings(folder: Path, parts: Mapping[str, Sequence[str]], options: argparse.Namespace) -> dict[str, Any]:
    """labels.csv with the finding "large"."""
    images = options.dataset_dir.absolute() / "imagesTr"
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "large", "part"])
        for part, names in parts.items():
            writer.writerows([images / name, options.large[name], part] for name in names)
    return {"dataset_dir": str(folder / "labels.csv"), "findings": ["large"]}


def write_boxes(folder: Path, parts: Mapping[str, Sequence[str]], options: argparse.Namespace) -> dict[str, Any]:
    """dataset.json with a box around each class."""
    listed: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for part, names in parts.items():
        for name in names:
            label = nibabel.load(options.dataset_dir / "labelsTr" / name)
            found = [(find_box(label, value), number) for number, value in enumerate(options.classes.values())]
            boxes = [(box, number) for box, number in found if box is not None]
            image = options.dataset_dir.absolute() / "imagesTr" / name
            listed[part].append(
                {"image": str(image), "box": [box for box, _ in boxes], "label": [number for _, number in boxes]}
            )
    (folder / "dataset.json").write_text(json.dumps(listed))
    classes = {name: number for number, name in enumerate(options.classes)}
    return {"dataset_dir": str(folder / "dataset.json"), "classes": classes, **SMALL_DETECTOR}


TASKS = {
    "classification": Task(
        config="finetune_classification.yaml",
        metric="auc",
        title="area under the ROC curve",
        write=write_findings,
        draw=draw_balanced,
        changes={
            "shipped weights": {"pretrained": str(ROOT / "models/model.pt")},
            "no affine": {"train#preprocessing#transforms#2#prob": 0.0},
        },
    ),
    "detection": Task(
        config="finetune_detection.yaml",
        metric="map",
        title="average precision, mean over IoU 0.1 to 0.5",
        write=write_boxes,
        draw=draw_people,
        changes={"no zoom": {"train#preprocessing#transforms#1#prob": 0.0}},
    ),
}


def train(arm: str, steps: int, seed: int, options: argparse.Namespace) -> float:
    """Fine-tunes once; gives the figure of the test people after the last step."""
    task = TASKS[options.task]
    epoch = min(steps, options.steps_per_epoch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {"training": task.draw(options, seed), "validation": options.people}
        overrides: dict[str, Any] = {
            **task.write(folder, parts, options),
            "bundle_root": str(ROOT),
            "output_dir": str(folder / "run"),
            "cache_dir": str(options.cache_dir / options.task),
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
            overrides |= (CHANGES | dict(task.changes))[change]
        config = str(ROOT / "configs" / task.config)
        flow = ConfigWorkflow([config], workflow_type="train", run_id="training", logging_file=False, **overrides)
        flow.initialize()
        flow.run()
        history = read_history(folder / "run/metrics.csv")
        flow.finalize()
    return float(history[-1][f"validation/{task.metric}"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked, with `split_lists`, the test `people`, and for classification who is `large`."""
    parser = argparse.ArgumentParser(description="Which settings of fine-tuning a classifier or detector cost what?")
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with imagesTr and labelsTr")
    parser.add_argument("--split", type=Path, required=True, help='json with the files of "dev" and "test"')
    parser.add_argument("--classes", type=yaml.safe_load, help='for detection: such as "{anterior: 1, posterior: 2}"')
    changes = sorted({*CHANGES, *(name for task in TASKS.values() for name in task.changes)})
    parser.add_argument("--arms", nargs="+", default=["config"], help=f'"config + ...": {", ".join(changes)}')
    parser.add_argument("--labelled", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[100])
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    parser.add_argument("--crop", type=int, nargs=3, default=[48, 64, 48], help="voxels per axis")
    parser.add_argument("--people", type=int, help="only so many test people (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache_dir", type=Path, default=ROOT / ".cache/recipe")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache/recipe/tasks.jsonl")
    options = parser.parse_args(arguments)
    options.split_lists = json.loads(options.split.read_text())
    options.people = options.split_lists["test"][: options.people]
    check(options)
    if options.task == "classification":
        options.large = find_large(options.dataset_dir, options.split_lists["dev"] + options.split_lists["test"])
    return options


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be measured."""
    known = CHANGES.keys() | TASKS[options.task].changes.keys()
    for arm in options.arms:
        base, *changes = arm.split(" + ")
        if base != "config" or not known >= set(changes):
            raise UserError(f"--arms {arm!r} is not known: give config, or config + {' + '.join(sorted(known))}")
    if wrong := [steps for steps in options.steps if steps % min(steps, options.steps_per_epoch)]:
        raise UserError(
            f"--steps {wrong[0]} is no multiple of --steps_per_epoch {options.steps_per_epoch}: change either"
        )
    if options.task == "detection" and not options.classes:
        raise UserError('--classes is missing: detection needs the values of the label maps, such as "{anterior: 1}"')


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    try:
        options = parse(arguments)
        task = TASKS[options.task]
        rows = read_rows(options.output)
        about = {"task": options.task, "data": options.dataset_dir.name, "people": len(options.people)}
        about |= {"labelled": options.labelled}
        cases = [
            {**about, "steps": steps, "arm": arm, "seed": seed}
            for steps in options.steps for seed in options.seeds for arm in options.arms
        ]  # fmt: skip
        missing = [case for case in cases if not any(case.items() <= row.items() for row in rows)]
        for case in tqdm(missing, desc="runs"):
            with torch.random.fork_rng():
                figure = train(case["arm"], case["steps"], case["seed"], options)
            rows.append({**case, task.metric: round(figure, 5)})
            add_row(rows[-1], options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for steps in options.steps:
        wanted = [row for row in rows if {**about, "steps": steps}.items() <= row.items()]
        # the table of recipe.py, of one "class"
        here = [{**row, "dice": [row[task.metric]]} for row in wanted if row["arm"] in options.arms]
        print(f"{steps} steps, {task.title}\n\n{table(here, options.arms[0]).replace('Dice', task.metric)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
