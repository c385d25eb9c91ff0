# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page and the json that tell of an index."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bundle.archive.estimate import Estimate
from bundle.archive.facts import AXES, count_volumes, read_volumes
from bundle.archive.folder import IndexFolder
from bundle.archive.mosaic import draw_mosaic, draw_sample
from bundle.atomic import replace_file
from bundle.data.index.database import open_to_read, root_folder, volume_paths
from bundle.figures.histograms import draw_histograms
from bundle.reports import Report

__all__ = ["IndexReport"]

logger = logging.getLogger(__name__)

_TRAINING = "python -m monai.bundle run training --config_file configs/train.yaml"
_TILES = 48
_SAMPLE = "A sample of the volumes that can be used: the patient's right is on the left, DICOM as it is stored"
_VOXELS_LATER = (
    "Voxels are looked at when a volume is prepared. A volume that is constant or damaged is left out then, and so is "
    "a label map whose path does not say that it is one."
)
_LABELS = {"columns": "columns", "rows": "rows", "slices": "slices", "spacing_x": "between columns (mm)",
           "spacing_y": "between rows (mm)", "spacing_z": "between slices (mm)"}  # fmt: skip


class IndexReport:
    """Writes `report.html` and `index.json` beside an index, unless they say already what they would.

    Args:
        folder: of the index.
        estimate: measures what preparation and training will take; None: nothing is measured.
        sample: volumes to measure on; 0: nothing is measured.
        mosaic: whether to show middle slices of volumes.
        hash_names: whether to show digests of the volumes' paths instead of the paths.
    """

    def __init__(
        self,
        folder: IndexFolder,
        *,
        estimate: Estimate | None = None,
        sample: int = 4,
        mosaic: bool = True,
        hash_names: bool = False,
    ) -> None:
        self.folder, self.estimate, self.sample = folder, estimate, sample
        self.mosaic, self.hash_names = mosaic, hash_names

    def write(self) -> None:
        """Writes both files."""
        volumes, about = read_volumes(self.folder.index, hash_names=self.hash_names)
        settings: dict[str, Any] = {"mosaic": self.mosaic, "hash_names": self.hash_names, "sample": self.sample}
        if self.estimate is not None:
            settings |= {"training": self.estimate.training, "overrides": self.estimate.overrides}
        made_from = hashlib.sha256(repr((volumes, about, settings)).encode(errors="replace")).hexdigest()[:16]
        if self.folder.report.is_file() and self._before() == made_from:
            logger.info("%s says what is there already", self.folder.report)
            return
        facts = {**about, **count_volumes(volumes)}
        drawn = draw_sample(volumes, _TILES) if self.mosaic else []
        pictures = self._draw(drawn) if drawn else None
        if self.estimate is not None and self.sample and facts["usable"]:
            measured, _ = read_volumes(self.folder.index)  # a training has the names themselves
            facts["estimate"] = self.estimate(
                self.folder.index, draw_sample(measured, self.sample), int(facts["voxels"])
            )
        self._page(volumes, facts, drawn, pictures).write(self.folder.report)
        with replace_file(self.folder.facts) as temporary:
            temporary.write_text(json.dumps({**facts, "made_from": made_from}, indent=2) + "\n")
        logger.info(
            "%d volumes can be used, %d are left out: %s", facts["usable"], facts["left_out"], self.folder.report
        )

    def _before(self) -> str:
        """What the json was made from, or ""."""
        try:
            return str(json.loads(self.folder.facts.read_text())["made_from"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _draw(self, drawn: Sequence[Mapping[str, Any]]) -> Any:
        with open_to_read(self.folder.index) as connection:
            root = root_folder(connection)
            files = [volume_paths(connection, root, volume["id"]) for volume in drawn]
        return draw_mosaic(list(zip(drawn, files, strict=True)), self.folder.num_workers)

    def _page(
        self,
        volumes: Sequence[Mapping[str, Any]],
        facts: Mapping[str, Any],
        drawn: Sequence[Mapping[str, Any]],
        pictures: Any,
    ) -> Report:
        usable = [volume for volume in volumes if volume["usable"]]
        lead = f"{facts['usable']} volumes can be used, {facts['left_out']} are left out."
        report = Report("Index of an archive", lead=lead, hide_values=self.hash_names)
        _what(report, facts)
        _histograms(report, usable)
        if pictures is not None:
            report.section("Middle slices").picture(pictures, caption=_SAMPLE)
            names = [[number, volume["name"]] for number, volume in enumerate(drawn, start=1)]
            report.section("Whose middle slices these are", folded=True).table(["number", "volume"], names)
        if "estimate" in facts:
            _takes(report, facts["estimate"], usable)
        _left_out(report, volumes, facts)
        index = self.folder.index.name if self.hash_names else self.folder.index
        command = f"{_TRAINING} --dataset_dir {shlex.quote(str(index))}"
        section = report.section("Start from it").paragraph(
            "Training, embedding, reconstruction and prediction start from the index. All volumes, or those that a "
            "condition chooses:"
        )
        section.code(f'{command}\n{command} --where "{propose_condition(usable)}"' if usable else command)
        return report


def propose_condition(usable: Sequence[Mapping[str, Any]]) -> str:
    """A condition that fits about three quarters of the volumes of the most frequent modality, as an example.

    Args:
        usable: the columns of volumes, at least one.

    Example:
        >>> propose_condition([{"modality": "", "slices": 35}, {"modality": "", "slices": 40}])
        'slices >= 36'
        >>> propose_condition([{"modality": "MR", "slices": 35}, {"modality": "", "slices": 40}])
        "modality == 'MR' and slices >= 35"
    """
    known = Counter(volume["modality"] for volume in usable if volume["modality"] in ("CT", "MR"))
    modality = known.most_common(1)[0][0] if known else ""
    slices = [volume["slices"] for volume in usable if volume["modality"] == modality or not known]
    condition = f"slices >= {int(np.percentile(slices, 25))}"
    return f"modality == '{modality}' and {condition}" if known else condition


def _what(report: Report, facts: Mapping[str, Any]) -> None:
    files = facts["files"]
    told = {
        "archive": facts["archive"],
        "files": files["all"],
        "DICOM images": files.get("slice", 0),
        "files with one volume each": files.get("volume", 0),
        "DICOM objects that are no images": files.get("object", 0),
        "DICOM, empty or cut off": files.get("damaged", 0),
        "cannot be opened": files.get("locked", 0),
        "of another kind": files.get("other", 0),
        "patients (by DICOM)": facts["patients"],
        "volumes of unknown patients": facts["without_patient"],
        "gigabytes of usable volumes": round(facts["megabytes"] / 1000, 3),
    }
    section = report.section("What is there").facts({name: value for name, value in told.items() if value != ""})
    section.paragraph(_VOXELS_LATER)
    for name in ("modality", "format", "site"):
        section.table([name, "usable volumes"], list(facts[name].items()), file="index.json")
    if files["objects"]:
        section.table(["DICOM objects by modality", "files"], list(files["objects"].items()))


def _histograms(report: Report, usable: Sequence[Mapping[str, Any]]) -> None:
    if not usable:
        return
    kinds = sorted({volume["modality"] for volume in usable})
    section = report.section("Sizes and spacings")
    for names in (list(AXES), list(AXES.values())):
        quantities = {
            _LABELS[name]: {
                kind or "not known": [volume[name] for volume in usable if volume["modality"] == kind] for kind in kinds
            }
            for name in names
        }
        section.picture(draw_histograms(quantities), alt=f"histograms of {', '.join(names)}")


def _takes(report: Report, estimate: Mapping[str, Any], usable: Sequence[Mapping[str, Any]]) -> None:
    section = report.section("What it will take on this machine")
    if "problem" in estimate:
        section.paragraph(f"It could not be measured: {estimate['problem']}")
        return
    crop = "x".join(map(str, estimate["crop_size"]))
    section.paragraph(
        f"Measured on {estimate['sample']} of {len(usable)} volumes, and scaled by the number of voxels. The step was "
        f"timed with {estimate['timed_crops']} of its {estimate['batch_size']} crops."
    ).facts(
        {
            "disk for the prepared volumes": f"{estimate['disk_gigabytes']:.3g} GB",
            f"preparation, {estimate['num_workers']} at a time": f"{estimate['preparation_hours']:.3g} h",
            f"steps of {estimate['batch_size']} crops of {crop} on {estimate['device']}": (
                f"{estimate['steps_per_second']:.3g} per second"
            ),
            "one step, loading apart": f"{estimate['seconds_per_step']:.3g} s",
            "one crop, read by one process from files just written": f"{estimate['seconds_per_crop']:.3g} s",
        }
    )


def _left_out(report: Report, volumes: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    if facts["left_out"]:
        section = report.section(f"Left out: {facts['left_out']}")
        section.table(["why", "volumes"], list(facts["reasons"].items()), file="index.json")
        rows = [[volume["name"], volume["problem"], volume["remedy"]] for volume in volumes if not volume["usable"]]
        report.section("Left out, one by one", folded=True).table(["volume", "why", "what to do"], rows)
    if facts["duplicate_volumes"]:
        section = report.section(f"Duplicates: {facts['duplicate_volumes']}")
        section.table(["left out", "equal to"], list(facts["duplicates"].items()), file="index.json")
    if facts["noted"]:
        section = report.section("Used in part or resampled", folded=True)
        section.table(["what the reader will do", "volumes"], list(facts["noted"].items()))
