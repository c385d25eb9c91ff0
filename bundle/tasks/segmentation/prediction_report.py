# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of a prediction: what was segmented, how large it is, and scans with their label maps to scroll through."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from bundle.data import FoundVolume, read_volume
from bundle.errors import VolumeError
from bundle.prediction import FineTuned, PredictionFolder
from bundle.reports import Case, Report

__all__ = ["SegmentationReport"]

logger = logging.getLogger(__name__)

#: HU, black and white: soft tissue
_CT_WINDOW = (-160.0, 240.0)


class SegmentationReport:
    """Writes `report.html` into the folder of the predictions.

    Args:
        output: the folder.
        scans: all scans.
        fine_tuned: the models.
        shown: how many scans the viewer offers; 0 writes no page. They are the first ones.
    """

    def __init__(
        self, output: PredictionFolder, *, scans: Sequence[FoundVolume], fine_tuned: FineTuned, shown: int = 6
    ) -> None:
        self.output, self.scans, self.fine_tuned, self.shown = output, list(scans), fine_tuned, shown
        self.classes: Mapping[str, int] = fine_tuned.classes

    def __call__(self, records: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, tuple[str, str]]) -> Path | None:
        """Writes the page.

        Args:
            records: of the scans that are done, by name, as `PredictionFolder.done` got them.
            skipped: by the name of a scan, what is wrong with it and what to do.

        Returns:
            Its path; None if none is wanted.
        """
        if not self.shown:
            return None
        report = Report(
            "Segmented scans", lead=f"{len(records)} scans segmented, {len(skipped)} skipped. Not for diagnosis."
        )
        cases = [scan for scan in self.scans if scan.name in records][: self.shown]
        section = report.section("Scans and label maps")
        section.viewer(self._cases(cases, records), classes=self.classes, count=len(cases))
        if len(cases) < len(records):
            section.paragraph(f"The first {len(cases)} of {len(records)} scans; all are in `label_maps/`.")
        rows = [
            [name, row["class"], row["ml"], row["components"], "yes" if row["touches_border"] else ""]
            for name in sorted(records)
            for row in records[name].get("tables", {}).get("measurements", [])
        ]
        report.section("Measurements").table(
            ["scan", "class", "mL", "parts", "touches the border"], rows, file="measurements.csv"
        )
        if skipped:
            report.section("Skipped").table(
                ["scan", "why", "what to do"], [[name, *skipped[name]] for name in sorted(skipped)]
            )
        facts = {key: value for key, value in self.output.settings.items() if key != "models"}
        models = {f"model {number}": sha256 for number, sha256 in enumerate(self.fine_tuned.sha256, 1)}
        report.section("Models and settings", folded=True).facts({**models, **facts})
        return report.write(self.output.path / "report.html")

    def _cases(self, scans: Sequence[FoundVolume], records: Mapping[str, Mapping[str, Any]]) -> Iterator[Case]:
        """Scans with their label maps, one in memory at a time."""
        for scan in scans:
            labels = np.asanyarray(nibabel.load(self.output.label_map(scan.name)).dataobj)
            try:
                image = read_volume(scan.files, scan.name, stacked=True)
            except VolumeError as error:
                logger.warning("%s is not in the report: it %s", scan.name, error.problem)
                continue
            is_ct = records[scan.name]["row"].get("modality") == "CT"
            yield Case(
                scan.name,
                image[0].numpy(),
                np.asarray(image.affine),
                {"prediction": labels},
                window=_CT_WINDOW if is_ct else None,
            )
