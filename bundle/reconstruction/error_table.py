# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How far a reconstruction is off, beside two predictors that know nothing of anatomy."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bundle.atomic import replace_file
from bundle.data import table_row
from bundle.reconstruction.prepared import WholeVolume
from bundle.reconstruction.tiles import Reconstructed

__all__ = ["SHOWN", "error_row", "error_text", "write_errors"]

#: title and column of what is shown
SHOWN = (
    ("volume", "volume"),
    ("hidden", "hidden_share"),
    ("MAE", "mae"),
    ("in body", "mae_foreground"),
    ("in air", "mae_air"),
    ("predict mean", "mae_mean_predictor"),
    ("predict 0", "mae_zero_predictor"),
    ("unit", "unit"),
    ("loss", "loss"),
    ("of mean", "loss_mean_predictor"),
    ("of 0", "loss_zero_predictor"),
)


def error_row(volume: WholeVolume, found: Reconstructed) -> dict[str, Any]:
    """One volume's errors on its hidden voxels, of the volume as prepared: at its spacing, clipped to its window.

    - loss, loss_zero_predictor, loss_mean_predictor: as in training, against the normalised target;
    - mae...: mean absolute errors in the file's units (HU for CT), also of the body and the air alone;
    - mae_normalised: the same in units of the prepared volume.

    The zero predictor gives 0 of the normalised target in the loss, and 0 of the prepared volume in the MAE (0 HU with
    a symmetric window, the body's mean in MR); the mean predictor gives the mean of what each window let see.
    """
    hidden, body = found.hidden, volume.foreground
    image = volume.image.as_subclass(Tensor)
    error, of_mean = (found.image - image).abs(), (found.mean_predictor - image).abs()

    def mean(errors: Tensor, where: Tensor) -> float | None:
        return errors[where].double().mean().item() if where.any() else None

    normalised = {
        "mae": mean(error, hidden),
        "mae_foreground": mean(error, hidden & body),
        "mae_air": mean(error, hidden & ~body),
        "mae_mean_predictor": mean(of_mean, hidden),
        "mae_zero_predictor": mean(image.abs(), hidden),
    }
    return {
        "volume": volume.name,
        "modality": volume.modality,
        "unit": volume.unit,
        "hidden_voxels": int(hidden.sum()),
        "hidden_share": int(hidden.sum()) / max(1, int(volume.valid.sum())),
        "loss": found.terms["reconstruction"],
        "loss_mean_predictor": found.terms["mean_predictor"],
        "loss_zero_predictor": found.terms["zero_predictor"],
        **{name: None if value is None else value * volume.scale for name, value in normalised.items()},
        "mae_normalised": normalised["mae"],
    }


def write_errors(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the rows as csv; a metric that a volume has not got is an empty cell."""
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows(table_row(row.values()) for row in rows)


def error_text(rows: Sequence[dict[str, Any]]) -> str:
    """The main metrics as a table in text."""
    table = [[title for title, _ in SHOWN]]
    table += [[_cell(row[name]) for _, name in SHOWN] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
