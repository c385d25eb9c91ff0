# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of a prediction: what was segmented, how large it is, and scans with their label maps to scroll through."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from scipy import ndimage
from tqdm import tqdm

from bundle.data import FoundVolume, read_volume
from bundle.data.grids import same_place, spacing_along_axes
from bundle.data.names import without_paths
from bundle.errors import UserError, VolumeError
from bundle.evaluation.case_picture import class_numbers, cut_out, moved, viewer_box
from bundle.figures.contours import draw_contours
from bundle.prediction import FineTuned, PredictionFolder
from bundle.reports import Case, Report, Section

__all__ = ["SegmentationReport"]

logger = logging.getLogger(__name__)

#: so many scans are named to be looked at first, of four times as many or more
_FIRST = 5
#: HU, black and white: soft tissue
_CT_WINDOW = (-160.0, 240.0)


class SegmentationReport:
    """Writes `report.html` into the folder of the predictions.

    The scans that are shown are spread evenly over the order of the labelled volume, from the smallest to the largest:
    a prediction that went wrong is often at an end.

    Args:
        output: the folder.
        scans: all scans.
        fine_tuned: the models.
        shown: how many scans the viewer offers; 0 writes no page.
        megabytes: of the page at most.
    """

    def __init__(
        self,
        output: PredictionFolder,
        *,
        scans: Sequence[FoundVolume],
        fine_tuned: FineTuned,
        shown: int = 6,
        megabytes: float = 15,
    ) -> None:
        self.output, self.fine_tuned, self.shown, self.megabytes = output, fine_tuned, shown, megabytes
        self.scans = {scan.name: scan for scan in scans}
        self.classes: Mapping[str, int] = fine_tuned.classes
        self.hash_names = bool(output.settings.get("hash_names"))

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
            "Segmented scans",
            lead=f"{len(records)} scans segmented, {len(skipped)} skipped. Not for diagnosis.",
            max_megabytes=self.megabytes,
            hide_values=self.hash_names,
        )
        measured = {name: records[name].get("tables", {}).get("measurements", []) for name in sorted(records)}
        _volumes(report.section("Volumes"), self.classes, measured)
        _least_certain(report, measured)
        chosen = self._choose(measured)
        if chosen:
            viewer = report.section("Scans and label maps")
            if len(chosen) < len(records):
                viewer.paragraph(
                    f"{len(chosen)} of {len(records)} scans, from the smallest labelled volume to the largest; all are "
                    "in `label_maps/`."
                )
            pictures = report.section("Pictures")
            cases = tqdm(self._cases(chosen, records, pictures), total=len(chosen), desc="report", delay=2)
            viewer.viewer(cases, classes=class_numbers(self.classes), count=len(chosen))
        rows = [
            [
                name,
                row["class"],
                row["ml"],
                row["components"],
                "yes" if row["touches_border"] else "",
                row.get("certainty"),
            ]
            for name, of in measured.items()
            for row in of
        ]
        report.section("Measurements", folded=len(rows) > 50).table(
            ["scan", "class", "mL", "parts", "touches the border", "certainty"], rows, file="measurements.csv"
        )
        if skipped:
            report.section("Skipped").table(
                ["scan", "why", "what to do"], [[name, *skipped[name]] for name in sorted(skipped)]
            )
        facts = {key: value for key, value in self.output.settings.items() if key != "models"}
        models = {f"model {number}": sha256 for number, sha256 in enumerate(self.fine_tuned.sha256, 1)}
        report.section("Models and settings", folded=True).facts({**models, **facts})
        return report.write(self.output.path / "report.html")

    def _choose(self, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
        """Names of the scans to show, in the order of the labelled volume."""
        volume = {name: sum(float(row["ml"]) for row in of) for name, of in measured.items()}
        ordered = sorted((name for name in volume if name in self.scans), key=lambda name: (volume[name], name))
        places = np.linspace(0, len(ordered) - 1, min(self.shown, len(ordered))).round().astype(int)
        return [ordered[place] for place in places]

    def _cases(
        self, names: Sequence[str], records: Mapping[str, Mapping[str, Any]], pictures: Section
    ) -> Iterator[Case]:
        """Scans with their label maps, one in memory at a time; a picture of each goes into `pictures`."""
        for name in names:
            try:
                scan, labels, affine = self._read(name)
            except (UserError, OSError, EOFError, ImageFileError) as error:
                # all is predicted and written: what has become of a scan since must not end the run
                why = without_paths(str(error), self.scans[name], name) if self.hash_names else error
                logger.warning("%s is not shown in the report: %s", name, why)
                continue
            boxes, grid = ndimage.find_objects(labels), (scan.shape, affine)
            pictures.picture(self._draw(scan, labels, affine, cut_out(boxes, grid)), caption=name)
            box = viewer_box(boxes, grid)
            is_ct = records[name].get("row", {}).get("modality") == "CT"
            window = _CT_WINDOW if is_ct else None
            yield Case(name, scan[box], moved(affine, box), {"prediction": labels[box]}, window=window)

    def _read(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scan's first channel, its label map with classes counted from 1, and the affine."""
        image = read_volume(list(self.scans[name].files), name, stacked=True)
        affine = np.asarray(image.affine, dtype=np.float64)
        written = nibabel.load(self.output.label_map(name))
        if not same_place((tuple(image.shape[1:]), affine), (written.shape, written.affine)):
            raise VolumeError(name, "is not on the grid of its label map", "predict it again with --overwrite True")
        labels = np.asarray(written.dataobj)
        numbers = np.zeros(labels.shape, dtype=np.int16)
        for number, value in enumerate(self.classes.values(), start=1):
            numbers[labels == value] = number
        return image[0].numpy(), numbers, affine

    def _draw(self, scan: np.ndarray, labels: np.ndarray, affine: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
        to_ras = nibabel.io_orientation(affine)
        image, mask = (nibabel.orientations.apply_orientation(volume[box], to_ras) for volume in (scan, labels))
        spacing = spacing_along_axes(affine)
        return draw_contours(image, None, mask, spacing.tolist(), classes=list(self.classes), title="")


def _volumes(section: Section, classes: Mapping[str, int], measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """For each class: in how many scans it is, its volume there, and how often the scan's border cuts it."""
    table = []
    for name in classes:
        of = [row for rows in measured.values() for row in rows if row["class"] == name]
        volumes = [float(row["ml"]) for row in of if float(row["ml"]) > 0]
        range_of_volumes = np.percentile(volumes, (0, 50, 100)).tolist() if volumes else [None] * 3
        cut = sum(bool(row["touches_border"]) for row in of)
        table.append([name, len(volumes), len(of) - len(volumes), *range_of_volumes, cut])
    section.table(
        ["class", "scans with it", "without", "smallest, mL", "median, mL", "largest, mL", "touches the border"], table
    )


def _least_certain(report: Report, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The scans of which the network is least sure, as the mean of the classes that it has found."""
    known = {
        name: [row["certainty"] for row in of if row.get("certainty") is not None] for name, of in measured.items()
    }
    mean = {name: fmean(values) for name, values in known.items() if values}
    if len(mean) < 4 * _FIRST:
        return
    section = report.section("To look at first")
    section.paragraph(
        "The network is least sure of these. It is surer than it should be: the numbers tell scans apart, and are no "
        "measure of how good a label map is."
    )
    rows = [[name, mean[name]] for name in sorted(mean, key=lambda name: (mean[name], name))[:_FIRST]]
    section.table(["scan", "certainty"], rows)
