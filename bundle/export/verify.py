# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How a written file is verified: by the features that it gives, unless its format brings a check of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bundle.errors import UserError
from bundle.export.plain import PlainModel

__all__ = ["Readable", "Verifier", "compare_features", "example_image", "first_line", "settings_text"]

#: what a file, read back, gives: a function from an image to the features of every level, and the settings as text
Readable = tuple[Callable[[Tensor], Sequence[Tensor]], str]

#: takes a file's path, the name of its format, the model that it was made from and images to compare on; gives the
#: largest absolute difference, and the largest as a share of the largest value that it was compared with
Verifier = Callable[[Path, str, PlainModel, Sequence[Tensor]], tuple[float, float]]


def compare_features(read: Callable[[Path], Readable], allowed: float = 1e-5) -> Verifier:
    """Makes a verifier that compares the features of every level with the network's.

    Args:
        read: reads a file of this format; it uses nothing but the file.
        allowed: difference from the network's features, as a share of a level's largest. The default is enough where
            the operations are the same, in another order at most.

    Returns:
        A verifier. It raises a `UserError` if the file holds other settings, does not run, or differs by more.
    """

    def verify(path: Path, name: str, model: PlainModel, images: Sequence[Tensor]) -> tuple[float, float]:
        network, settings = read(path)
        if settings != settings_text(model):
            raise UserError(f"the {name} file holds other settings than model.json: export it again")
        difference = relative = 0.0
        for image in (example_image(model, (2, 2, 2), batch=1), example_image(model), *images):
            apart, share = _compare(network, name, model, image)
            if not share <= allowed:  # nor if it is no number
                raise UserError(
                    f"the {name} file gives other features than the network: on {list(image.shape)} they are apart by "
                    f"{apart:.1e}, {share:.1e} of the largest, and {allowed:.0e} may be rounding: use another format"
                )
            difference, relative = max(difference, apart), max(relative, share)
        return difference, relative

    return verify


def example_image(model: PlainModel, cells: tuple[int, int, int] = (2, 3, 4), batch: int = 2) -> Tensor:
    """Noise, the same at each call, of so many cells of the encoder's total stride: ``[batch, C, D, H, W]``."""
    size = [n * step for n, step in zip(cells, model.network.strides[-1])]
    return torch.randn(batch, model.network.in_channels, *size, generator=torch.Generator().manual_seed(0))


def settings_text(model: PlainModel) -> str:
    """What a file holds of the settings."""
    return json.dumps(model.settings)


def _compare(
    network: Callable[[Tensor], Sequence[Tensor]], name: str, model: PlainModel, image: Tensor
) -> tuple[float, float]:
    """The largest difference of any level, and the largest as a share of its level's largest feature."""
    with torch.no_grad():
        expected = model.network(image)
        try:
            given = list(network(image))
        except Exception as error:  # exported networks raise anything
            raise UserError(
                f"the {name} file does not run on {list(image.shape)} ({first_line(error)}): use another format"
            ) from error
    if [level.shape for level in given] != [level.shape for level in expected]:
        return float("inf"), float("inf")
    apart = torch.stack([(its - mine).abs().max() for its, mine in zip(given, expected)])
    largest = torch.stack([mine.abs().max() for mine in expected]).clamp(min=1e-30)
    return float(apart.max()), float((apart / largest).max())  # not a number where any is


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not empty, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
