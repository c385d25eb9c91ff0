# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net on the people of recipe.py, for so many minutes of one core.

    python -m venv nnunet && nnunet/bin/pip install torch==2.13.0 nnunetv2==2.8.1
    taskset -c 0 python scripts/studies/nnunet_peer.py --nnunet nnunet/bin --dataset_dir Task04_Hippocampus \
        --split split.json --classes "{anterior: 1, posterior: 2}" --labelled 5 --seed 0 --minutes 5

torchvision has to be built as torch is, both for CPUs or both for the same CUDA. Without such a one, uninstall
torchvision and delete nnU-Net's folder nnunetv2/training/nnUNetTrainer/primus, whose networks alone need it.

nnU-Net plans and prepares by itself. It trains on all labelled people for --minutes of processor time, with its own
course of the learning rate over that time, and segments the test people as it does by default, with mirrors. Planning,
preparation and segmentation do not count. --batch_size 2 gives it more and smaller steps than it plans. The Dice is
recipe.py's. Rows are appended to --output, as recipe.py's are, with "steps" as done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from recipe import draw_people

from bundle.errors import UserError
from bundle.training.trial import class_means, dice

TRAINERS = Path(__file__).resolve().parent / "nnunet_trainers"
NAME, TRAINER = "Dataset001_peer", "nnUNetTrainerMinutes"
PLANS = {"ExperimentPlanner": "nnUNetPlans", "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans"}


def write_raw(options: argparse.Namespace, people: Sequence[str], folder: Path) -> None:
    """The labelled people, and the images of the test people, in nnU-Net's layout."""
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for names, images in ((people, "imagesTr"), (options.people, "imagesTs")):
        for name in names:
            source = options.dataset_dir / "imagesTr" / name
            shutil.copyfile(source, folder / images / name.replace(".nii.gz", "_0000.nii.gz"))
    for name in people:
        shutil.copyfile(options.dataset_dir / "labelsTr" / name, folder / "labelsTr" / name)
    about: dict[str, Any] = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **options.classes}}
    (folder / "dataset.json").write_text(json.dumps({**about, "numTraining": len(people), "file_ending": ".nii.gz"}))


def call(options: argparse.Namespace, command: str, *words: Any) -> str:
    """Runs a command of nnU-Net on one core, with its folders in the work folder; gives what it printed."""
    folders = {f"nnUNet_{part}": str(options.work_dir / part) for part in ("raw", "preprocessed", "results")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "nnUNet_def_n_proc"), "1")
    augmenting = "0" if command == "nnUNetv2_train" else "1"  # 0: in the process that trains; planning wants one
    own = {"nnUNet_n_proc_DA": augmenting, "nnUNet_compile": "f", "nnUNet_extTrainer": str(TRAINERS)}
    environment = {**os.environ, **folders, **threads, **own, "PEER_MINUTES": str(options.minutes)}
    done = subprocess.run(
        [str(options.nnunet / command), *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise UserError(f"{options.nnunet / command} failed, it says: {said[-1]}")
    return done.stdout


def train(options: argparse.Namespace, people: Sequence[str]) -> int:
    """Plans, prepares and trains; gives the number of steps."""
    write_raw(options, people, options.work_dir / "raw" / NAME)
    plans = PLANS[options.planner]
    call(options, "nnUNetv2_plan_and_preprocess", "-d", 1, "-c", "3d_fullres", "-pl", options.planner, "-np", 1)
    if options.batch_size:
        file = options.work_dir / "preprocessed" / NAME / f"{plans}.json"
        content = json.loads(file.read_text())
        content["configurations"]["3d_fullres"]["batch_size"] = options.batch_size
        file.write_text(json.dumps(content))
    said = call(options, "nnUNetv2_train", 1, "3d_fullres", "all", "-tr", TRAINER, "-p", plans, "-device", "cpu")
    found = re.search(r"peer: (\d+) steps", said)
    if found is None:
        raise UserError("nnUNetv2_train has not trained with scripts/studies/nnunet_trainers: install nnunetv2 >= 2.8")
    return int(found[1])


def measure(options: argparse.Namespace) -> list[float]:
    """Segments the test people; gives the mean Dice of each class over those who have it."""
    output = options.work_dir / "segmented"
    words = ["-d", 1, "-c", "3d_fullres", "-f", "all", "-tr", TRAINER, "-p", PLANS[options.planner], "-device", "cpu"]
    call(options, "nnUNetv2_predict", "-i", options.work_dir / "raw" / NAME / "imagesTs", "-o", output, *words,
         "-npp", 1, "-nps", 1)  # fmt: skip
    rows = []
    for name in options.people:
        found, label = (
            torch.from_numpy(np.asarray(nibabel.load(file).dataobj).astype(np.int64))
            for file in (output / name, options.dataset_dir / "labelsTr" / name)
        )
        rows.append(dice(found, label, len(options.classes)))
    return class_means(rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with `split_lists` and the test `people`."""
    parser = argparse.ArgumentParser(description="nnU-Net on the people of recipe.py, for minutes of one core.")
    parser.add_argument("--nnunet", type=Path, required=True, help="folder of nnUNetv2_train and the others")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with imagesTr and labelsTr")
    parser.add_argument("--split", type=Path, required=True, help='json with the files of "dev" and "test"')
    parser.add_argument("--classes", type=yaml.safe_load, required=True, help='such as "{anterior: 1, posterior: 2}"')
    parser.add_argument("--labelled", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0, help="of processor time, for training")
    parser.add_argument("--planner", choices=PLANS, default="ExperimentPlanner")
    parser.add_argument("--batch_size", type=int, help="crops per step (default: as planned)")
    parser.add_argument("--people", type=int, help="only so many test people (default: all)")
    parser.add_argument("--output", type=Path, default=Path(".cache/recipe/peer.jsonl"))
    options = parser.parse_args(arguments)
    options.split_lists = json.loads(options.split.read_text())
    options.people = options.split_lists["test"][: options.people]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse(arguments)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            options.work_dir = Path(folder)
            steps = train(options, draw_people(options.split_lists, options.labelled, options.seed))
            found = measure(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arm = f"nnU-Net, {options.planner}, batch {options.batch_size or 'as planned'}, {options.minutes:g} min"
    row = {"data": options.dataset_dir.name, "people": len(options.people), "labelled": options.labelled, "arm": arm}
    row |= {"steps": steps, "seed": options.seed, "dice": found, "seconds": round(time.monotonic() - start)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
