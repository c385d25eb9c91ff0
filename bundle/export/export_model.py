# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Writes an encoder to a format, and keeps the file only if the format's verifier finds in it what it was made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bundle.atomic import replace_file
from bundle.errors import UserError
from bundle.export.formats import get_format
from bundle.export.plain import PlainModel
from bundle.export.verify import first_line

__all__ = ["Exported", "export_model", "verify_file"]


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified.

    Attributes:
        file: where it is.
        size: in bytes.
        difference: largest absolute one from the eager network, of any feature or what else the format compares.
        relative: the largest as a share: of a level's largest feature.
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
        except UserError:
            raise
        except Exception as error:  # the exporters raise anything, and all of it means the same
            raise UserError(
                f"format {name} cannot hold this encoder, {model.settings['encoder']['name']} with its arguments "
                f"({first_line(error)}): use another of --formats; safetensors holds any"
            ) from error
        difference, relative = verify_file(temporary, name, model, images)
        size = temporary.stat().st_size
    return Exported(path, size, difference, relative, how)


def verify_file(
    path: str | os.PathLike[str], name: str, model: PlainModel, images: Sequence[Tensor] = ()
) -> tuple[float, float]:
    """Reads a file back and compares it with the eager network, as the format says: by its features, or otherwise.

    Args:
        path: of the file.
        name: of its format.
        model: what it was made from.
        images: ``[B, 1, D, H, W]``, to compare features on besides noise of two sizes.

    Returns:
        The largest absolute difference, and the largest as a share of the largest value that it was compared with.

    Raises:
        UserError: if the file cannot be read, holds other settings, or differs by more than rounding does.
    """
    chosen = get_format(name)
    try:
        return chosen.verify(Path(path), name, model, images)
    except UserError:
        raise
    except Exception as error:  # the readers raise anything on a damaged file
        raise UserError(f"the {name} file cannot be read back ({first_line(error)}): export it again") from error
