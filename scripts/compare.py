# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Compares two results on the same cases: is the second better, or is it chance?

    python scripts/compare.py evaluations/scratch evaluations/pretrained
    python scripts/compare.py old.csv new.csv --names before after --output_dir comparison

A result is the folder of an evaluation or of a cross-validation, or a cases.csv. For every metric and class it gives
the mean difference, its bootstrap interval over people, and p of a paired permutation test. docs/how-to/compare.md says
how to read it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.atomic import replace_file
from bundle.errors import UserError, install_excepthook
from bundle.evaluation.compare import Comparison, compare_results, read_result, verdict
from bundle.evaluation.paired import Difference
from bundle.figures.paired import draw_paired
from bundle.reports import Report

_HEADING = ("metric", "class", "verdict", "cases", "people", "{0}", "{1}", "difference", "interval", "p")


def table(found: Comparison) -> list[list[str]]:
    """The heading, and a row for each metric and class; the mean of the classes first."""
    rows = [[column.format(*found.names) for column in _HEADING]]
    for metric, by_class in found.differences.items():
        for of in sorted(by_class, key=lambda name: name != "mean"):
            one = by_class[of]
            numbers = [
                _short(one.first),
                _short(one.second),
                f"{one.mean:+.4g}",
                f"{_short(one.low)} to {_short(one.high)}",
            ]
            p = f"{one.p:.3g}{'' if one.exact else ' (drawn)'}"
            said = verdict(one, found.names, found.higher_is_better[metric])
            rows.append([metric, of, said, str(one.n), str(one.people), *numbers, p])
    return rows


def notes(found: Comparison) -> list[str]:
    """What a reader must know, a line each."""
    left_out = [
        f"{metric}, {of}: {one.left_out} cases are left out, one of both has no finite value there"
        for metric, by_class in found.differences.items()
        for of, one in by_class.items()
        if one.left_out and of != "mean"
    ]
    count = sum(len(by_class) for by_class in found.differences.values())
    return [
        *found.notes,
        *left_out,
        f"A difference is {found.names[1]} minus {found.names[0]}. Intervals are of 95 %, over people.",
        f"p is not adjusted: of {count} comparisons without any difference, about {count / 20:.1f} have p < 0.05.",
    ]


def markdown(found: Comparison) -> str:
    """The page as Markdown."""
    heading, *rows = table(found)
    lines = [f"# {found.names[0]} and {found.names[1]}", "", f"{len(found.cases)} cases are in both.", ""]
    lines += [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(found)), ""])


def as_json(found: Comparison) -> str:
    """The numbers, for other programs."""

    def numbers(one: Difference) -> dict[str, object]:
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(one).items()}

    content = {
        "names": found.names,
        "cases": found.cases,
        "only": found.only,
        "differences": {m: {of: numbers(one) for of, one in c.items()} for m, c in found.differences.items()},
        "higher_is_better": found.higher_is_better,
        "notes": notes(found),
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write(found: Comparison, folder: Path, metric: str) -> None:
    """Writes the page, the numbers and the picture."""
    for name, text in (("comparison.md", markdown(found)), ("comparison.json", as_json(found))):
        with replace_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    figure = draw_paired(
        found.pairs[metric], found.names, metric=metric, higher_is_better=found.higher_is_better.get(metric)
    )
    with replace_file(folder / "comparison.png") as temporary:
        figure.savefig(temporary, format="png")
    heading, *rows = table(found)
    report = Report(f"{found.names[0]} and {found.names[1]}", lead=f"{len(found.cases)} cases are in both.")
    section = report.section("Differences").table(heading, rows)
    section.picture(folder / "comparison.png", caption=f"{metric}: a line for each case, the mean in black")
    report.section("To be noted").bullets(notes(found))
    report.write(folder / "comparison.html")


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Compares two results on the same cases.")
    parser.add_argument("first", help="folder of an evaluation or cross-validation, or a cases.csv: the baseline")
    parser.add_argument("second", help="likewise: what is compared with it")
    parser.add_argument("--names", nargs=2, default=["", ""], help="what to call them (default: as their folders)")
    parser.add_argument("--output_dir", type=Path, help="for the page, the numbers and a picture (default: print only)")
    parser.add_argument("--overwrite", action="store_true", help="replace a comparison in output_dir")
    parser.add_argument("--metric", help="of the picture (default: the first one)")
    parser.add_argument("--resamples", type=int, default=9999, help="of the bootstrap and the permutation test")
    parser.add_argument("--seed", type=int, default=0, help="of their draws")
    options = parser.parse_args(arguments)
    if options.output_dir is not None and (options.output_dir / "comparison.md").exists() and not options.overwrite:
        raise UserError(f"--output_dir {options.output_dir} holds a comparison: give another one, or --overwrite")
    if options.resamples < 99:
        raise UserError(f"--resamples {options.resamples} is too few to tell: give at least 99")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    try:
        options = parse(arguments)
        results = [read_result(path, name) for path, name in zip((options.first, options.second), options.names)]
        if results[0].name == results[1].name:
            raise UserError(f"both results are called {results[0].name}: tell them apart with --names")
        found = compare_results(*results, resamples=options.resamples, seed=options.seed)
        metric = options.metric or next(iter(found.pairs))
        if metric not in found.pairs:
            raise UserError(f"--metric {metric} is not in both: choose one of {', '.join(found.pairs)}")
        if options.output_dir is not None:
            write(found, options.output_dir, metric)
        print(markdown(found))
        if options.output_dir is not None:
            print(f"written: {options.output_dir}/comparison.html, .md, .json and .png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
