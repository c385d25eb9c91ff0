# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The DICOM object of a segmentation, as highdicom makes it. To be imported where highdicom is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from highdicom import (
    UID,
    AlgorithmIdentificationSequence,
    CoordinateSystemNames,
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
)
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from bundle.figures.colours import class_colours
from bundle.prediction.dicom_seg.codes import segment_codes
from bundle.runs.version import project_version

__all__ = ["make_segmentation"]

#: of the series that it makes; those of the images are small
_SERIES_NUMBER = 1000
#: what a text of the kinds LO and CS can hold
_LONGEST_TEXT = 64
_NAME = "ct_mr_sparse_mim_pretraining"


def make_segmentation(
    numbers: np.ndarray,
    affine: np.ndarray,
    *,
    sources: Sequence[Dataset],
    places: Sequence[np.ndarray] | None,
    classes: Sequence[str] | Mapping[str, int],
    model: str,
) -> Segmentation:
    """A segmentation that refers to a series and has nothing of the patient yet.

    Args:
        numbers: of the segments, from 1, uint8 ``[slices, rows, columns]``.
        affine: of the grid, ``[4, 4]``, from index (column, row, slice) to RAS mm.
        sources: as `source_images` gives them.
        places: positions of the slices, LPS mm, where each is an image of the series; else they are told by the affine.
        classes: names of the segments.
        model: what identifies the model.
    """
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it logs UIDs, which tell a series
    multi_frame = "NumberOfFrames" in sources[0]
    geometry: dict[str, Any] = {}
    if places is None or multi_frame:  # else the geometry is that of the images, one for each slice, to the digit
        geometry = _geometry(affine, places if places is not None else _by_affine(affine, len(numbers)), sources[0])
    if multi_frame:  # highdicom takes one
        sources, geometry["further_source_images"] = sources[:1], sources[1:]
    seg = Segmentation(
        source_images=sources,
        pixel_array=numbers,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=_segments(list(classes)),
        series_instance_uid=UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="Mask-in-Mask bundle",
        manufacturer_model_name=_NAME,
        software_versions=project_version(),
        device_serial_number=model[:_LONGEST_TEXT],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="SEGMENTATION",
        content_description="Made by a model, not checked by a person",
        series_description="Automatic segmentation",
        specific_character_set="ISO_IR 192",  # names of classes and patients in any script
        **geometry,
    )
    seg.ContentCreatorName = None  # the standard asks for it, though it may be empty
    return seg


def _segments(classes: Sequence[str]) -> list[SegmentDescription]:
    """What each segment is, by the names of the classes."""
    algorithm = AlgorithmIdentificationSequence(
        name=_NAME, family=codes.cid7162.ArtificialIntelligence, version=project_version()
    )
    segments = []
    for number, (name, colour) in enumerate(zip(classes, class_colours(len(classes))), start=1):
        found = segment_codes(name)
        segment = SegmentDescription(
            segment_number=number,
            segment_label=name.replace("\\", "/")[:_LONGEST_TEXT],
            segmented_property_category=found.category,
            segmented_property_type=found.kind,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=None if found.region is None else [found.region],
            display_color=CIELabColor.from_rgb(*(255 * colour)),
        )
        if found.side is not None:
            side = [CodedConcept.from_code(found.side)]
            if found.region is not None:
                segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
            else:
                segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
        segments.append(segment)
    return segments


def _geometry(affine: np.ndarray, places: Sequence[np.ndarray], source: Dataset) -> dict[str, Any]:
    """Where slices are, in highdicom's words."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)[:3]
    column, row = np.linalg.norm(lps[:, :2], axis=0)  # mm between columns, and between rows
    patient = CoordinateSystemNames.PATIENT
    return {
        "plane_positions": [PlanePositionSequence(patient, place.tolist()) for place in places],
        "plane_orientation": PlaneOrientationSequence(patient, (lps[:, :2] / [column, row]).T.flatten().tolist()),
        "pixel_measures": PixelMeasuresSequence(
            pixel_spacing=[row, column],
            slice_thickness=float(source.SliceThickness),
            spacing_between_slices=float(source.SpacingBetweenSlices),
        ),
    }


def _by_affine(affine: np.ndarray, count: int) -> list[np.ndarray]:
    """The positions of slices on the grid, LPS mm."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)[:3]
    return [lps @ [0, 0, index, 1] for index in range(count)]
