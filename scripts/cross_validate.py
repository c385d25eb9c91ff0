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
import logging
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cross_validate_parts.gather import gather
from cross_validate_parts.plan import Plan, check_same, given_options
from cross_validate_parts.same_scans import begin_scans
from cross_validate_parts.summary import summarise
from cross_validate_parts.trainings import Trainings

from bundle.atomic import free_path
from bundle.errors import UserError, install_excepthook
from bundle.runs.lock import lock_folder

#: options of the config that this command gives
_OURS = ("fold", "resume")


def open_plan(options: argparse.Namespace, overrides: Sequence[str]) -> Plan:
    """The plan in a folder, which must be the one that the folder was begun with.

    Raises:
        UserError: if an option does not fit, the folder holds something else or was begun with other scans, or another
            process writes there.
    """
    given = given_options(overrides)
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
    plan.check_options()
    lock_folder(plan.output)  # two at a time would train each other's folds and write the same tables
    check_same(plan)
    begin_scans(plan)
    return plan


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
        gather(plan)
        text = summarise(plan, failed)
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
