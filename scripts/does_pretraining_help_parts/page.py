# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of an experiment: `report.html`, `report.md` and `report.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from does_pretraining_help_parts.experiment import Experiment

from bundle.atomic import replace_file
from bundle.figures.arms import draw_arms
from bundle.reports import Report

__all__ = ["write"]


def table(experiment: Experiment) -> list[list[str]]:
    """The heading, and a row for each number of labelled people and arm."""
    rows = [["labelled people", "arm", "begins", "Dice", "per seed", "per class", "learning rate"]]
    measured = experiment.measured()
    for labels in experiment.options.labels:
        for arm in experiment.arms:
            here = [row for row in measured if row["labels"] == labels and row["arm"] == arm]
            dice = [experiment.mean_dice(row) for row in here]
            classes = zip(*(row["classes"] for row in here))
            rows.append([
                str(labels),
                arm,
                experiment.arms[arm].origin,
                f"{np.mean(dice):.3f}",
                ", ".join(f"{value:.3f}" for value in dice),
                ", ".join(f"{name} {_mean(values)}" for name, values in zip(experiment.classes, classes)),
                " ".join(sorted({f"{row['lr']:g}" for row in here})),
            ])  # fmt: skip
    return rows


def _mean(values: Sequence[float | None]) -> str:
    """Over those that are known."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known else "-"


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
        "Dice: the mean over people of the mean over their scans",
        "a class that is neither in a scan nor predicted counts in no mean; one that only one of the two has counts 0",
        "intervals: bootstrap over held-out people and seeds together; p: permutation test over the people",
        "the learning curves are of the first held-out people, and chose nothing",
        *([f"not used: {', '.join(skipped)}"] if skipped else []),
        *experiment.notes,
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
        measured = [{**row, "mean": experiment.mean_dice(row)} for row in experiment.measured()]
        draw_arms(measured, list(experiment.arms)).savefig(temporary, format="png")
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
