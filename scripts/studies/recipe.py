# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which settings of configs/finetune_segmentation.yaml cost what? One change at a time, beside a plain script.

    python scripts/studies/recipe.py --dataset_dir Task04_Hippocampus --split split.json --plain plain_finetune.py \
        --classes "{anterior: 1, posterior: 2}" --crop 32 48 32 --labelled 5 --seeds 0 1 2 --steps 300 \
        --arms plain config "config + all mirrors"

`split.json` lists the files of "dev", of which a seed draws the labelled people, and of "test". An arm is "plain", the
script given as --plain, or "config" with changes of CHANGES, joined by " + ". All arms of a seed have the same people,
number of steps, crop and network. Whole test volumes are segmented by sliding windows on their files' grid. Runs that
are in --output already are not repeated, so the command may be interrupted and extended. recipe.md has what was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from scipy.stats import ttest_rel
from tqdm import tqdm

from bundle.errors import UserError
from bundle.training.trial import class_means, run_trial

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/finetune_segmentation.yaml"


def _list(steps: str) -> list[dict[str, Any]]:
    """The transforms in a list of the config."""
    content: Any = yaml.safe_load(CONFIG.read_text())
    for key in steps.split("#"):
        content = content[key]
    return list(content)


def _place(steps: str, target: str, number: int = 0) -> str:
    """The id of a transform in a list of the config, by its class and its number among those of that class."""
    return f"{steps}#{[i for i, step in enumerate(_list(steps)) if step['_target_'] == target][number]}"


def _after(place: str, step: dict[str, Any]) -> dict[str, Any]:
    """A list of the config with one more transform behind that of an id."""
    steps, number = place.rsplit("#", 1)
    found = _list(steps)
    found.insert(int(number) + 1, step)
    return {steps: found}


_PREPARE, _TRAIN = "prepare#transforms", "train#preprocessing#transforms"
_NORMALIZE = _place(_PREPARE, "bundle.data.normalization")
_CROP_BODY = _place(_PREPARE, "monai.transforms.CropForegroundd")
_PAD = _place(_PREPARE, "bundle.data.PadToCropd")
_CROP = _place(_TRAIN, "monai.transforms.RandCropByLabelClassesd")
_AFFINE, _NOISE, _SCALE, _SHIFT = (
    _place(_TRAIN, f"monai.transforms.{name}d")
    for name in ("RandAffine", "RandGaussianNoise", "RandScaleIntensity", "RandShiftIntensity")
)
_BOTH = {"keys": ["image", "label"]}
_ELASTIC = {
    "_target_": "monai.transforms.Rand3DElasticd",
    **_BOTH,
    "prob": 0.3,
    "sigma_range": [5, 8],  # voxels
    "magnitude_range": [100, 300],  # of the noise, which the blur leaves one or two voxels of
    "mode": ["bilinear", "nearest"],
    "padding_mode": "border",
}


#: what a part of an arm's name changes in the config
CHANGES: dict[str, dict[str, Any]] = {
    "all mirrors": {"mirror_axes": [0, 1, 2]},
    "mirrors left to right": {"mirror_axes": [0]},
    "warm-up of 5 epochs": {"warmup_epochs": 5},
    "random heads": {"fit_heads": 0},
    "random crops": {
        _CROP: {"_target_": "monai.transforms.RandSpatialCropd", **_BOTH, "roi_size": "@checked_crop_size"}
    },
    "whole-volume z-score": {
        _NORMALIZE: {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {
                    "_target_": "monai.transforms.ClipIntensityPercentilesd",
                    "keys": "image",
                    "lower": 0.5,
                    "upper": 99.5,
                },
                {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image"},
            ],
        }
    },
    "floor of 3 deviations": {"mr_floor": 3.0},
    "no crop to the body": {f"{_CROP_BODY}#margin": 1000},
    "shipped weights": {"pretrained": str(ROOT / "models/model.pt")},
    "encoder alone": {"pretrained_decoder": False},
    "sawtooth": {"schedule": "sawtooth"},
    "layer decay 0.75": {"layer_decay": 0.75},
    "no deep supervision": {"network_def#dsdepth": 1},
    "heads x 10": {"head_lr_factor": 10.0},
    "rate 3e-4": {"lr": 3.0e-4},
    "rate 5e-4": {"lr": 5.0e-4},
    "rate 1e-3": {"lr": 1.0e-3},
    "rate 2e-3": {"lr": 2.0e-3},
    "rate 3e-3": {"lr": 3.0e-3},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 0.01": {"weight_decay": 0.01},
    "batch 4": {"batch_size": 4},
    "no affine": {f"{_AFFINE}#prob": 0.0},
    "affine always": {f"{_AFFINE}#prob": 1.0},
    "affine in the slices": {f"{_AFFINE}#rotate_range": [0.0, 0.0, 0.3], f"{_AFFINE}#scale_range": [0.2, 0.2, 0.0]},
    "elastic": _after(_AFFINE, _ELASTIC),
    "intensities x 2": {f"{_NOISE}#std": 0.1, f"{_SCALE}#factors": 0.3, f"{_SHIFT}#offsets": 0.3},
    "no intensities": {f"{name}#prob": 0.0 for name in (_NOISE, _SCALE, _SHIFT)},
    "strides alike": {"encoder#resolution": None},  # also of thick slices: recipe_sets.py
    "spacing 1.25": {"spacing": [1.25, 1.25, 1.25]},  # that of the shipped weights
    "two channels": {"in_channels": 2},  # where the images have them: recipe_sets.py
}


def draw_people(split: Mapping[str, Sequence[str]], labelled: int, seed: int) -> list[str]:
    """The labelled people of a seed: the same ones in every arm."""
    return random.Random(100 + seed).sample(split["dev"], labelled)  # noqa: S311 - as the plain script draws


def write_list(options: argparse.Namespace, people: Sequence[str], folder: Path) -> Path:
    """A data list of the labelled people, and of the test people as validation."""
    pairs = [
        [
            {part: str((options.dataset_dir / f"{part}sTr" / name).absolute()) for part in ("image", "label")}
            for name in names
        ]
        for names in (people, options.people)
    ]
    file = folder / "dataset.json"
    file.write_text(json.dumps({"training": pairs[0], "validation": pairs[1]}))
    return file


def train_config(changes: Sequence[str], seed: int, options: argparse.Namespace) -> tuple[list[list[float]], float]:
    """Trains with the config, changed.

    Returns:
        The Dice of every test volume and class after the last step, and the processor's seconds of the training.
    """
    people = draw_people(options.split_lists, options.labelled, seed)
    epoch = min(options.steps, options.steps_per_epoch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides: dict[str, Any] = {
            "bundle_root": str(ROOT),
            "dataset_dir": str(write_list(options, people, folder)),
            "output_dir": str(folder / "run"),
            "cache_dir": str(options.cache_dir),
            "classes": options.classes,
            "spacing": "own",  # the grid of the files
            "crop_size": options.crop,
            "pretrained": None,
            "seed": seed,
            "epochs": options.steps // epoch,
            "steps_per_epoch": epoch,
            "val_interval": options.steps // epoch,
            "num_workers": 0,
            "device": options.device,
        }
        for change in changes:
            overrides |= CHANGES[change]
        done = run_trial([str(CONFIG)], overrides, crop=options.crop, classes=len(options.classes))
    return done.dice, done.cpu_seconds


def train_plain(seed: int, options: argparse.Namespace) -> list[list[float]]:
    """Runs the plain script as it is; gives its Dice of each class, the mean over the test people, in one row."""
    with tempfile.TemporaryDirectory() as name:
        split = Path(name) / "split.json"
        split.write_text(json.dumps({"dev": options.split_lists["dev"], "test": options.people}))
        command: list[Any] = [sys.executable, options.plain, options.dataset_dir, split, "--labelled", options.labelled]
        command += ["--seed", seed, "--steps", options.steps, "--crop", *options.crop]
        command += ["--classes", len(options.classes) + 1]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    found = re.search(r"Dice [\d.]+ \[([\d. ]+)\]", done.stdout)
    if done.returncode or found is None:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise UserError(f"--plain {options.plain} does not give its Dice, but: {said[-1]}")
    return [[float(value) for value in found[1].split()]]


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the output."""
    start, more = time.monotonic(), {}
    with torch.random.fork_rng():
        if arm == "plain":
            rows = train_plain(seed, options)
        else:
            rows, seconds = train_config(arm.split(" + ")[1:], seed, options)
            more = {"cpu_seconds": round(seconds)}  # without preparation and the test: as nnunet_peer.py counts
    return {**_case(arm, seed, options), "dice": class_means(rows), "seconds": round(time.monotonic() - start), **more}


def _case(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": options.dataset_dir.name,
        "people": len(options.people),
        "labelled": options.labelled,
        "steps": options.steps,
        "arm": arm,
        "seed": seed,
    }


def table(rows: Sequence[Mapping[str, Any]], first: str) -> str:
    """Mean over seeds of each arm, and the paired difference to the first arm, as Markdown."""
    lines = ["| arm | Dice, % | per seed | per class | against " + first + " | p |", "|---|---|---|---|---|---|"]
    arms: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["seed"]] = row
    mean = {arm: {seed: 100 * float(np.mean(row["dice"])) for seed, row in here.items()} for arm, here in arms.items()}
    for arm, here in mean.items():
        seeds = sorted(here)
        classes = 100 * np.mean([arms[arm][seed]["dice"] for seed in seeds], axis=0)
        pairs = [(here[seed], mean[first][seed]) for seed in seeds if seed in mean.get(first, {})]
        compared = ["", ""]
        if arm != first and pairs:
            differences = np.subtract(*np.transpose(pairs))
            p = f"{ttest_rel(*np.transpose(pairs)).pvalue:.2g}" if len(pairs) > 1 else ""
            compared = [f"{differences.mean():+.1f} ({', '.join(f'{d:+.1f}' for d in differences)})", p]
        each = ", ".join(f"{seed}: {here[seed]:.1f}" for seed in seeds)
        cells = [arm, f"{np.mean(list(here.values())):.1f}", each, ", ".join(f"{c:.1f}" for c in classes), *compared]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_rows(output: Path) -> list[dict[str, Any]]:
    """The runs that are in the file already."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def add_row(row: Mapping[str, Any], output: Path) -> None:
    """Writes a run to the end of the file, and below the bar."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        file.write(json.dumps(row) + "\n")
    tqdm.write(json.dumps(row))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked, with `split_lists` and the test `people`."""
    parser = argparse.ArgumentParser(description="Which settings of fine-tuning cost what, one change at a time.")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with imagesTr and labelsTr")
    parser.add_argument("--split", type=Path, required=True, help='json with the files of "dev" and "test"')
    parser.add_argument("--classes", type=yaml.safe_load, required=True, help='such as "{anterior: 1, posterior: 2}"')
    parser.add_argument("--plain", type=Path, help='the script of the arm "plain"')
    parser.add_argument("--arms", nargs="+", default=["config"], help=f'"plain", "config + ...": {", ".join(CHANGES)}')
    parser.add_argument("--labelled", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    parser.add_argument("--crop", type=int, nargs=3, default=[32, 48, 32], help="voxels per axis")
    parser.add_argument("--people", type=int, help="only so many test people (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache_dir", type=Path, default=ROOT / ".cache/recipe")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache/recipe/runs.jsonl")
    options = parser.parse_args(arguments)
    options.split_lists = json.loads(options.split.read_text())
    options.people = options.split_lists["test"][: options.people]
    check(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be measured."""
    for arm in options.arms:
        base, *changes = arm.split(" + ")
        if arm != "plain" and (base != "config" or not CHANGES.keys() >= set(changes)):
            raise UserError(f"--arms {arm!r} is not known: give plain, config, or config + {' + '.join(CHANGES)}")
        if arm == "plain" and options.plain is None:
            raise UserError("--arms plain needs a script: give it with --plain")
    if options.steps % min(options.steps, options.steps_per_epoch):
        raise UserError(
            f"--steps {options.steps} is no multiple of --steps_per_epoch {options.steps_per_epoch}: change either"
        )
    if list(options.classes.values()) != list(range(1, len(options.classes) + 1)):
        raise UserError(f"--classes {options.classes} does not fit: the plain script needs the values 1, 2, ...")
    for name in options.people:
        if nibabel.aff2axcodes(nibabel.load(options.dataset_dir / "imagesTr" / name).affine) != ("R", "A", "S"):
            raise UserError(f"{name} is not in the orientation RAS: the arms would mirror other axes")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    try:
        options = parse(arguments)
        rows = read_rows(options.output)
        cases = [(arm, seed) for arm in options.arms for seed in options.seeds]
        done = [{key: row[key] for key in _case("", 0, options)} for row in rows]
        for arm, seed in tqdm([case for case in cases if _case(*case, options) not in done], desc="runs"):
            rows.append(run(arm, seed, options))
            add_row(rows[-1], options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wanted = [row for row in rows if _case(row["arm"], row["seed"], options).items() <= row.items()]
    print(table([row for row in wanted if row["arm"] in options.arms], options.arms[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
