# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How volumes were prepared for pre-training, so that fine-tuning prepares its own alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from bundle.errors import UserError
from bundle.weights import ModelFiles, ModelSettings

__all__ = ["PretrainedSettings"]

logger = logging.getLogger(__name__)

_LENGTHS = {"spacing": 3, "ct_window": 2, "mr_percentiles": 2}


class PretrainedSettings:
    """The settings recorded beside a weights file, each of which the config may override.

    They stand in `model.json` beside `model.pt`. A value given here that differs from the recorded one is used, with a
    warning: the encoder has learned what an organ looks like at the spacing and intensities it was pre-trained on.

    Args:
        pretrained: the weights file; None to train from scratch.
        encoder: name and arguments of the encoder where no weights tell them, as for `build_encoder`.
        spacing: mm per axis, or None for the recorded one; "own" keeps each volume's own.
        ct_window: HU, lowest and highest, or None for the recorded one.
        mr_percentiles: of the foreground, or None for the recorded ones.
        intensity_scheme: as for `bundle.data.normalization`, for a training from scratch that is to have the volumes
            of some weights; None for the recorded one.

    Attributes:
        encoder: name and arguments of the encoder.
        spacing: mm per axis (R, A, S), or None: each volume's own.
        ct_window: HU, lowest and highest.
        mr_percentiles: of the foreground, lowest and highest.
        intensity_scheme: of weights from elsewhere, as for `bundle.data.normalization`, or None.
        orientation: to where the axes of volumes run: those of the weights in the order x, y, z; RAS from scratch.

    Raises:
        UserError: if `model.json` cannot be read, or a value does not fit.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        encoder: Mapping[str, Any],
        spacing: Sequence[float | None] | str | None = None,
        ct_window: Sequence[float] | None = None,
        mr_percentiles: Sequence[float] | None = None,
        intensity_scheme: Any = None,
    ) -> None:
        if isinstance(pretrained, bool):
            raise UserError(f"--pretrained {pretrained} names no file: give weights, or --pretrained None for scratch")
        recorded = ModelSettings() if pretrained is None else _read_recorded(str(pretrained))
        given = {"spacing": spacing, "ct_window": ct_window, "mr_percentiles": mr_percentiles}
        used = {name: _pick(name, value, recorded) for name, value in given.items()}
        self.spacing: list[float | None] | None = used["spacing"]
        self.ct_window: list[float] = used["ct_window"]
        self.mr_percentiles: list[float] = used["mr_percentiles"]
        self.intensity_scheme = recorded.intensity_scheme
        if self.intensity_scheme is not None and (ct_window is not None or mr_percentiles is not None):
            logger.warning(
                "the weights expect intensities by the scheme %s, but --ct_window or --mr_percentiles is given, which "
                "replaces it: their features may fit less",
                self.intensity_scheme,
            )
            self.intensity_scheme = None
        self.intensity_scheme = intensity_scheme or self.intensity_scheme
        self.orientation = recorded.orientation
        self.encoder: dict[str, Any] = dict(recorded.encoder or encoder)

    def argument(self, name: str, *default: Any) -> Any:
        """An argument of the encoder, for a network that contains it.

        Args:
            name: of the argument.
            *default: what it is if the encoder was built without it; give it where MONAI has a default.

        Raises:
            UserError: if the encoder has no such argument and there is no default.
        """
        if name not in self.encoder:
            if default:
                return default[0]
            raise UserError(
                f"the network asks for {name!r} of the encoder {self.encoder.get('name')}, which was built with "
                f"{', '.join(map(str, self.encoder))}: choose a network that contains this encoder, see "
                "docs/how-to/finetune_segmentation.md"
            )
        return self.encoder[name]


def _read_recorded(pretrained: str) -> ModelSettings:
    files = ModelFiles(pretrained)
    found = files.describe()
    if found is None:
        logger.warning(
            "%s does not exist: volumes are prepared as the config says, and the network is built with its encoder",
            files.settings,
        )
    return found or ModelSettings()


def _pick(name: str, given: Any, recorded: ModelSettings) -> Any:
    found = getattr(recorded, name)  # what holds if neither the weights nor the config say anything is there, too
    used = list(found) if isinstance(found, Sequence) else found
    if given is None:
        return used
    if given == "own" and name == "spacing":
        value = None
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) == _LENGTHS[name]:
        value = list(given)
    else:
        example = "[1, 1, 1], own" if name == "spacing" else str(list(getattr(ModelSettings, name)))
        raise UserError(f"--{name} {given!r} does not fit: give {_LENGTHS[name]} numbers such as {example}, or null")
    if name in recorded.content and used != value:
        told = given if isinstance(given, str) else value
        logger.warning(
            "%s is %s here, but the encoder was pre-trained with %s: its features may fit less", name, told, used
        )
    return value
