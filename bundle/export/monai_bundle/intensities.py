# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How a run brings intensities to scale, in words and as the range of what the network sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.export.monai_bundle.finished_run import FinishedRun

__all__ = ["describe_intensities", "value_range"]

#: by `over` of a z-score
_OVER = {
    "volume": "of the volume",
    "nonzero": "of the voxels that are not 0",
    "nonzero_box": "of the smallest box with all voxels that are not 0",
    "inside": "of the voxels that are not 0 and the holes in them; the others stay 0",
}
#: of a z-score, roughly
_DEVIATIONS = [-10.0, 10.0]


def describe_intensities(run: FinishedRun) -> list[str]:
    """A sentence for each modality, or for each image where weights from elsewhere have schemes of their own.

    Args:
        run: to be handed on.
    """
    schemes = _schemes(run)
    if schemes:
        alike = all(scheme == schemes[0] for scheme in schemes)
        named = {"intensities": schemes[0]} if alike else {f"image {n}": one for n, one in enumerate(schemes)}
        return [f"{name}: {_in_words(scheme)}" for name, scheme in named.items()]
    lines = []
    if "CT" in run.modalities:
        low, high = run.content["ct_window"]
        lines.append(f"CT: {low:g} to {high:g} HU, mapped to -1 to 1")
    if "MR" in run.modalities:
        low, high = run.content["mr_percentiles"]
        lines.append(f"MR: clipped to the percentiles {low:g} and {high:g} of the body, z-scored on it")
    return lines


def value_range(run: FinishedRun) -> list[float]:
    """The lowest and the highest value of prepared images; empty where a file's own values stay.

    Args:
        run: to be handed on.
    """
    schemes = _schemes(run)
    if not schemes:
        return [-1, 1] if run.modality == "CT" else list(_DEVIATIONS)
    ranges = [_range(scheme) for scheme in schemes]
    return [min(r[0] for r in ranges), max(r[1] for r in ranges)] if all(ranges) else []


def _schemes(run: FinishedRun) -> list[Mapping[str, Any]]:
    """As `bundle.data.NormalizeBySchemed` takes them; none for this project's own way."""
    given = run.content.get("intensity_scheme")
    return [given] if isinstance(given, Mapping) else list(given or [])


def _in_words(scheme: Mapping[str, Any]) -> str:
    kind = scheme["kind"]
    if kind == "z_score":
        return f"minus the mean, divided by the standard deviation, {_OVER[scheme.get('over', 'volume')]}"
    if kind == "rescale":
        return "from the lowest to the highest value, mapped to 0 to 1"
    if kind == "none":
        return "as in the file"
    clipped = "clipped to {:g} to {:g}".format(*scheme["window"])
    if kind == "range":
        return f"{clipped}, mapped to {' to '.join(f'{value:g}' for value in scheme['to'])}"
    return f"{clipped}, minus {scheme['mean']:g}, divided by {scheme['deviation']:g}"


def _range(scheme: Mapping[str, Any]) -> list[float]:
    """The lowest and the highest value that a scheme gives; empty where that is not known."""
    kind = scheme["kind"]
    if kind == "statistics":
        deviation = max(scheme["deviation"], 1e-8)  # as where it is applied
        return [round((edge - scheme["mean"]) / deviation, 4) for edge in scheme["window"]]
    known = {"z_score": _DEVIATIONS, "rescale": [0.0, 1.0], "range": scheme.get("to", [])}
    return list(known.get(kind, []))
