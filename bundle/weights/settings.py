# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What `model.json` holds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bundle.errors import UserError

__all__ = ["ModelSettings"]


@dataclass(frozen=True)
class ModelSettings:
    """What `model.json` says of the weights beside it.

    Every key may be missing. Keys that have no attribute here stay in `content`: of pre-training they are modality,
    intensity, total_stride, levels, mask_ratio, volumes, licence, version, epochs, iterations, parameters and
    versions; fine-tuning adds network, classes and what its task needs.

    Attributes:
        encoder: name and arguments of the encoder, as for `build_encoder`; empty if the file does not say.
        crop_size: voxels per axis that the encoder saw at a time; empty if the file does not say.
        spacing: mm per axis that volumes were resampled to; None keeps each volume's spacing, None in it that axis's.
        ct_window: HU, lowest and highest.
        mr_percentiles: of the foreground, lowest and highest.
        intensity_scheme: of weights from elsewhere, as for `bundle.data.NormalizeBySchemed`; None for our own way.
        mr_floor: deviations below the foreground's mean to which MR is kept; None: the lower percentile.
        sha256: of the weights, or "".
        decoder_sha256: of the decoder's weights, or "".
        content: the whole file.
    """

    encoder: Mapping[str, Any] = field(default_factory=dict)
    crop_size: Sequence[int] = ()
    spacing: Sequence[float | None] | None = None
    ct_window: Sequence[float] = (-1000, 1000)
    mr_percentiles: Sequence[float] = (0.5, 99.5)
    intensity_scheme: Any = None
    mr_floor: float | None = 3.0
    sha256: str = ""
    decoder_sha256: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> ModelSettings:
        """Takes the content of a `model.json`."""
        names = {each.name for each in dataclasses.fields(cls)} - {"content"}
        return cls(**{key: value for key, value in content.items() if key in names}, content=dict(content))

    @property
    def orientation(self) -> str:
        """To where the axes of the volumes run, one letter for each, such as "RAS"."""
        return str(self.content.get("orientation", "RAS"))

    def require(self, *names: str, where: str | os.PathLike[str]) -> None:
        """Checks that the content has keys.

        Raises:
            UserError: if one is missing.
        """
        if lacking := [name for name in names if name not in self.content]:
            raise UserError(
                f"{os.fspath(where)} lacks {', '.join(lacking)}: copy the model.json that pre-training wrote with the "
                "weights"
            )
