# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Runs all arms on the same people, and keeps a line of each run."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from does_pretraining_help_parts.people import part_people
from does_pretraining_help_parts.same_study import check_same, check_weights, describe_people, describe_weights
from tqdm import tqdm

from bundle.atomic import replace_file
from bundle.data.names import name_digest
from bundle.errors import UserError
from bundle.evaluation.arms import ArmComparison, compare_arms, mean_over_people
from bundle.evaluation.starts import Start, find_starts
from bundle.tasks.segmentation import find_segmentations, pick_classes
from bundle.training.trial import Trial, run_trial

__all__ = ["ROOT", "Experiment"]

#: of the bundle
ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/finetune_segmentation.yaml"


def key(arm: str, labels: int, seed: int, lr: float | None, purpose: str) -> str:
    """Which run it is."""
    return json.dumps([purpose, arm, labels, seed, lr])


class Experiment:
    """Runs what is missing, and keeps a line of each run.

    Args:
        options: of the command.

    Attributes:
        people: who is held out, who may be drawn, and who chooses.
        person: of each scan that is measured, as the rows name scans.
        arms: by their names.
        weights: checksums of the arms' files.
        rows: the runs, by their keys.
        notes: what a reader must know of the folder, a line each.

    Raises:
        UserError: if an option does not fit, or the folder was begun with something else.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.classes = dict(pick_classes(options.classes, options.dataset_dir))
        if not self.classes:
            raise UserError(f"{options.dataset_dir} has no dataset.json that names classes: give --classes")
        volumes = find_segmentations(options.dataset_dir, "all")
        self.people = part_people(volumes, options.test_people, bool(options.lrs))
        hashed = bool(options.overrides.get("hash_names"))
        self.person = {
            name_digest(scan) if hashed else scan: person
            for part in (self.people.held_out, self.people.choosing)
            for person, scans in part.items()
            for scan in scans
        }
        self._check_enough()
        self.arms: dict[str, Start] = find_starts(options.weights)
        self.file = options.output_dir / "runs.jsonl"
        self.weights = describe_weights(self.arms)
        self.notes = check_same(
            options.output_dir, self._settings(), describe_people(self.people, volumes, hashed=hashed), self.weights
        )
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.rows = {row["key"]: row for row in map(json.loads, lines)}

    def _check_enough(self) -> None:
        if max(self.options.labels) > len(self.people.pool):
            raise UserError(
                f"--labels {max(self.options.labels)} needs as many people, and {len(self.people.pool)} are left "
                f"beside the {len(self.people.held_out)} held out: give smaller numbers, or fewer --test_people"
            )

    def _settings(self) -> dict[str, Any]:
        """The options that change every run."""
        options = self.options
        return {
            "dataset_dir": str(options.dataset_dir),
            "classes": self.classes,
            "steps": options.steps,
            "crop_size": options.crop_size,
            "batch_size": options.batch_size,
            "options": options.overrides,
            **self._preparations(),
        }

    def _preparations(self) -> dict[str, Any]:
        """What each network and its volumes are, those of a single network by the names of its options."""
        found = {
            name: start.overrides(self.options.spacing) for name, start in self.arms.items() if name == start.scratch
        }
        return next(iter(found.values())) if len(found) == 1 else {"networks": found}

    def run(self) -> None:
        """Runs all arms; first, with --lrs, those that choose their learning rates."""
        options = self.options
        cases = [(arm, labels) for labels in options.labels for arm in self.arms]
        if options.lrs:
            choosing = [(arm, labels, 0, lr, "choose") for arm, labels in cases for lr in options.lrs]
            self._run_all(choosing, "choosing learning rates")
        wanted = [
            (arm, labels, seed, self.lr(arm, labels), "measure")
            for seed in range(options.seeds)
            for arm, labels in cases
        ]
        self._run_all(wanted, "runs")

    def lr(self, arm: str, labels: int) -> float | None:
        """The learning rate that is best on the people who choose; None, the config's, without --lrs."""
        if not self.options.lrs:
            return None
        found = {lr: self.rows[key(arm, labels, 0, lr, "choose")] for lr in self.options.lrs}
        return max(found, key=lambda lr: np.nan_to_num(self.mean_dice(found[lr]), nan=-1.0))

    def _run_all(self, wanted: Sequence[tuple[str, int, int, float | None, str]], title: str) -> None:
        missing = [case for case in wanted if key(*case) not in self.rows]
        for case in tqdm(missing, desc=title):
            arm = {case[0]: self.arms[case[0]]}
            check_weights(self.options.output_dir, self.weights, describe_weights(arm))  # they may be trained on now
            row = {"key": key(*case), **self._run(*case)}
            self.rows[row["key"]] = row
            with replace_file(self.file) as temporary:  # a kill leaves no half of a line
                temporary.write_text("".join(json.dumps(one) + "\n" for one in self.rows.values()))
            tqdm.write(f"{case[0]}, {case[1]} people, seed {case[2]}: Dice {self.mean_dice(row):.3f}")

    def _run(self, arm: str, labels: int, seed: int, lr: float | None, purpose: str) -> dict[str, Any]:
        options, start = self.options, time.monotonic()
        measured = self.people.choosing if purpose == "choose" else self.people.held_out
        epochs = min(5, options.steps)
        with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
            overrides: dict[str, Any] = {
                **self.arms[arm].overrides(options.spacing),
                "bundle_root": str(ROOT),
                "dataset_dir": str(options.dataset_dir),
                "output_dir": str(Path(name) / "run"),
                "cache_dir": str(options.cache_dir),
                "classes": self.classes,
                "in_channels": options.in_channels,
                "crop_size": options.crop_size,
                "batch_size": options.batch_size,
                "pretrained": self.arms[arm].weights,
                "seed": seed,
                "lr": lr,
                "epochs": epochs,
                "steps_per_epoch": options.steps // epochs,
                "val_interval": 1,
                "num_workers": options.num_workers,
                "device": options.device,
                "find_segmentations": {
                    "_target_": "bundle.data.choose.choose_volumes",
                    "_mode_": "callable",
                    "find": {
                        "_target_": "bundle.tasks.segmentation.find_segmentations", "_mode_": "callable", "part": "all"
                    },
                    "training": self.people.draw(labels, seed),
                    "validation": [scan for scans in measured.values() for scan in scans],
                },
                **options.overrides,
            }  # fmt: skip
            more = [str(CONFIG.with_name(file))] if (file := self.arms[arm].config) else []
            done = run_trial(
                [str(CONFIG), *more],
                overrides,
                crop=options.crop_size,
                classes=len(self.classes),
                shown=options.curve_people,
            )
        return {
            "purpose": purpose, "arm": arm, "labels": labels, "seed": seed, "lr": done.lr,
            **self._figures(done, options.steps // epochs),
            "skipped": done.skipped, "seconds": round(time.monotonic() - start),
        }  # fmt: skip

    def _figures(self, done: Trial, steps: int) -> dict[str, Any]:
        """Dice of each scan, of each class over people, and on the way; None where neither scan nor network has one."""
        by_class = [{scan: _known(row[number]) for scan, row in zip(done.names, done.dice)}
                    for number in range(len(self.classes))]  # fmt: skip
        return {
            "dice": {scan: _known(float(np.mean([one for one in row if not math.isnan(one)] or [math.nan])))
                     for scan, row in zip(done.names, done.dice)},
            "classes": [_known(mean_over_people(dice, self.person)) for dice in by_class],
            "curve": [[row["epoch"] * steps, round(row["validation/dice"], 5)] for row in done.history
                      if math.isfinite(row.get("validation/dice", math.nan))],
        }  # fmt: skip

    def measured(self) -> list[dict[str, Any]]:
        """The runs that were asked for."""
        wanted = [
            key(arm, labels, seed, self.lr(arm, labels), "measure")
            for labels in self.options.labels for arm in self.arms for seed in range(self.options.seeds)
        ]  # fmt: skip
        return [self.rows[one] for one in wanted if one in self.rows]

    def comparisons(self) -> list[ArmComparison]:
        """Each weights file against scratch, for each number of labelled people."""
        rows = self.measured()
        return [
            compare_arms(
                [row for row in rows if row["labels"] == labels and row["arm"] in (start.scratch, arm)],
                first=start.scratch, second=arm, labels=labels, person=self.person,
            )
            for labels in self.options.labels for arm, start in self.arms.items() if arm != start.scratch
        ]  # fmt: skip

    def mean_dice(self, row: Mapping[str, Any]) -> float:
        """Of a run: the mean over people of the mean over their scans; NaN if no scan has a value."""
        return mean_over_people(row["dice"], self.person)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)
