# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How volumes were prepared for pre-training, so that fine-tuning prepares its own alike."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.errors import UserError

__all__ = ["PretrainedSettings"]

logger = logging.getLogger(__name__)

#: what holds if neither the weights nor the config say anything
_DEFAULTS: dict[str, Any] = {"spacing": None, "ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}
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

    Attributes:
        encoder: name and arguments of the encoder.
        spacing: mm per axis (R, A, S), or None: each volume's own.
        ct_window: HU, lowest and highest.
        mr_percentiles: of the foreground, lowest and highest.

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
    ) -> None:
        if isinstance(pretrained, bool):
            raise UserError(f"--pretrained {pretrained} names no file: give weights, or --pretrained None for scratch")
        recorded = {} if pretrained is None else _recorded(Path(str(pretrained)).with_suffix(".json"))
        given = {"spacing": spacing, "ct_window": ct_window, "mr_percentiles": mr_percentiles}
        used = {name: _pick(name, value, recorded) for name, value in given.items()}
        self.spacing: list[float | None] | None = used["spacing"]
        self.ct_window: list[float] = used["ct_window"]
        self.mr_percentiles: list[float] = used["mr_percentiles"]
        self.encoder: dict[str, Any] = dict(recorded.get("encoder") or encoder)

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


def _recorded(file: Path) -> dict[str, Any]:
    if not file.is_file():
        logger.warning(
            "%s does not exist: volumes are prepared as the config says, and the network is built with its encoder",
            file,
        )
        return {}
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise UserError(
            f"{file} is no readable json ({error}): copy it again, or move it away to do without"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not what pre-training writes beside its weights: copy it again, or move it away")
    return content


def _pick(name: str, given: Any, recorded: Mapping[str, Any]) -> Any:
    if given is None:
        return recorded.get(name, _DEFAULTS[name])
    if given == "own" and name == "spacing":
        value = None
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) == _LENGTHS[name]:
        value = list(given)
    else:
        such = "[1, 1, 1], own" if name == "spacing" else str(_DEFAULTS[name])
        raise UserError(f"--{name} {given!r} does not fit: give {_LENGTHS[name]} numbers such as {such}, or null")
    if name in recorded and recorded[name] != value:
        logger.warning(
            "%s is %s here, but the encoder was pre-trained with %s: its features may fit less",
            name,
            value,
            recorded[name],
        )
    return value
