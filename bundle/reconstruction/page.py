# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of reconstructed volumes: errors, pictures and what was skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.data import SkippedVolume
from bundle.reconstruction.error_table import SHOWN
from bundle.reports import Report

__all__ = ["write_page"]


def write_page(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Path],
    skipped: Sequence[SkippedVolume],
    *,
    hash_names: bool = False,
) -> Path:
    """Writes `report.html` into the folder of the results.

    Args:
        folder: where to.
        rows: of `errors.csv`.
        pictures: by the names of the volumes; those that are not there are left out.
        skipped: volumes that could not be used.
        hash_names: whether it must not show what the command was given, as a path may name a patient.
    """
    lead = f"{len(rows)} volumes reconstructed, {len(skipped)} skipped."
    report = Report("Reconstructed volumes", lead=lead, hide_values=hash_names)
    section = report.section("Errors on hidden voxels")
    table = [[row[name] for _, name in SHOWN] for row in rows]
    section.table([title for title, _ in SHOWN], table, file="errors.csv")
    section.paragraph(
        "MAE is the mean absolute error in the volume's unit, beside those of two predictors that know nothing: "
        "the mean of the visible voxels, and 0. The loss is that of training."
    )
    found = {name: picture for name, picture in pictures.items() if picture.is_file()}
    if found:
        section = report.section("Pictures")
        for name, picture in found.items():
            section.picture(picture, caption=name)
    if skipped:
        report.section("Skipped").table(["volume", "why", "what to do"], skipped)
    return report.write(folder / "report.html")
