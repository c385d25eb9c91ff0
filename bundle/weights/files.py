# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One model on the disk: its files read, verified, written and copied together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import monai
import torch
from torch import Tensor

from bundle.atomic import replace_file
from bundle.errors import UserError
from bundle.weights.cards import PublishedEncoder, recognise
from bundle.weights.orientation import ordered_axes, turn_kernels, turn_settings
from bundle.weights.read import read_checkpoint, read_weights
from bundle.weights.settings import ModelSettings

__all__ = ["ModelFiles", "checksum"]

logger = logging.getLogger(__name__)

#: the network that adds what it has pooled to what it has convolved with a stride
_POOLED_SKIPS = "ResidualEncoderUNet"


class ModelFiles:
    """The files of one model: `model.pt`, and beside it `model.json` and, if it has one, `model_decoder.pt`.

    `model.json` holds the sha256 of the two others. Whoever reads weights here reads those that it was written for, or
    gets an error. Without a `model.json`, or where it holds no sha256, nothing is checked.

    Args:
        weights: path of `model.pt`, or of the folder of a run with that file; the others have its name.

    Attributes:
        weights: file of the encoder's, or the whole network's, weights.
        settings: file of the settings.
        decoder: file of the pre-trained decoder's weights.
    """

    def __init__(self, weights: str | os.PathLike[str]) -> None:
        self.weights = Path(weights) / "model.pt" if Path(weights).is_dir() else Path(weights)
        self.settings = self.weights.with_suffix(".json")
        self.decoder = self.weights.with_name(f"{self.weights.stem}_decoder{self.weights.suffix}")

    def exist(self) -> bool:
        """Whether any of them is there, so that a new model would write over it."""
        return any(file.exists() for file in (self.weights, self.settings, self.decoder))

    def read_settings(self) -> ModelSettings | None:
        """Reads `model.json`; None where there is none.

        Raises:
            UserError: if it is damaged.
        """
        if not self.settings.is_file():
            return None
        remedy = "copy it again from the run folder, or move it away to do without"
        try:
            content = json.loads(self.settings.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{self.settings} is no readable json, it is damaged ({error}): {remedy}") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.settings} is no json of a model, it holds no settings: {remedy}")
        encoder = content.get("encoder", {})
        if not isinstance(encoder, dict) or (encoder and not isinstance(encoder.get("name"), str)):
            raise UserError(f'{self.settings} has no encoder of the form {{"name": "SegResEncoder", ...}}: {remedy}')
        return ModelSettings.from_content(content)

    def describe(self) -> ModelSettings | None:
        """What `model.json` says, or where there is none, what is known of published weights with this layout.

        It is for volumes with axes in the order x, y, z. Where the weights are for another order, this is turned, and
        `read_encoder` turns the weights to its `orientation` without a change of what they say.

        Raises:
            UserError: if the json, or without one the weights, cannot be read.
        """
        found = self.read_settings()
        if found is not None:
            try:
                return ModelSettings.from_content(turn_settings(found.content, ordered_axes(found.orientation)))
            except UserError as error:
                raise UserError(f"{self.settings}: {error}") from error
        if not self.weights.is_file():
            return None
        published = self.read_published()
        return None if published is None else published.settings

    def read_published(self) -> PublishedEncoder | None:
        """Reads the weights of a known source; None where a `model.json` says what they are, or they are nobody's.

        Raises:
            UserError: if they cannot be read, or contradict the plan in their file.
        """
        if self.settings.is_file():
            return None
        weights, about = read_checkpoint(self.weights)
        try:
            return recognise(weights, about)
        except UserError as error:
            raise UserError(f"{self.weights}: {error}") from error

    def read_encoder(self, axes: str = "RAS") -> dict[str, Tensor]:
        """Reads the weights; of known published ones without a `model.json` the encoder's.

        Args:
            axes: of the volumes that the network will see, as for `turn_kernels`. Where one is mirrored, a warning says
                what that does to a ResidualEncoderUNet.

        Raises:
            UserError: as `read_weights`.
        """
        published = self.read_published()
        if published is None:
            weights = self._turned(self.read_weights(), axes)
            if (about := self.read_settings()) is not None:
                self._warn_of_mirrored(str(about.encoder.get("name")), about.orientation, axes)
            return weights
        card = published.card
        logger.warning(
            "%s has the layout of %s and is taken for it: %s, trained on %s, licence: %s. If it is something else, put "
            "a model.json beside it that says so",
            self.weights,
            card.title,
            card.modality,
            card.trained_on,
            card.licence,
        )
        self._warn_of_mirrored(str(published.encoder["name"]), card.axes, axes)
        return turn_kernels(published.weights, "RAS", to=axes)

    def _warn_of_mirrored(self, encoder: str, trained: str, axes: str) -> None:
        if encoder == _POOLED_SKIPS and ordered_axes(trained) != ordered_axes(axes):
            logger.warning(
                "%s was trained on volumes with axes %s, and its kernels are turned to %s: a %s then adds features "
                "that lie beside each other, and gives others than the original. Volumes with axes %s would keep them",
                self.weights,
                trained,
                axes,
                encoder,
                ordered_axes(trained),
            )

    def read_weights(self) -> dict[str, Tensor]:
        """Reads the weights, on the CPU.

        Raises:
            UserError: if they are not there, damaged, or not those that `model.json` describes.
        """
        self.verify_weights()
        return read_weights(self.weights)

    def read_decoder(self, axes: str = "RAS") -> dict[str, Tensor]:
        """Reads the decoder's weights, on the CPU.

        Args:
            axes: as for `read_encoder`.

        Raises:
            UserError: if they are not there, damaged, or not those that `model.json` describes.
        """
        self.verify_decoder()
        return self._turned(read_weights(self.decoder), axes)

    def _turned(self, weights: dict[str, Tensor], axes: str) -> dict[str, Tensor]:
        about = self.read_settings()
        try:
            return turn_kernels(weights, "RAS" if about is None else about.orientation, to=axes)
        except UserError as error:
            raise UserError(f"{self.settings}: {error}") from error

    def verify_weights(self) -> None:
        """Compares the weights, where they are, with `model.json`.

        A `.safetensors` file is an export of the weights, and `model.json` holds no sha256 of it.

        Raises:
            UserError: if they are not those that it describes.
        """
        about = self.read_settings()
        if about is not None and about.sha256 and self.weights.is_file() and self.weights.suffix != ".safetensors":
            self._verify(self.weights, about.sha256)

    def verify_decoder(self) -> None:
        """Compares the decoder's weights with `model.json`: one that this does not name is another model's.

        Raises:
            UserError: if they are not those that it describes, or it names some that are missing.
        """
        about = self.read_settings()
        if about is None or not (about.sha256 or about.decoder_sha256):
            return
        if self.decoder.is_file():
            self._verify(self.decoder, about.decoder_sha256)
        elif about.decoder_sha256:
            raise UserError(f"{self.decoder} is missing: copy it beside {self.weights.name}")

    def _verify(self, file: Path, expected: str) -> None:
        if checksum(file) != expected:
            raise UserError(
                f"{file} is not the file that {self.settings.name} describes, it is damaged or of another model: "
                "copy both from one run folder, or download them again"
            )

    def write(
        self, weights: Mapping[str, Tensor], settings: Mapping[str, Any], decoder: Mapping[str, Tensor] | None = None
    ) -> None:
        """Writes all files; each is whole on the disk before the first takes its place.

        Args:
            weights: a flat state dict.
            settings: for `model.json`, which also gets the sha256 of the files and the versions of MONAI and PyTorch.
                Dataclasses become their fields, other values that are no JSON text.
            decoder: a flat state dict, or nothing; then a decoder that lies there, another model's, is removed.
        """
        with ExitStack() as stack:
            about_file = stack.enter_context(replace_file(self.settings))
            about = {**settings, "sha256": _save(weights, stack.enter_context(replace_file(self.weights)))}
            if decoder:
                about["decoder_sha256"] = _save(decoder, stack.enter_context(replace_file(self.decoder)))
            about["versions"] = {"monai": monai.__version__, "torch": torch.__version__}
            about_file.write_text(json.dumps(about, indent=4, default=_as_json) + "\n")
        if not decoder:
            self.decoder.unlink(missing_ok=True)

    def copy_to(self, target: str | os.PathLike[str]) -> ModelFiles:
        """Copies the files that there are, and removes those of another model that was there.

        Args:
            target: path of the copy's `model.pt`.

        Returns:
            The copies.
        """
        copies = ModelFiles(target)
        pairs = [(self.weights, copies.weights), (self.decoder, copies.decoder), (self.settings, copies.settings)]
        with ExitStack() as stack:
            for source, copy in pairs:
                if source.exists():
                    shutil.copyfile(source, stack.enter_context(replace_file(copy)))
        for source, copy in pairs:
            if not source.exists():
                copy.unlink(missing_ok=True)
        return copies


def checksum(file: str | os.PathLike[str]) -> str:
    """Computes the sha256 of a file, in hexadecimal digits."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _save(weights: Mapping[str, Tensor], file: Path) -> str:
    """Writes a state dict; gives the file's sha256."""
    with file.open("wb") as opened:  # given a path, torch writes its name into the file
        torch.save({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, opened)
    return checksum(file)


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
