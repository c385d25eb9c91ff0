# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Does pre-training help on your data? Segmentation from scratch against given weights, on people you have labelled.

    python scripts/does_pretraining_help.py --dataset_dir /path/to/labelled --labels 5 10 --seeds 3
    python scripts/does_pretraining_help.py --dataset_dir /path/to/labelled --classes "{liver: 1}" --labels 5 \
        --weights models/model.pt runs/<date>/model.pt --steps 500 --output_dir runs/does_pretraining_help/liver

Some people are held out first, and never trained on. Each seed draws labelled people from the rest. All arms then have
the same people, crops and steps. Weights may be of different networks and origins, published ones among them: each is
compared with a training from scratch of its own network, on volumes prepared alike. The same command, with the same
output_dir, goes on where it was stopped. docs/how-to/does_pretraining_help.md says how to read the page that it writes.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from bundle.atomic import free_path, replace_file
from bundle.data import FoundVolume
from bundle.errors import UserError, install_excepthook
from bundle.evaluation.arms import ArmComparison, compare_arms
from bundle.evaluation.starts import Start, find_starts
from bundle.figures.arms import draw_arms
from bundle.reports import Report
from bundle.tasks.segmentation import find_segmentations, pick_classes
from bundle.training.trial import run_trial

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/finetune_segmentation.yaml"
_HELD_OUT_SEED = 7


@dataclass(frozen=True)
class People:
    """Who is held out, who may be drawn for training, and who chooses the learning rates.

    Args:
        held_out: scans of people who are never trained on, by person.
        pool: likewise of those who may be drawn.
        choosing: likewise of those on whom learning rates are chosen; empty without --lrs.
    """

    held_out: Mapping[str, list[str]]
    pool: Mapping[str, list[str]]
    choosing: Mapping[str, list[str]]

    def draw(self, count: int, seed: int) -> list[str]:
        """The scans of the labelled people of a seed. Those of 5 people are among those of 10."""
        order = sorted(self.pool)
        random.Random(seed).shuffle(order)  # noqa: S311 - no secret
        return [scan for person in order[:count] for scan in self.pool[person]]


def part_people(volumes: Sequence[FoundVolume], held_out: int | None, choosing: bool) -> People:
    """Holds out the people of the list's `test`, or draws some: the same ones whatever else is asked.

    Args:
        volumes: all labelled scans.
        held_out: how many people; None: a third, up to 40.
        choosing: whether some more, a fifth of the rest, are to choose learning rates.

    Raises:
        UserError: if there are too few.
    """
    people: dict[str, list[str]] = {}
    tested = {volume.group or volume.name for volume in volumes if volume.part == "test"}
    for volume in sorted(volumes, key=lambda volume: volume.name):
        people.setdefault(volume.group or volume.name, []).append(volume.name)
    order = sorted(people)
    random.Random(_HELD_OUT_SEED).shuffle(order)  # noqa: S311 - no secret
    count = min(40, len(order) // 3) if held_out is None else held_out
    if not tested:
        if not 0 < count < len(order):
            raise UserError(f"--test_people {count} cannot work with {len(order)} people: hold out some, and keep some")
        tested = {*order[:count]}
    rest = [person for person in order if person not in tested]
    chosen = rest[: max(2, len(rest) // 5)] if choosing else []
    parts = ([p for p in order if p in tested][:held_out], rest[len(chosen) :], chosen)
    return People(*({person: people[person] for person in part} for part in parts))


def key(arm: str, labels: int, seed: int, lr: float | None, purpose: str) -> str:
    """Which run it is."""
    return json.dumps([purpose, arm, labels, seed, lr])


class Experiment:
    """Runs what is missing, and keeps a line of each run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.classes = dict(pick_classes(options.classes, options.dataset_dir))
        if not self.classes:
            raise UserError(f"{options.dataset_dir} has no dataset.json that names classes: give --classes")
        volumes = find_segmentations(options.dataset_dir, "all")
        self.people = part_people(volumes, options.test_people, bool(options.lrs))
        self._check_enough()
        self.arms: dict[str, Start] = find_starts(options.weights)
        self.file = options.output_dir / "runs.jsonl"
        self._check_same()
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.rows = {row["key"]: row for row in map(json.loads, lines)}

    def _check_enough(self) -> None:
        if max(self.options.labels) > len(self.people.pool):
            raise UserError(
                f"--labels {max(self.options.labels)} needs as many people, and {len(self.people.pool)} are left "
                f"beside the {len(self.people.held_out)} held out: give smaller numbers, or fewer --test_people"
            )

    def _check_same(self) -> None:
        """The data, and what changes every run, must be those that the folder was begun with."""
        options, file = self.options, self.options.output_dir / "settings.json"
        now = {
            "dataset_dir": str(options.dataset_dir),
            "classes": self.classes,
            "steps": options.steps,
            "crop_size": options.crop_size,
            "batch_size": options.batch_size,
            "held_out": sorted(scan for scans in self.people.held_out.values() for scan in scans),
            "options": options.overrides,
            **self._preparations(),
        }
        if file.is_file():
            before = json.loads(file.read_text())
            for name, value in json.loads(json.dumps(now)).items():
                if before.get(name) != value:
                    raise UserError(
                        f"{options.output_dir} was begun with {name} {before.get(name)}, and now it is {value}: give "
                        "the same to go on, or another --output_dir"
                    )
            return
        with replace_file(file) as temporary:
            temporary.write_text(json.dumps(now, indent=1) + "\n")

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
        return max(found, key=lambda lr: float(np.mean(list(found[lr]["dice"].values()))))

    def _run_all(self, wanted: Sequence[tuple[str, int, int, float | None, str]], title: str) -> None:
        missing = [case for case in wanted if key(*case) not in self.rows]
        for case in tqdm(missing, desc=title):
            row = {"key": key(*case), **self._run(*case)}
            self.rows[row["key"]] = row
            with replace_file(self.file) as temporary:  # a kill leaves no half of a line
                temporary.write_text("".join(json.dumps(one) + "\n" for one in self.rows.values()))
            tqdm.write(f"{case[0]}, {case[1]} people, seed {case[2]}: Dice {_mean(row):.3f}")

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
        steps = options.steps // epochs
        return {
            "purpose": purpose, "arm": arm, "labels": labels, "seed": seed, "lr": done.lr,
            "dice": {scan: round(float(np.mean(values)), 5) for scan, values in zip(done.names, done.dice)},
            "classes": [round(float(value), 5) for value in np.mean(done.dice, axis=0)],
            "curve": [[row["epoch"] * steps, round(row["validation/dice"], 5)] for row in done.history
                      if "validation/dice" in row],
            "skipped": done.skipped, "seconds": round(time.monotonic() - start),
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
        person = {scan: name for name, scans in self.people.held_out.items() for scan in scans}
        rows = self.measured()
        return [
            compare_arms(
                [row for row in rows if row["labels"] == labels and row["arm"] in (start.scratch, arm)],
                first=start.scratch, second=arm, labels=labels, person=person,
            )
            for labels in self.options.labels for arm, start in self.arms.items() if arm != start.scratch
        ]  # fmt: skip


def _mean(row: Mapping[str, Any]) -> float:
    return float(np.mean(list(row["dice"].values())))


def table(experiment: Experiment) -> list[list[str]]:
    """The heading, and a row for each number of labelled people and arm."""
    rows = [["labelled people", "arm", "begins", "Dice", "per seed", "per class", "learning rate"]]
    measured = experiment.measured()
    for labels in experiment.options.labels:
        for arm in experiment.arms:
            here = [row for row in measured if row["labels"] == labels and row["arm"] == arm]
            classes = np.mean([row["classes"] for row in here], axis=0)
            rows.append([
                str(labels),
                arm,
                experiment.arms[arm].origin,
                f"{np.mean([_mean(row) for row in here]):.3f}",
                ", ".join(f"{_mean(row):.3f}" for row in here),
                ", ".join(f"{name} {value:.3f}" for name, value in zip(experiment.classes, classes)),
                " ".join(sorted({f"{row['lr']:g}" for row in here})),
            ])  # fmt: skip
    return rows


def what_was_done(experiment: Experiment) -> list[str]:
    """How the numbers came about, a line each."""
    options, people = experiment.options, experiment.people
    skipped = sorted({name for row in experiment.measured() for name in row["skipped"]})
    rates = "chosen for each arm by Dice on people who are neither trained on nor measured"
    if not options.lrs:
        rates = "the config's defaults, as the table shows"
    return [
        f"data: {options.dataset_dir}, classes {', '.join(experiment.classes)}",
        f"{len(people.held_out)} people were held out first and never trained on",
        f"{len(people.pool)} people could be drawn",
        f"{options.seeds} seeds: each draws the labelled people, the same ones for all arms, and the order of crops",
        f"{options.steps} steps of {options.batch_size} crops of {options.crop_size}, measured after the last one",
        *_networks(experiment),
        f"learning rates: {rates}",
        "intervals: bootstrap over held-out people and seeds together; p: permutation test over the people",
        "the learning curves are of the first held-out people, and chose nothing",
        *([f"not used: {', '.join(skipped)}"] if skipped else []),
    ]


def _networks(experiment: Experiment) -> list[str]:
    """Which network each arm has, and on which grid it is measured."""
    own = [start for start in experiment.arms.values() if start.weights is not None]
    spacings = {start.name: start.overrides(experiment.options.spacing)["spacing"] for start in own}
    if len({start.scratch for start in own}) == 1:
        return [
            f"all arms have the network of {experiment.options.weights[0]}, and its preparation",
            f"Dice is measured on prepared volumes, of spacing {spacings[own[0].name]}",
        ]
    rows = [
        f"{start.name}: a network with the encoder {start.settings.encoder['name']}, on volumes of spacing "
        f"{spacings[start.name]}, compared with {start.scratch}"
        for start in own
    ]
    if len({str(spacing) for spacing in spacings.values()}) > 1:
        rows.append(
            "Dice is measured on prepared volumes, and their spacings differ: networks compare with each other only "
            "roughly; --spacing measures all on one grid"
        )
    return rows


def write(experiment: Experiment) -> Path:
    """Writes the page, twice, and its picture."""
    folder: Path = experiment.options.output_dir
    title = "Does pre-training help on these data?"
    found = experiment.comparisons()
    sentences, warnings = [one.sentence() for one in found], [one.warning for one in found if one.warning]
    heading, *rows = table(experiment)
    caption = "Dice of each seed, and learning curves"
    done = what_was_done(experiment)
    with replace_file(folder / "report.png") as temporary:
        draw_arms(experiment.measured(), list(experiment.arms)).savefig(temporary, format="png")
    lines = [f"# {title}", "", *(f"**{sentence}**\n" for sentence in sentences)]
    lines += [f"Warning: {warning}.\n" for warning in warnings]
    lines += [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)]
    lines += ["", f"![{caption}](report.png)", "", "## What was done", "", *(f"- {line}" for line in done), ""]
    with replace_file(folder / "report.md") as temporary:
        temporary.write_text("\n".join(lines))
    report = Report(title, lead=" ".join(sentences))
    section = report.section("Result").bullets([f"Warning: {warning}." for warning in warnings])
    section.table(heading, rows).picture(folder / "report.png", caption=caption)
    report.section("What was done").bullets(done)
    return report.write(folder / "report.html")


def config_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of the config, given as --name value.

    Raises:
        UserError: if one is nameless, without a value, or set by this command.
    """
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise UserError(f"{' '.join(words)!r} is not understood: give options of the config as --name value")
    found = {name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(names, values)}
    ours = {"seed", "lr", "epochs", "steps_per_epoch", "pretrained", "encoder", "val_fraction", "folds", "fold"}
    if taken := sorted(ours & found.keys()):
        raise UserError(f"--{taken[0]} is set by this command, alike for all arms: leave it out")
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        description="Does pre-training help on your data? Further options are those of finetune_segmentation.yaml.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="labelled scans, as for finetune_segmentation")
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 10], help="numbers of labelled people")
    parser.add_argument("--seeds", type=int, default=3, help="draws of people (default: 3)")
    parser.add_argument("--weights", nargs="+", default=[str(ROOT / "models/model.pt")],
                        help="model.pt files and known published weights, of one network or several")  # fmt: skip
    parser.add_argument("--steps", type=int, default=500, help="of each training; a multiple of 5 (default: 500)")
    parser.add_argument("--classes", type=yaml.safe_load, default={}, help='such as "{liver: 1}"')
    parser.add_argument("--test_people", type=int, help="to hold out (default: the list's test, or a third, up to 40)")
    parser.add_argument("--crop_size", type=int, nargs=3, default=[96, 96, 96], help="voxels per axis")
    parser.add_argument(
        "--spacing", type=yaml.safe_load, help='mm, such as "[1, 1, 1]", or own (default: the weights\')'
    )
    parser.add_argument("--in_channels", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--lrs", type=float, nargs="+", default=[], help="rates of which each arm gets its best one")
    parser.add_argument("--curve_people", type=int, default=5, help="held-out scans in the learning curves")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--cache_dir", type=Path, default=ROOT / ".cache/does_pretraining_help")
    parser.add_argument(
        "--output_dir", type=Path, help="default: a new folder runs/does_pretraining_help/<date>_<time>"
    )
    options, rest = parser.parse_known_args(arguments)
    options.overrides = config_options(rest)
    if min(*options.labels, options.seeds, options.steps, options.curve_people, 1) < 1:
        raise UserError("--labels, --seeds, --steps and --curve_people count something: give numbers above 0")
    if options.steps > 5 and options.steps % 5:
        raise UserError(f"--steps {options.steps} cannot be measured five times on the way: give a multiple of 5")
    if options.output_dir is None:
        name = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
        options.output_dir = free_path(Path("runs/does_pretraining_help") / name)
    options.labels = sorted(set(options.labels))
    options.weights = [str(Path(weights).absolute()) for weights in options.weights]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    try:
        experiment = Experiment(parse(arguments))
        experiment.run()
        report = write(experiment)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command with the same --output_dir goes on", file=sys.stderr)
        return 130
    print(report.with_suffix(".md").read_text())
    print(f"written: {report}, with report.md, report.png and runs.jsonl beside it")
    return 0


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
