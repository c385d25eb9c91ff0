# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of predicted label maps: volumes, pictures, a viewer, and what was skipped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
from ignite.engine import Engine, Events
from nibabel.filebasedimages import ImageFileError
from scipy import ndimage
from tqdm import tqdm

from bundle.data import FoundVolume, read_volume
from bundle.data.grids import same_place
from bundle.errors import UserError, VolumeError
from bundle.evaluation import read_table
from bundle.figures.contours import draw_contours
from bundle.prediction import PredictionFolder
from bundle.reports import Case, Report, Section
from bundle.tasks.segmentation.case_picture import class_numbers, cut_out, moved, viewer_box
from bundle.tasks.segmentation.measurements import MEASUREMENT_COLUMNS

__all__ = ["PredictionReport"]

logger = logging.getLogger(__name__)

_PICTURES = 24


class PredictionReport:
    """Writes `report.html` when all scans are predicted. Put it after `PredictionTables`.

    The scans that are shown are spread evenly over the order of the labelled volume, from the smallest to the largest:
    a prediction that went wrong is often at an end.

    Args:
        output: the folder.
        scans: as for `PredictionTables`.
        classes: value in the label maps by the name of each class.
        channels: images per scan; the first is shown.
        shown: how many scans to show; 0: none.
    """

    def __init__(
        self,
        output: PredictionFolder,
        *,
        scans: Sequence[FoundVolume],
        classes: Mapping[str, int],
        channels: int = 1,
        shown: int = 8,
    ) -> None:
        self.output, self.classes, self.shown = output, dict(classes), shown
        self.scans = {scan.name: scan for scan in scans}
        self.channels = channels

    def attach(self, engine: Engine) -> None:
        """Registers with the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        """Writes the page."""
        records = self.output.records()
        skipped = [row for row in read_table(self.output.table) if row["skipped"]]
        report = Report("Predicted label maps", lead=f"Segmented: {len(records)} scans. Skipped: {len(skipped)}.")
        rows = [
            [name, *(row[column] for column in MEASUREMENT_COLUMNS)]
            for name, record in sorted(records.items())
            for row in record["tables"].get("measurements", ())
        ]
        self._volumes(report.section("Volumes"), rows)
        if skipped:
            section = report.section(f"Skipped: {len(skipped)}")
            section.table(["scan", "why"], [[row["scan"], row["skipped"]] for row in skipped])
        chosen = self._choose(rows)
        if chosen:
            said = "from the smallest labelled volume to the largest" if len(chosen) > 1 else "the only one"
            viewer = report.section("Viewer").paragraph(f"{len(chosen)} of {len(records)} scans, {said}.")
            pictures = report.section("Pictures")
            cases = tqdm(self._cases(chosen, pictures), total=len(chosen), desc="report", delay=2)
            viewer.viewer(cases, classes=class_numbers(self.classes), count=len(chosen))
        section = report.section("Every scan and class", folded=True)
        section.table(["scan", *MEASUREMENT_COLUMNS], rows, file="measurements.csv")
        report.section("How", folded=True).facts({name: _text(value) for name, value in self.output.settings.items()})
        path = report.write(self.output.path / "report.html")
        logger.info("report: %s", path)

    def _volumes(self, section: Section, rows: Sequence[Sequence[Any]]) -> None:
        """For each class: in how many scans it is, its volume, and how often the scan's border cuts it."""
        table = []
        for name in self.classes:
            of = [dict(zip(MEASUREMENT_COLUMNS, row[1:], strict=True)) for row in rows if row[1] == name]
            volumes = np.array([float(row["ml"]) for row in of if float(row["ml"]) > 0])
            cut = sum(str(row["touches_border"]) == "True" for row in of)
            quartiles = np.percentile(volumes, (0, 50, 100)).tolist() if volumes.size else [None] * 3
            table.append([name, volumes.size, len(of) - volumes.size, *quartiles, cut])
        columns = [
            "class",
            "scans with it",
            "without",
            "smallest, mL",
            "median, mL",
            "largest, mL",
            "cut by the border",
        ]
        section.table(columns, table)

    def _choose(self, rows: Sequence[Sequence[Any]]) -> list[str]:
        """Names of the scans to show, in the order of the labelled volume."""
        volume: dict[str, float] = {}
        for name, *cells in rows:
            volume[name] = volume.get(name, 0.0) + float(cells[MEASUREMENT_COLUMNS.index("ml")])
        ordered = sorted((name for name in volume if name in self.scans), key=lambda name: (volume[name], name))
        count = min(self.shown, len(ordered))
        places = np.linspace(0, len(ordered) - 1, count).round().astype(int)
        return [ordered[place] for place in places]

    def _cases(self, names: Sequence[str], pictures: Section) -> Iterator[Case]:
        """Reads the scans one after another; a picture of each goes into `pictures`."""
        for number, name in enumerate(names):
            try:
                scan, labels, affine = self._read(name)
            except (UserError, OSError, EOFError, ImageFileError) as error:
                # all is predicted and written: what has become of a scan since must not end the run
                logger.warning("%s is not shown in the report: %s", name, error)
                continue
            boxes, grid = ndimage.find_objects(labels), (scan.shape, affine)
            if number < _PICTURES:
                pictures.picture(self._draw(scan, labels, affine, cut_out(boxes, grid)), caption=name)
            box = viewer_box(boxes, grid)
            yield Case(name, scan[box], moved(affine, box), {"prediction": labels[box]})

    def _read(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scan's first channel, its label map with classes counted from 1, and the affine."""
        image = read_volume(list(self.scans[name].files), name, stacked=self.channels > 1)
        affine = np.asarray(image.affine, dtype=np.float64)
        written = nibabel.load(self.output.label_map(name))
        if not same_place((tuple(image.shape[1:]), affine), (written.shape, written.affine)):
            raise VolumeError(name, "is not on the grid of its label map", "predict it again with --overwrite True")
        return image[0].numpy(), _numbers(np.asarray(written.dataobj), self.classes), affine

    def _draw(self, scan: np.ndarray, labels: np.ndarray, affine: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
        to_ras = nibabel.io_orientation(affine)
        image, mask = (nibabel.orientations.apply_orientation(volume[box], to_ras) for volume in (scan, labels))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(to_ras[:, 0])]
        return draw_contours(image, None, mask, spacing.tolist(), classes=list(self.classes), title="")


def _numbers(labels: np.ndarray, classes: Mapping[str, int]) -> np.ndarray:
    """Classes counted from 1 in place of their values."""
    numbers = np.zeros(labels.shape, dtype=np.int16)
    for number, value in enumerate(classes.values(), start=1):
        numbers[labels == value] = number
    return numbers


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
