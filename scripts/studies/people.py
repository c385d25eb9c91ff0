# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Do pre-trained weights help where people are labelled? Few labelled people, many kept back, several draws.

    python scripts/studies/people.py --dataset_dir Task04_Hippocampus --split split.json --crop 32 48 32 \
        --classes "{anterior: 1, posterior: 2}" --weights corpus=models own=runs/own_0 own=runs/own_1 \
        --arms scratch corpus "corpus, encoder alone" own --labelled 1 2 5 20 --steps 100 300 2000

`split.json` lists the files of "dev", of which a draw takes the labelled people, and of "test". `--weights` names the
folders of pre-trainings; of several with one name each draw takes the next one. An arm is "scratch", a name of
--weights, or that with ", encoder alone"; "unlabelled" is scratch with the other people of "dev" as unlabelled ones,
and "NAME, unlabelled" the same from weights. "self-trained" and "NAME, self-trained" train twice, each time so many
steps: the first network labels the other people of "dev", and the second trains on them and on the labelled ones. With
"NAME first, self-trained" the first one alone starts from weights. The ceiling is scratch with all of "dev" labelled
(`--labelled all`).

With several --rates an arm's rate is chosen for each number of people and steps, on people who are neither labelled nor
tested on. Every run is a line of --output, and is not repeated: the command may be stopped and extended, and two may
run side by side with `--share 0 2` and `--share 1 2`. people.md has what was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import yaml
from monai.bundle import ConfigWorkflow
from scipy.stats import ttest_rel
from tqdm import tqdm

from bundle.data.names import without_ending
from bundle.errors import UserError
from bundle.training.trial import Trial, class_means, run_trial

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/finetune_segmentation.yaml"
WITH_UNLABELLED = ROOT / "configs/finetune_unlabelled.yaml"
PREDICT = ROOT / "configs/predict_segmentation.yaml"
ENCODER = ", encoder alone"
UNLABELLED = "unlabelled"
SELF_TRAINED = "self-trained"
FIRST = f" first, {SELF_TRAINED}"


class Case(NamedTuple):
    """One training. `labelled` is a number of people, or "all"; `rate` None is the arm's best one."""

    arm: str
    labelled: int | str
    steps: int
    draw: int
    rate: float | None = None
    tuning: bool = False


def draw_people(options: argparse.Namespace, case: Case) -> tuple[list[str], list[str]]:
    """The labelled people of a case and those to measure: the same ones for every arm."""
    dev = options.lists["dev"]
    generator = random.Random(100 + case.draw)  # noqa: S311 - as recipe.py draws
    labelled = list(dev) if case.labelled == "all" else generator.sample(dev, int(case.labelled))
    if not case.tuning:
        return labelled, options.people
    others = [name for name in dev if name not in labelled]
    if len(others) < options.tuning_people:
        # all are labelled: some of them are taken out to choose the rate on
        others = generator.sample(dev, min(options.tuning_people, len(dev) - 1))
        labelled = [name for name in labelled if name not in others]
    return labelled, generator.sample(others, options.tuning_people)


def train(case: Case, options: argparse.Namespace) -> Trial:
    """Fine-tunes and measures one case."""
    people, measured = draw_people(options, case)
    others = [one for one in options.lists["dev"] if one not in people + measured]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        unlabelled = Path(folder) / "unlabelled.json"
        unlabelled.write_text(json.dumps({"training": [entry["image"] for entry in list_files(options, others)]}))
        labelled, test = (list_files(options, names) for names in (people, measured))
        if not case.arm.endswith(SELF_TRAINED):
            more = {"unlabelled_dir": str(unlabelled)} if is_unlabelled(case.arm) else {}
            return fine_tune(case, options, Path(folder) / "run", labelled, test, more)
        teacher = fine_tune(case, options, Path(folder) / "teacher", labelled, test[:1])
        labelled += predict(Path(folder) / "teacher", unlabelled, Path(folder) / "predicted", options)
        second = case._replace(arm=SELF_TRAINED) if case.arm.endswith(FIRST) else case
        student = fine_tune(second, options, Path(folder) / "run", labelled, test)
        return replace(student, cpu_seconds=student.cpu_seconds + teacher.cpu_seconds)


def fine_tune(
    case: Case,
    options: argparse.Namespace,
    folder: Path,
    labelled: Sequence[Mapping[str, str]],
    test: Sequence[Mapping[str, str]],
    more: Mapping[str, Any] | None = None,
) -> Trial:
    """Trains on some files and measures others; `folder` becomes that of the run. `more` are further values by id."""
    name, epoch = start_of(case.arm), min(case.steps, options.steps_per_epoch)
    file = folder.with_suffix(".json")
    file.write_text(json.dumps({"training": labelled, "validation": test}))
    overrides: dict[str, Any] = {
        "bundle_root": str(ROOT),
        "dataset_dir": str(file),
        "output_dir": str(folder),
        "cache_dir": str(options.cache_dir),
        "classes": options.classes,
        "spacing": "own",  # the grid of the files
        "crop_size": options.crop,
        "pretrained": None if name == "scratch" else str(pick_weights(name, case.draw, options)),
        "pretrained_decoder": not case.arm.endswith(ENCODER),
        "seed": case.draw,
        "lr": case.rate,
        "epochs": case.steps // epoch,
        "steps_per_epoch": epoch,
        "val_interval": case.steps // epoch,
        "num_workers": 0,
        "device": options.device,
        **(more or {}),
    }
    configs = [str(CONFIG), *([str(WITH_UNLABELLED)] if more else [])]
    return run_trial(configs, overrides, crop=options.crop, classes=len(options.classes), distances=not case.tuning)


def predict(model: Path, scans: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    """Labels scans by a run, as a user does; gives the files as a data list has them."""
    given: dict[str, Any] = {"bundle_root": str(ROOT), "model": str(model), "dataset_dir": str(scans)}
    given |= {"output_dir": str(folder), "device": options.device, "overlap": 0.25, "report_scans": 0}
    flow = ConfigWorkflow(str(PREDICT), workflow_type="infer", logging_file=False, **given)
    flow.initialize()
    flow.run()
    flow.finalize()
    images = [Path(image) for image in json.loads(scans.read_text())["training"]]
    maps = {without_ending(found.name): found for found in (folder / "label_maps").rglob("*.nii.gz")}
    labels = {str(image): maps.get(without_ending(image.name)) for image in images}
    return [{"image": image, "label": str(label)} for image, label in labels.items() if label is not None]


def list_files(options: argparse.Namespace, names: Sequence[str]) -> list[dict[str, str]]:
    """The files of people, as a data list has them."""
    parts = ("image", "label")
    return [{part: str((options.dataset_dir / f"{part}sTr" / one).absolute()) for part in parts} for one in names]


def is_unlabelled(arm: str) -> bool:
    """Whether the people of "dev" that are not labelled are trained on without their labels."""
    return arm.endswith(UNLABELLED)


def start_of(arm: str) -> str:
    """What an arm starts from: a name of --weights, or scratch."""
    name = arm.removesuffix(FIRST)
    for suffix in (ENCODER, f", {UNLABELLED}", f", {SELF_TRAINED}"):
        name = name.removesuffix(suffix)
    return "scratch" if name in (UNLABELLED, SELF_TRAINED) else name


def pick_weights(name: str, draw: int, options: argparse.Namespace) -> Path:
    """The pre-training of that name that a draw starts from; several take turns."""
    folders: list[Path] = options.pretrained[name]
    return folders[draw % len(folders)]


class Results:
    """The lines of --output that belong to this data set: each run once, whatever was asked for before."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.file = options, options.output
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.rows = [row for row in map(json.loads, lines) if self._about(row) == self._about()]

    def _about(self, row: Mapping[str, Any] | None = None) -> list[Any]:
        if row is not None:
            return [row["data"], row["people"]]
        return [self.options.dataset_dir.name, len(self.options.people)]

    def find(self, case: Case) -> dict[str, Any] | None:
        """The row of a case, if it has been run."""
        wanted = case._asdict()
        return next((row for row in self.rows if {key: row[key] for key in wanted} == wanted), None)

    def run(self, case: Case) -> dict[str, Any]:
        """Runs a case unless it has been run; gives its row."""
        if (row := self.find(case)) is not None:
            return row
        start = time.monotonic()
        done = train(case, self.options)
        name = start_of(case.arm)
        data, people = self._about()
        row = {
            "data": data,
            "people": people,
            **case._asdict(),
            "pretraining": "" if name == "scratch" else pick_weights(name, case.draw, self.options).parent.name,
            "dice": class_means(done.dice),
            "hausdorff95": None if done.hausdorff95 is None else class_means(done.hausdorff95),
            "seconds": round(time.monotonic() - start),
            "cpu_seconds": round(done.cpu_seconds),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row

    def choose_rate(self, case: Case) -> float:
        """The rate with which the arm is best on people who are neither labelled nor tested on; first draw."""
        rates: list[float] = self.options.rates
        if len(rates) == 1:
            return rates[0]
        trials = {rate: case._replace(draw=self.options.draws[0], rate=rate, tuning=True) for rate in rates}
        return max(rates, key=lambda rate: fmean(self.run(trials[rate])["dice"]))


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """All cases: budgets first, so that a study that is stopped has whole rows."""
    for steps in options.steps:
        for labelled in options.labelled:
            for draw in options.draws:
                arms = ["scratch"] if labelled == "all" else options.arms
                if labelled == "all" and draw > options.draws[0]:
                    continue  # the people are the same in all draws
                for arm in arms:
                    yield Case(arm, labelled, steps, draw)


def say_costs(cases: Sequence[Case], results: Results) -> str:
    """How long the arms will take, by the runs that there are."""
    known: dict[int, list[float]] = defaultdict(list)
    for row in results.rows:
        known[row["steps"]].append(row["seconds"])
    lines = []
    for steps in sorted({case.steps for case in cases}):
        here = [case for case in cases if case.steps == steps]
        each = f"about {fmean(known[steps]):.0f} s each" if known[steps] else "time not known yet"
        total = f", {len(here) * fmean(known[steps]) / 60:.0f} minutes in all" if known[steps] else ""
        lines.append(f"{len(here)} runs of {steps} steps: {each}{total}")
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over draws as Markdown, against scratch in the same draws, and the share of the gap that is closed."""
    lines = [
        "| labelled | steps | arm | draws | Dice, % | 95 % Hausdorff, mm | against scratch | p | share of the gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[Any, int, str], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        if not row["tuning"]:
            found[row["labelled"], row["steps"], row["arm"]][row["draw"]] = row
    for labelled, steps, arm in sorted(found, key=lambda key: (str(key[0]).zfill(4), key[1], key[2] != "scratch")):
        here, base = found[labelled, steps, arm], found.get((labelled, steps, "scratch"), {})
        dice = {draw: 100 * fmean(row["dice"]) for draw, row in here.items()}
        pairs = [(dice[d], 100 * fmean(base[d]["dice"])) for d in sorted(dice) if d in base]
        cells = ["", "", ""]
        if arm != "scratch" and pairs:
            gain = fmean(a - b for a, b in pairs)
            p = f"{ttest_rel(*zip(*pairs)).pvalue:.2g}" if len(pairs) > 1 else ""
            ceiling = found.get(("all", steps, "scratch"))
            share = ""
            if ceiling:
                gap = 100 * fmean(next(iter(ceiling.values()))["dice"]) - fmean(b for _, b in pairs)
                share = f"{gain / gap:.0%}" if gap > 0 else "no gap"
            cells = [f"{gain:+.1f} ({', '.join(f'{a - b:+.1f}' for a, b in pairs)})", p, share]
        distance = fmean(fmean(row["hausdorff95"]) for row in here.values())
        means = [f"{fmean(dice.values()):.1f}", f"{distance:.1f}"]
        lines.append(f"| {' | '.join([str(labelled), str(steps), arm, str(len(here)), *means, *cells])} |")
    return "\n".join(lines)


def steps_to_reach(rows: Sequence[Mapping[str, Any]], target: int) -> str:
    """In how many steps, of those that were run, each arm is as good as scratch in `target` steps."""
    means: dict[tuple[Any, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not row["tuning"]:
            means[row["labelled"], row["arm"]][row["steps"]].append(fmean(row["dice"]))
    lines = []
    for (labelled, arm), steps in means.items():
        goal = means.get((labelled, "scratch"), {}).get(target)
        if arm == "scratch" or not goal:
            continue
        reached = [number for number in sorted(steps) if fmean(steps[number]) >= fmean(goal)]
        said = f"in {reached[0]} steps" if reached else f"not within {max(steps)} steps"
        lines.append(f"{labelled} labelled, {arm}: scratch's figure of {target} steps is reached {said}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked, with `lists` of the split, the test `people` and `pretrained` folders by name."""
    parser = argparse.ArgumentParser(description="Do pre-trained weights help with few labelled people?")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with imagesTr and labelsTr")
    parser.add_argument("--split", type=Path, required=True, help='json with the files of "dev" and "test"')
    parser.add_argument("--classes", type=yaml.safe_load, required=True, help='such as "{anterior: 1, posterior: 2}"')
    parser.add_argument("--crop", type=int, nargs=3, required=True, help="voxels per axis")
    parser.add_argument("--weights", nargs="*", default=[], help="NAME=FOLDER of a pre-training; a name may come twice")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=["scratch"],
        help=f'scratch, unlabelled, {SELF_TRAINED}, NAME, "NAME{ENCODER}", "NAME{FIRST}" or "NAME, {SELF_TRAINED}"',
    )
    parser.add_argument("--labelled", nargs="+", default=["5"], help='numbers of people, and "all" for the ceiling')
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="of several the best is chosen per arm")
    parser.add_argument("--tuning_people", type=int, default=10, help="to choose the rate on")
    parser.add_argument("--people", type=int, help="only so many test people (default: all)")
    parser.add_argument("--steps_per_epoch", type=int, default=50)
    parser.add_argument("--share", type=int, nargs=2, default=[0, 1], help="which part of the runs, of how many parts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache_dir", type=Path, default=ROOT / ".cache/people")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache/people/runs.jsonl")
    options = parser.parse_args(arguments)
    options.lists = json.loads(options.split.read_text())
    options.people = options.lists["test"][: options.people]
    options.labelled = [word if word == "all" else _number(word) for word in options.labelled]
    options.pretrained = defaultdict(list)
    for word in options.weights:
        name, _, folder = word.partition("=")
        options.pretrained[name].append(_weights_in(word, Path(folder)))
    check(options)
    return options


def _number(word: str) -> int:
    if not word.isdigit() or not int(word):
        raise UserError(f"--labelled {word} is no number of people: give numbers from 1, or all")
    return int(word)


def _weights_in(word: str, folder: Path) -> Path:
    file = folder / "model.pt" if folder.is_dir() else folder
    if "=" not in word or not file.is_file():
        raise UserError(f"--weights {word} names no pre-training: give NAME=FOLDER, a folder with model.pt")
    return file.absolute()


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be run."""
    for arm in options.arms:
        if start_of(arm) != "scratch" and start_of(arm) not in options.pretrained:
            raise UserError(
                f"--arms {arm!r} is not known: give scratch, unlabelled, {SELF_TRAINED}, or a name of --weights"
            )
    for steps in options.steps:
        if steps % min(steps, options.steps_per_epoch):
            raise UserError(f"--steps {steps} is no multiple of --steps_per_epoch: change either")
    most = max((number for number in options.labelled if number != "all"), default=0)
    if len(options.rates) > 1 and most + options.tuning_people > len(options.lists["dev"]):
        raise UserError(f"--labelled {most} leaves too few people to choose a rate on: lower --tuning_people")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    try:
        options = parse(arguments)
        results = Results(options)
        part, parts = options.share
        cases = list(list_cases(options))[part::parts]
        tqdm.write(say_costs([case for case in cases if not _is_done(case, results)], results))
        for case in tqdm(cases, desc="runs"):
            row = results.run(case._replace(rate=results.choose_rate(case)))
            tqdm.write(json.dumps(row))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(results.rows))
    print(steps_to_reach(results.rows, 300))
    return 0


def _is_done(case: Case, results: Results) -> bool:
    return any(results.find(case._replace(rate=rate)) for rate in results.options.rates)


if __name__ == "__main__":
    sys.exit(main())
