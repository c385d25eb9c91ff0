# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Writes an encoder to a format, and keeps the file only if it gives the features of the network it was made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bundle.atomic import replace_file
from bundle.errors import UserError
from bundle.export.formats import example_image, get_format, settings_text
from bundle.export.plain import PlainModel

__all__ = ["Exported", "export_model", "verify_file"]


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified.

    Attributes:
        file: where it is.
        size: in bytes.
        difference: largest absolute one of any feature from the eager network's.
        relative: the largest of any level, as a share of the level's largest feature.
        how: it was written, in a word or two.
    """

    file: Path
    size: int
    difference: float
    relative: float
    how: str


def export_model(
    model: PlainModel, name: str, path: str | os.PathLike[str], images: Sequence[Tensor] = (), *, replace: bool = False
) -> Exported:
    """Writes a model to one format. The file appears only after it was read back and verified.

    Args:
        model: as `plain_model` gives it.
        name: of the format, one of `FORMATS`.
        path: of the file.
        images: to compare on besides noise, as for `verify_file`.
        replace: whether a file may be there already.

    Raises:
        UserError: if the file is there, a package is missing, the format cannot hold this encoder, or the file read
            back differs.
    """
    path, chosen = Path(path), get_format(name)
    if path.exists() and not replace:
        raise UserError(f"{path} is there already: pass --replace to write it anew, or another --output_dir")
    with replace_file(path) as temporary:
        try:
            how = chosen.write(model, temporary)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}): free space, or choose another --output_dir"
            ) from error
        except Exception as error:  # the exporters raise anything, and all of it means the same
            raise UserError(
                f"format {name} cannot hold this encoder, {model.settings['encoder']['name']} with its arguments "
                f"({_first_line(error)}): use another of --formats; safetensors holds any"
            ) from error
        difference, relative = verify_file(temporary, name, model, images)
        size = temporary.stat().st_size
    return Exported(path, size, difference, relative, how)


def verify_file(
    path: str | os.PathLike[str], name: str, model: PlainModel, images: Sequence[Tensor] = ()
) -> tuple[float, float]:
    """Reads a file back and compares its features with the eager network's.

    Args:
        path: of the file.
        name: of its format.
        model: what it was made from.
        images: to compare on besides noise of two sizes, ``[B, 1, D, H, W]``.

    Returns:
        The largest absolute difference, and the largest as a share of its level's largest feature.

    Raises:
        UserError: if the file cannot be read, holds other settings, or differs by more than rounding does.
    """
    chosen = get_format(name)
    try:
        network, settings = chosen.read(Path(path))
    except UserError:
        raise
    except Exception as error:  # the readers raise anything on a damaged file
        raise UserError(f"the {name} file cannot be read back ({_first_line(error)}): export it again") from error
    if settings != settings_text(model):
        raise UserError(f"the {name} file holds other settings than model.json: export it again")
    difference = relative = 0.0
    for image in (example_image(model, (2, 2, 2), batch=1), example_image(model), *images):
        with torch.no_grad():
            expected = model.network(image)
            try:
                given = list(network(image))
            except Exception as error:  # as above
                raise UserError(
                    f"the {name} file does not run on {list(image.shape)} ({_first_line(error)}): use another format"
                ) from error
        apart, share = _apart(expected, given)
        if not share <= chosen.allowed:  # nor if it is no number
            raise UserError(
                f"the {name} file gives other features than the network: on {list(image.shape)} they are apart by "
                f"{apart:.1e}, {share:.1e} of the largest, and {chosen.allowed:.0e} may be rounding: use another format"
            )
        difference, relative = max(difference, apart), max(relative, share)
    return difference, relative


def _apart(expected: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of any level, and the largest as a share of its level's largest feature."""
    if [level.shape for level in given] != [level.shape for level in expected]:
        return float("inf"), float("inf")
    apart = torch.stack([(its - mine).abs().max() for its, mine in zip(given, expected)])
    largest = torch.stack([mine.abs().max() for mine in expected]).clamp(min=1e-30)
    return float(apart.max()), float((apart / largest).max())  # not a number where any is


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
