# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Trains from scratch and from pre-trained weights side by side, on volumes that pre-training has not seen.

    python scripts/fetch_data.py --all
    python scripts/studies/transfer.py --pretrained models/model.pt --seeds 5 --steps 0 25 50
    python scripts/studies/transfer.py --pretrained models/model.pt --task chest --seeds 5 --steps 100

Each arm of a seed has the same volumes, crops, augmentation, order, steps and start of the new layers; only the start
of those that were pre-trained differs. Every run is the bundle's own configs/finetune_segmentation.yaml. Runs that are
in the JSON file already are not repeated, so the command may be interrupted and extended; it prints a table and draws
the learning curves.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from scipy.stats import ttest_rel
from tqdm import tqdm
from transfer_tasks import TASKS, Task, write_task

from bundle.errors import UserError
from bundle.training.history import read_history
from bundle.weights import ModelFiles

ROOT = Path(__file__).resolve().parents[2]

#: fit_heads of configs/finetune_segmentation.yaml
HEAD_BATCHES = 8

#: what differs from configs/finetune_segmentation.yaml; `None` as weights is from scratch
ARMS: dict[str, dict[str, Any]] = {
    "scratch": {"pretrained": None},
    "pretrained": {},
    "scratch, sawtooth": {"pretrained": None, "schedule": "sawtooth"},
    "scratch, frozen": {"pretrained": None, "schedule": "frozen"},
    "pretrained, frozen": {"schedule": "frozen"},
    "pretrained, sawtooth": {"schedule": "sawtooth"},
    "encoder alone": {"pretrained_decoder": False},
    "encoder alone, sawtooth": {"pretrained_decoder": False, "schedule": "sawtooth"},
    "scratch, random heads": {"pretrained": None, "fit_heads": 0, "head_lr_factor": 10},
    "pretrained, random heads": {"fit_heads": 0, "head_lr_factor": 10, "lr": 1.0e-3},
    "scratch, random heads x 1": {"pretrained": None, "fit_heads": 0},
    "pretrained, random heads x 1": {"fit_heads": 0, "lr": 1.0e-3},
    "scratch, lr 3e-4": {"pretrained": None, "lr": 3.0e-4},
    "pretrained, lr 1e-3": {"lr": 1.0e-3},
    "pretrained, layer decay": {"layer_decay": 0.75},
}

#: arms that are compared with another one than "scratch"
BASES = {
    "pretrained, frozen": "scratch, frozen",
    "pretrained, random heads": "scratch, random heads",
    "pretrained, random heads x 1": "scratch, random heads x 1",
}


def recorded_recipe(arm: str, epochs: float, pretrained: Path) -> dict[str, Any]:
    """What the recorded runs have and the config of today has not (recipe.md): the recipe before it was studied."""
    whole = not arm.startswith(("scratch", "encoder alone")) and ModelFiles(pretrained).decoder.is_file()
    return {"mirror_axes": [0, 1, 2], "mr_floor": 3.0, "lr": 3e-4 if whole else 1e-3, "warmup_epochs": 0.1 * epochs}


def train(task: Task, labels: str, arm: str, steps: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tunes once; gives the Dice of every test volume and class, and the curve."""
    listed = write_task(task, labels, seed, options.data_dir, options.work_dir / "tasks")
    # with 0 the heads see their batches, which are then taken at the learning rate 0
    epoch = min(steps, options.validate_every) or HEAD_BATCHES
    settings = json.loads(options.pretrained.with_suffix(".json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "bundle_root": str(ROOT),
            "dataset_dir": str(listed),
            "output_dir": str(Path(folder) / "run"),
            "cache_dir": str(options.work_dir / "cache"),
            "classes": task.classes,
            "pretrained": str(options.pretrained),
            # both arms have the weights' own network and preparation
            "encoder": settings["encoder"],
            "spacing": options.spacing or settings["spacing"],
            "ct_window": settings["ct_window"],
            "mr_percentiles": settings["mr_percentiles"],
            "crop_size": [options.crop] * 3,
            # one side of a body is labelled, and the other one is tested: today's default shows no mirror images
            **({"mirror_axes": [0]} if options.recipe == "today" else {}),
            **(recorded_recipe(arm, steps / epoch, options.pretrained) if options.recipe == "recorded" else {}),
            "seed": seed,
            "epochs": max(1, steps // options.validate_every),
            "steps_per_epoch": epoch,
            "val_interval": 1,
            "num_workers": 0,
            "validate#inferer#overlap": 0.25,
            "validate#additional_metrics": None,  # distances take longer than training here
            "device": options.device,
            **ARMS[arm],
            **({} if steps else {"lr": 0.0}),
        }
        flow = ConfigWorkflow(
            [str(ROOT / "configs/finetune_segmentation.yaml")], workflow_type="train", run_id="training", **overrides
        )
        flow.initialize()
        flow.run()
        details = flow.parser.get_parsed_content("validate#evaluator").state.metric_details["validation/dice"]
        volumes = [volume.name for volume in flow.parser.get_parsed_content("volumes").validation]
        rows = read_history(Path(folder) / "run/metrics.csv")
        flow.finalize()
    names = [name.removeprefix(f"{task.name}_test_").removesuffix("_image.nii.gz") for name in volumes]
    return {
        "task": task.name,
        "labels": labels,
        "arm": arm,
        "steps": steps,
        "seed": seed,
        "recipe": options.recipe,
        # the side changes with the seed
        "dice": {("other side" if n in ("left", "right") else n): row for n, row in zip(names, details.tolist())},
        "curve": [[min(steps, row["epoch"] * epoch), row["validation/dice"]] for row in rows],
        "losses": [row["train/loss"] for row in rows],
    }


def mean_dice(run: dict[str, Any], volume: str | None = None) -> float:
    """Mean over classes and test volumes, in %."""
    rows = list(run["dice"].values()) if volume is None else [run["dice"][volume]]
    return 100 * float(np.mean(rows))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and deviation over seeds of each arm, and the paired test against the same arm from scratch, as Markdown."""
    lines = [
        "| task | labels | steps | arm | Dice, % | per class | per test volume | seeds | against | points | p |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for run in runs:
        cases.setdefault((run["task"], run["labels"], run["steps"], run["arm"]), {})[run["seed"]] = run
    for (task, labels, steps, arm), here in cases.items():
        dice = [mean_dice(run) for run in here.values()]
        classes = 100 * np.mean([list(run["dice"].values()) for run in here.values()], axis=(0, 1))
        volumes = {v: np.mean([mean_dice(run, v) for run in here.values()]) for v in next(iter(here.values()))["dice"]}
        base = BASES.get(arm, "scratch")
        other = cases.get((task, labels, steps, base), {})
        compared = ["", "", ""]
        pairs = [(mean_dice(here[s]), mean_dice(other[s])) for s in sorted(here.keys() & other.keys())]
        if arm != base and len(pairs) > 1:
            differences = np.subtract(*np.transpose(pairs))
            p = ttest_rel(*np.transpose(pairs)).pvalue
            compared = [base, f"{differences.mean():+.1f} ({', '.join(f'{d:+.1f}' for d in differences)})", f"{p:.3g}"]
        deviation = f" ± {np.std(dice, ddof=1):.1f}" if len(dice) > 1 else ""
        lines.append(
            f"| {task} | {labels} | {steps} | {arm} | {np.mean(dice):.1f}{deviation} "
            f"| {', '.join(f'{c:.1f}' for c in classes)} | {', '.join(f'{v} {d:.1f}' for v, d in volumes.items())} "
            f"| {len(dice)} | {' | '.join(compared)} |"
        )
    return "\n".join(lines)


def draw(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """One picture per task and label budget: Dice over steps of training, each run a dot, the mean of an arm a line."""
    cases = list(dict.fromkeys((r["task"], r["labels"]) for r in runs))
    figure = Figure(figsize=(5.5 * len(cases), 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases):
        inside = [r for r in runs if (r["task"], r["labels"]) == case]
        for number, arm in enumerate(dict.fromkeys(r["arm"] for r in inside)):
            points = np.array([(r["steps"], mean_dice(r)) for r in inside if r["arm"] == arm])
            budgets = np.unique(points[:, 0])
            means = [points[points[:, 0] == budget, 1].mean() for budget in budgets]
            ax.plot(*points.T, f"C{number}.", alpha=0.4, markersize=5)
            ax.plot(budgets, means, f"C{number}-", marker="o", markersize=4, linewidth=2, label=arm)
        ax.set(title=f"{case[0]}, {case[1]} labelled", xlabel="steps of training", ylabel="Dice of test volumes, %")
        ax.set_xticks(sorted({r["steps"] for r in inside}))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(file)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options, checked.

    Raises:
        UserError: if one does not fit.
    """
    parser = argparse.ArgumentParser(description="Does pre-training help? Scratch and pre-trained, side by side.")
    parser.add_argument("--pretrained", type=Path, default=ROOT / "models/model.pt")
    parser.add_argument("--task", choices=list(TASKS), default="brain")
    parser.add_argument("--labels", nargs="+", help="label budgets of the task (default: its smallest)")
    parser.add_argument("--steps", type=int, nargs="+", default=[150], help="0: the heads are fitted, and that is all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5], help="how many, or with several values which")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["scratch", "pretrained"])
    parser.add_argument(
        "--recipe",
        choices=["recorded", "today"],
        default="recorded",
        help="that of the recorded runs, or today's with mirrors of the first axis; each with a --json of its own",
    )
    parser.add_argument("--crop", type=int, default=64, help="voxels per axis")
    parser.add_argument("--spacing", type=float, nargs=3, help="mm of all arms (default: that of the weights)")
    parser.add_argument("--validate_every", type=int, default=50, help="steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data")
    parser.add_argument("--work_dir", type=Path, default=ROOT / ".cache/transfer")
    parser.add_argument("--json", type=Path, default=ROOT / "docs/figures/transfer.json")
    options = parser.parse_args(arguments)
    if not options.pretrained.with_suffix(".json").is_file():
        raise UserError(f"{options.pretrained} has no json beside it: give the model.pt of a pre-training")
    if wrong := [n for n in options.steps if n < 0 or (n > options.validate_every and n % options.validate_every)]:
        raise UserError(
            f"--steps {wrong[0]} must be up to --validate_every ({options.validate_every}) or a multiple of it: "
            "change one of the two"
        )
    known = TASKS[options.task].labels
    if wrong := [labels for labels in options.labels or () if labels not in known]:
        raise UserError(f"--labels {wrong[0]} is not one of {', '.join(known)}: choose one")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    try:
        options = read_options(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    task = TASKS[options.task]
    logging.getLogger().setLevel(logging.WARNING)
    seeds = range(options.seeds[0]) if len(options.seeds) == 1 else options.seeds
    runs: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    if any(run.get("recipe", "recorded") != options.recipe for run in runs):
        print(f"error: {options.json} has runs of another --recipe: name another file", file=sys.stderr)
        return 1
    done = {(r["task"], r["labels"], r["arm"], r["steps"], r["seed"]) for r in runs}
    wanted = [
        (labels, arm, steps, seed)
        for steps in options.steps
        for labels in options.labels or task.labels[:1]
        for seed in seeds
        for arm in options.arms
    ]
    for labels, arm, steps, seed in tqdm([w for w in wanted if (task.name, *w) not in done], desc="runs"):
        try:
            with torch.random.fork_rng():
                runs.append(train(task, labels, arm, steps, seed, options))
        except UserError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)  # below the bar
            return 1
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_suffix(".part")
        temporary.write_text(json.dumps(runs, indent=1) + "\n")
        temporary.replace(options.json)
    print(table(runs))
    draw(runs, options.json.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
