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
import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from does_pretraining_help_parts.experiment import ROOT, Experiment
from does_pretraining_help_parts.page import write

from bundle.atomic import free_path
from bundle.errors import UserError, install_excepthook
from bundle.runs.lock import lock_folder


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
        options = parse(arguments)
        lock_folder(options.output_dir)
        experiment = Experiment(options)
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
