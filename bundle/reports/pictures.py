# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pictures and drawings as data in a page. Pillow, which writes them, is part of matplotlib's requirements."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bundle.errors import UserError

__all__ = ["Picture", "data_address", "encodings"]

#: a file on the disk, pixels uint8 [height, width, 3], or a figure of matplotlib's
Picture = str | os.PathLike[str] | np.ndarray | Figure

_WIDTHS = (1800, 1200, 800, 500)  # pixels: tried in this order where room is short
_LOSSLESS = 400_000  # bytes: a PNG up to here stays one
_LONGEST_DRAWING = 300_000  # bytes: an SVG of thousands of points is larger than its pixels


def data_address(kind: str, content: bytes) -> str:
    """The content as an address that needs no file and no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encodings(picture: Picture) -> Iterator[str]:
    """The picture as a data address: first as good as it can be shown, then smaller ones.

    Pixels are written anew, so that nothing of a file but its pixels comes along. A figure of matplotlib's is an SVG,
    which stays sharp on every screen, unless its pixels are smaller.

    Raises:
        UserError: if the file is no picture.
    """
    if isinstance(picture, Figure):
        drawing = _drawing(picture)
        if len(drawing) <= _LONGEST_DRAWING:
            yield data_address("image/svg+xml", drawing)
    with _opened(picture) as image:
        for width in _WIDTHS:
            if width == _WIDTHS[0] or width < image.width:
                yield _encoded(image, width)


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    if isinstance(picture, Figure):
        pixels = io.BytesIO()
        picture.savefig(pixels, format="png", dpi=110, facecolor="white")
        picture = pixels  # type: ignore[assignment]
    try:
        with Image.open(picture) as image:  # type: ignore[arg-type]
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{Path(str(picture))} is no picture that can be shown: give a PNG or JPEG file") from error


def _drawing(figure: Figure) -> bytes:
    content = io.BytesIO()
    # without these, the file would name the moment and the program
    figure.savefig(content, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return content.getvalue()


def _encoded(image: Image.Image, width: int) -> str:
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    lossless, lossy = io.BytesIO(), io.BytesIO()
    image.save(lossless, "PNG", optimize=True)
    if lossless.tell() <= _LOSSLESS:
        return data_address("image/png", lossless.getvalue())
    image.save(lossy, "WEBP", quality=88, method=4)
    return data_address("image/webp", lossy.getvalue())
