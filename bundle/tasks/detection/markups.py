# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes as 3D Slicer's markups: a region of interest each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.figures.colours import class_colours

__all__ = ["box_markups"]

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
#: of a box along the axes of the world
_ALONG = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def box_markups(
    boxes: Sequence[Sequence[float]], classes: Sequence[int], scores: Sequence[float], *, names: Sequence[str]
) -> dict[str, Any]:
    """The content of a `.mrk.json` file, in LPS coordinates, which it says; Slicer's own world is RAS.

    Args:
        boxes: centre and size in mm, RAS, of each box.
        classes: of each box, from 0.
        scores: of each box.
        names: of the classes.
    """
    colours = [[round(float(part), 4) for part in colour] for colour in class_colours(len(names))]
    markups = []
    for number, (box, index, score) in enumerate(zip(boxes, classes, scores, strict=True), start=1):
        centre = [-box[0], -box[1], box[2]]
        point = {"id": "1", "label": names[index], "position": centre, "orientation": _ALONG, "selected": True,
                 "locked": False, "visibility": True, "positionStatus": "defined"}  # fmt: skip
        markups.append({
            "type": "ROI",
            "name": f"{names[index]} {number} ({score:.2f})",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "locked": True,
            "labelFormat": "%N-%d",
            "roiType": "Box",
            "center": centre,
            "orientation": _ALONG,
            "size": list(box[3:]),
            "insideOut": False,
            "controlPoints": [point],
            "display": {"visibility": True, "opacity": 1.0, "color": colours[index], "selectedColor": colours[index]},
        })  # fmt: skip
    return {"@schema": _SCHEMA, "markups": markups}
