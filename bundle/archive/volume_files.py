# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an index keeps of a file that holds one volume."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.archive.records import Record, Salt
from bundle.data.fingerprints import fingerprint
from bundle.data.formats import read_file_header
from bundle.errors import VolumeError

__all__ = ["volume_record"]

_FORMATS = {".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage", ".mgz": "FreeSurfer",
            ".mgh": "FreeSurfer"}  # fmt: skip


def volume_record(path: Path, stamp: tuple[int, int], salt: Salt) -> Record:
    """Reads the header of a file that holds a volume, and enough of it to recognise it again.

    Args:
        path: of the file.
        stamp: its size and time of change.
        salt: of the index.

    Raises:
        OSError: if the file cannot be opened.
    """
    path.open("rb").close()
    header: dict[str, Any] = {"format": _FORMATS.get(path.suffix.lower(), "NIfTI"), "channels": 1}
    header |= {"shape": None, "spacing": None, "notes": [], "fault": "", "remedy": ""}
    try:
        found = read_file_header(str(path), path.name, stacked=True)
        found.check_end()
    except VolumeError as error:
        header |= {"fault": error.problem, "remedy": error.remedy}
    except Exception as error:  # noqa: BLE001 - readers raise anything on a broken file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].replace(str(path), path.name)
        header |= {"fault": f"cannot be read ({reason})", "remedy": "copy it again or leave it out"}
    else:
        header |= {"shape": [int(n) for n in found.shape], "channels": int(found.channels), "notes": found.notes}
        header["spacing"] = [float(value) for value in np.linalg.norm(found.affine[:3, :3], axis=0)]
    header["content"] = fingerprint([str(path)])
    record = Record(os.fsencode(path.name), *stamp, "volume")
    return replace(record, series=salt(str(path)), header=json.dumps(header))
