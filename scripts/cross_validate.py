# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes once for each fold, gathers what each says of the scans it was not trained on, and leaves an ensemble.

    python scripts/cross_validate.py --config_file configs/finetune_segmentation.yaml --dataset_dir /path/to/labelled
    python scripts/cross_validate.py --config_file configs/finetune_segmentation.yaml --dataset_dir /path/to/labelled \
        --folds 5 --jobs 2 --output_dir runs/cross_validation/spleen --classes "{spleen: 1}" --epochs 50

Any other option is one of the config. The same command, with the same output_dir, goes on where it was stopped. What
comes out is in docs/how-to/cross_validate.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from out_of_fold import evaluate_out_of_fold, find_validated, predict_out_of_fold
from tqdm import tqdm

from bundle.atomic import free_path, replace_file
from bundle.data import table_row
from bundle.errors import UserError, install_excepthook
from bundle.evaluation import EvaluationFolder, read_results
from bundle.reports import Report
from bundle.runs import RunFolder
from bundle.runs.checkpoint import config_of_checkpoint
from bundle.tasks.classification import ClassificationEvaluation
from bundle.tasks.detection import DetectionEvaluation
from bundle.training.history import read_history

ROOT = Path(__file__).resolve().parents[1]
PREDICT = ROOT / "configs/predict_segmentation.yaml"
#: options of the config that this command gives
_OURS = ("fold", "resume")


@dataclass
class Plan:
    """What is to be done, and where.

    Args:
        config_file: as MONAI takes it: a file, or a list of files in text.
        dataset_dir: of the config.
        folds: how many.
        output: the folder of it all.
        overrides: further options of the config, as they were given.
    """

    config_file: str
    dataset_dir: str
    folds: int
    output: Path
    overrides: list[str] = field(default_factory=list)

    def folder(self, fold: int) -> RunFolder:
        """The run of a fold."""
        return RunFolder(self.output / "folds" / f"fold_{fold}")

    def log(self, fold: int) -> Path:
        """What the fold's training says."""
        return self.output / "logs" / f"fold_{fold}.log"

    def mark(self, fold: int) -> Path:
        """Is there when the fold is done."""
        return self.output / "logs" / f"fold_{fold}.done"

    def is_done(self, fold: int) -> bool:
        """Whether the fold's training came to its end."""
        return self.mark(fold).is_file() and self.folder(fold).model.is_file()

    def command(self, fold: int) -> list[str]:
        """Trains a fold, or goes on with it."""
        given = {"dataset_dir": self.dataset_dir, "folds": self.folds, "fold": fold, "resume": True}
        given["output_dir"] = self.folder(fold).path
        options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        start = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", self.config_file]
        return [*start, *options, *self.overrides]

    @property
    def hashes_names(self) -> bool:
        """Whether names are digests, as the option hash_names says."""
        given = _given(self.overrides).get("hash_names", self.config().get("hash_names"))
        return str(given).lower() == "true"

    def config(self) -> ConfigParser:
        """The config, without the overrides.

        Raises:
            UserError: if a file cannot be read.
        """
        files = yaml.safe_load(self.config_file)
        parser = ConfigParser()
        try:
            parser.read_config([str(file) for file in files] if isinstance(files, list) else str(files))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"--config_file {self.config_file} cannot be read ({type(error).__name__}): give a config of "
                "fine-tuning, such as configs/finetune_segmentation.yaml"
            ) from error
        if "transfer" not in parser or "folds" not in parser:
            raise UserError(
                f"--config_file {self.config_file} has no folds: give a config of fine-tuning, such as "
                "configs/finetune_segmentation.yaml"
            )
        return parser


class Trainings:
    """Trains the folds, so many at a time, each in a process of its own."""

    def __init__(self, plan: Plan, jobs: int) -> None:
        self.plan, self.jobs = plan, jobs
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stopped = threading.Event()

    def run(self) -> dict[int, str]:
        """Trains what is not done; gives for each fold that failed its last words."""
        waiting = [fold for fold in range(self.plan.folds) if not self.plan.is_done(fold)]
        if done := self.plan.folds - len(waiting):
            print(f"{done} of {self.plan.folds} folds are done already")
        failed: dict[int, str] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            tasks = {pool.submit(self._train, fold): fold for fold in waiting}
            try:
                self._watch(set(tasks))
            except KeyboardInterrupt:
                self._stop()
                raise
            for task, fold in tasks.items():
                if said := task.result():
                    failed[fold] = said
        return failed

    def _train(self, fold: int) -> str:
        if self._stopped.is_set():
            return "interrupted"
        log = self.plan.log(fold)
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with log.open("ab") as file:
            process = subprocess.Popen(self.plan.command(fold), stdout=file, stderr=subprocess.STDOUT, env=environment)
            self._running[fold] = process
            code = process.wait()
        del self._running[fold]
        if code == 0:
            self.plan.mark(fold).touch()
            return ""
        return _last_words(log) or f"ended with {code}"

    def _watch(self, tasks: set[Any]) -> None:
        """Shows the epochs of all folds until they are done."""
        epochs = self._epochs()
        total = None if epochs is None else epochs * self.plan.folds
        with tqdm(total=total, desc="epochs of all folds") as bar:
            bar.update(self._trained())
            bar.unpause()
            while tasks:
                tasks = wait(tasks, timeout=1).not_done
                if more := self._trained() - int(bar.n):
                    bar.update(more)

    def _trained(self) -> int:
        files = (self.plan.folder(fold).history for fold in range(self.plan.folds))
        return sum(max(0, len(file.read_bytes().splitlines()) - 1) for file in files if file.is_file())

    def _epochs(self) -> int | None:
        given = _given(self.plan.overrides).get("epochs", self.plan.config().get("epochs"))
        return int(given) if str(given).isdecimal() else None

    def _stop(self) -> None:
        self._stopped.set()
        for process in list(self._running.values()):
            process.send_signal(signal.SIGINT)  # it writes its summary


def _last_words(log: Path) -> str:
    """The line of an error, or the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def _given(overrides: Sequence[str]) -> dict[str, str]:
    """The names and values of options of the config."""
    found: dict[str, str] = {}
    for number, word in enumerate(overrides):
        if not word.startswith("--"):
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        following = overrides[number + 1] if number + 1 < len(overrides) else "True"
        found[name] = value if equals else "True" if following.startswith("--") else following
    return found


def per_fold(plan: Plan) -> list[dict[str, Any]]:
    """The metrics of each fold that is done, at the epoch whose weights are its model."""
    rows = []
    for fold in filter(plan.is_done, range(plan.folds)):
        folder = plan.folder(fold)
        about = json.loads(folder.model_files.settings.read_text())
        history = {row["epoch"]: row for row in read_history(folder.history)}
        row = history.get(about["epoch"], {})
        counts = {part: sum(about["volumes"][part].values()) for part in ("training", "validation")}
        rows.append({"fold": fold, **counts, "epoch": about["epoch"],
                     **{name: value for name, value in row.items() if name.startswith("validation/")}})  # fmt: skip
    return rows


def gather(plan: Plan) -> list[str]:
    """Puts the results of the folds together; gives what a reader must know, a line each."""
    done = [fold for fold in range(plan.folds) if plan.is_done(fold)]
    if not done:
        return []
    about = json.loads(plan.folder(done[0]).model_files.settings.read_text())
    tasks = {"segmentation": gather_label_maps, "classification": gather_probabilities, "detection": gather_boxes}
    return tasks[about["task"]](plan, done, about)


def gather_label_maps(plan: Plan, done: Sequence[int], about: Mapping[str, Any]) -> list[str]:
    """Segments each scan with the fold that was not trained on it, and evaluates that on the files' grids."""
    given = {name: yaml.safe_load(value) for name, value in _given(plan.overrides).items()}
    options = {"bundle_root": str(ROOT), "dataset_dir": plan.dataset_dir}
    options |= {name: given[name] for name in ("device", "amp", "num_workers") if name in given}
    files: dict[str, Path] = {}
    pairs: list[tuple[str, int]] = []
    for fold in done:
        folder = plan.folder(fold)
        config = config_of_checkpoint(folder.path, folder.last_checkpoint)
        volumes = ConfigParser(yaml.safe_load(Path(str(config)).read_text())).get_parsed_content("volumes")
        scans = find_validated(volumes, plan.dataset_dir, hashed=plan.hashes_names)
        print(f"fold {fold}: {len(scans)} scans that it was not trained on")
        output = plan.output / "predictions" / f"fold_{fold}"
        found = predict_out_of_fold(PREDICT, folder.path, scans, output, hashed=plan.hashes_names, options=options)
        pairs += [(name, fold) for name in found]
        files |= found
    if files:
        evaluate_out_of_fold(files, plan.dataset_dir, plan.output, classes=about["classes"], hashed=plan.hashes_names)
    return _note_folds(plan, pairs)


def gather_probabilities(plan: Plan, done: Sequence[int], about: Mapping[str, Any]) -> list[str]:
    """Puts the tables of probabilities together, and evaluates them."""
    rows = [row for fold in done for row in _rows(plan, fold, "predictions.csv")]
    _write(plan.output / "predictions.csv", rows)
    ClassificationEvaluation(
        predictions=plan.output / "predictions.csv",
        dataset_dir=plan.dataset_dir,
        output=EvaluationFolder(plan.output, overwrite=True),
        findings=about["findings"],
        part="",
        hash_names=plan.hashes_names,
    ).run()
    return _note_folds(plan, [(row["volume"], row["fold"]) for row in rows])


def gather_boxes(plan: Plan, done: Sequence[int], about: Mapping[str, Any]) -> list[str]:
    """Puts the boxes together, and evaluates them."""
    found = [
        (fold, one)
        for fold in done
        for one in json.loads((plan.folder(fold).path / "boxes.json").read_text())["validation"]
    ]
    file = plan.output / "predicted_boxes.json"
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps({"validation": [one for _, one in found]}, indent=1) + "\n")
    DetectionEvaluation(
        predictions=file,
        dataset_dir=plan.dataset_dir,
        output=EvaluationFolder(plan.output, overwrite=True),
        classes=about["classes"],
        part="",
        hash_names=plan.hashes_names,
    ).run()
    return _note_folds(plan, [(one["image"], fold) for fold, one in found])


def _note_folds(plan: Plan, pairs: Sequence[tuple[str, int]]) -> list[str]:
    """Writes which fold each scan is of; a scan of several folds is noted."""
    folds: dict[str, list[int]] = {}
    for name, fold in pairs:
        folds.setdefault(name, []).append(fold)
    _write(plan.output / "folds.csv", [{"case": name, "fold": found[0]} for name, found in sorted(folds.items())])
    twice = [name for name in sorted(folds) if len(folds[name]) > 1]
    if not twice:
        return []
    listed = ", ".join(twice[:5])
    return [f"{len(twice)} scans were validated in several folds: other scans could be used in each training: {listed}"]


def _rows(plan: Plan, fold: int, name: str) -> list[dict[str, Any]]:
    file = plan.folder(fold).path / name
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return [{**row, "fold": fold} for row in csv.DictReader(opened)]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(table_row(columns))
        table.writerows(table_row([row.get(name, "") for name in columns]) for row in rows)


def summarise(plan: Plan, failed: Mapping[int, str], notes: Sequence[str]) -> str:
    """Writes `summary.md` and `report.html`; gives the former."""
    rows = per_fold(plan)
    said = [*(f"fold {fold} failed: {words} ({plan.log(fold)})" for fold, words in failed.items()), *notes]
    lead = f"{len(rows)} of {plan.folds} folds are done."
    sections = [
        ("Each fold, on the scans it was not trained on", _fold_table(rows),
         ["The epoch was chosen on these scans, so the figures are somewhat too good."]),
        ("All scans, each from the fold that was not trained on it", *_estimates(plan)),
    ]  # fmt: skip
    files = {"folds": "the run of each fold; together they are an ensemble for predict", **_FILES}
    where = [f"`{plan.output / name}`: {what}" for name, what in files.items() if (plan.output / name).exists()]
    if len(rows) < plan.folds:
        where.append(f"to go on: the same command again, with --output_dir {plan.output}")
    lines, report = (
        ["# Cross-validation", "", lead, "", *(f"- {line}" for line in said)],
        Report("Cross-validation", lead=lead),
    )
    if said:
        report.section("To be noted").bullets(said)
    for title, table, remarks in sections:
        if len(table) < 2:
            continue
        lines += [
            "",
            f"## {title}",
            "",
            *(f"| {' | '.join(row)} |" for row in (table[0], ["---"] * len(table[0]), *table[1:])),
        ]
        lines += ["", *(f"- {remark}" for remark in remarks)]
        section = report.section(title).table(table[0], table[1:]).bullets(remarks)
        if table is sections[-1][1]:
            for picture in sorted((plan.output / "panels").glob("*.png")):
                section.picture(picture, caption=f"{picture.stem}: reference solid, prediction dashed")
    report.section("Where it is").bullets(where)
    lines += ["", "## Where it is", "", *(f"- {line}" for line in where), ""]
    with replace_file(plan.output / "summary.md") as temporary:
        temporary.write_text("\n".join(lines))
    report.write(plan.output / "report.html")
    return "\n".join(lines)


def _fold_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The heading, a row for each fold, and their means."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    means = {
        name: sum(row[name] for row in rows) / len(rows)
        for name in columns
        if name.startswith("validation/") and all(name in row for row in rows)
    }
    table = [columns, *([_shown(row.get(name, "")) for name in columns] for row in rows)]
    return [*table, ["mean", *(_shown(means.get(name, "")) for name in columns[1:])]] if rows else []


def _estimates(plan: Plan) -> tuple[list[list[str]], list[str]]:
    """Means and intervals over all scans, as `results.json` has them, and what is to be noted of them."""
    file = plan.output / "results.json"
    if not file.is_file():
        return [], []
    content = read_results(file)
    table = [["metric", "class", "mean", "95 % interval", "scans"]]
    for metric, classes in content["metrics"].items():
        for name, one in classes.items():
            mean, low, high = (_shown(one[key]) if one[key] is not None else "-" for key in ("mean", "low", "high"))
            table.append([metric, name, mean, f"{low} to {high}", str(one["n"])])
    return table, list(content.get("notes", []))


_FILES = {
    "label_maps": "each scan as the fold segments it that was not trained on it",
    "cases.csv": "a row for each scan, from the fold that was not trained on it",
    "results.json": "means and intervals of these",
    "panels": "pictures",
    "folds.csv": "which fold each scan is of",
    "predictions.csv": "probabilities of each scan, likewise",
    "predicted_boxes.json": "boxes of each scan, likewise",
    "boxes.csv": "found, missed and false boxes",
    "logs": "what the trainings said",
}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def open_plan(options: argparse.Namespace, overrides: Sequence[str]) -> Plan:
    """The plan in a folder, which must be the one that the folder was begun with.

    Raises:
        UserError: if an option does not fit, or the folder holds something else.
    """
    given = _given(overrides)
    if taken := [name for name in _OURS if name in given]:
        raise UserError(f"--{taken[0]} is set by this command, which runs all folds: leave it out")
    if strays := [word for word in overrides[:1] if not word.startswith("--")]:
        raise UserError(f"{strays[0]!r} is no option: give options of the config as --name value")
    if options.folds < 2 or options.jobs < 1:
        raise UserError(f"--folds {options.folds} --jobs {options.jobs} cannot work: give at least 2 folds and 1 job")
    output = options.output_dir
    if output is None:
        output = free_path(Path("runs/cross_validation") / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S"))
    plan = Plan(options.config_file, options.dataset_dir, options.folds, output, list(overrides))
    plan.config()
    _check_same(plan)
    return plan


def _check_same(plan: Plan) -> None:
    file = plan.output / "settings.json"
    now = {"config_file": plan.config_file, "dataset_dir": plan.dataset_dir, "folds": plan.folds,
           "options": _given(plan.overrides)}  # fmt: skip
    if file.is_file():
        before = json.loads(file.read_text())
        for name, value in now.items():
            if before.get(name) != value:
                raise UserError(
                    f"{plan.output} was begun with {name} {before.get(name)}, and this command has {value}: give the "
                    "same to go on, or another --output_dir"
                )
        return
    if plan.output.exists() and any(plan.output.iterdir()):
        raise UserError(f"--output_dir {plan.output} holds something else: give a new folder")
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this command, and those of the config."""
    parser = argparse.ArgumentParser(
        description="Fine-tunes once for each fold. Further options are those of the config.", allow_abbrev=False
    )
    parser.add_argument("--config_file", required=True, help="of fine-tuning; several as \"['a.yaml','b.yaml']\"")
    parser.add_argument("--dataset_dir", required=True, help="labelled scans, as for the config")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--output_dir", type=Path, help="default: a new folder runs/cross_validation/<date>_<time>")
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    start = time.monotonic()
    logging.getLogger().setLevel(logging.WARNING)
    try:
        options, overrides = parse(arguments)
        plan = open_plan(options, overrides)
        print(f"{plan.folds} folds in {plan.output}")
        failed = Trainings(plan, options.jobs).run()
        text = summarise(plan, failed, gather(plan))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command with the same --output_dir goes on", file=sys.stderr)
        return 130
    print(text)
    print(f"took {time.monotonic() - start:.0f} s; all of it is in {plan.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
