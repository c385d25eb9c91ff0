# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the file beside the weights says: which encoder they are for, and how it wants its volumes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import UserError

__all__ = ["ModelSettings", "read_settings"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSettings:
    """The settings of a pre-training that inference must share.

    Attributes:
        encoder: the name and arguments of the MONAI network.
        crop_size: voxels per axis that the encoder saw at a time.
        spacing: mm per axis that volumes were resampled to, or None for their own; None in it keeps that axis.
        ct_window: HU, lowest and highest.
        mr_percentiles: of the foreground, lowest and highest.
        sha256: of the weights, or "" if it is not known.
    """

    encoder: Mapping[str, Any]
    crop_size: Sequence[int]
    spacing: Sequence[float | None] | None
    ct_window: Sequence[float]
    mr_percentiles: Sequence[float]
    sha256: str = ""


def read_settings(weights: str | os.PathLike[str], defaults: Mapping[str, Any]) -> ModelSettings:
    """Reads the json of the same name beside a weights file.

    Args:
        weights: the path of the weights, such as "models/model.pt"; it need not exist.
        defaults: the attributes of `ModelSettings` where there is no such json.

    Raises:
        UserError: if the json cannot be read or lacks a setting.
    """
    path = Path(weights).with_suffix(".json")
    content: Any = defaults
    if path.is_file():
        try:
            content = json.loads(path.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is no readable json ({error}): copy it again from the run's folder") from error
    elif Path(weights).is_file():
        logger.warning("no %s beside the weights: taking the encoder and the settings from the config", path.name)
    names = ("encoder", "crop_size", "spacing", "ct_window", "mr_percentiles")
    lacking = [name for name in names if not isinstance(content, Mapping) or name not in content]
    if lacking:
        raise UserError(
            f"{path} lacks {', '.join(lacking)}: copy the model.json that pre-training wrote with the weights"
        )
    return ModelSettings(**{name: content[name] for name in names}, sha256=str(content.get("sha256", "")))
