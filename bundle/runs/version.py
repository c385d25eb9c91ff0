# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The version of this project."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

__all__ = ["project_version"]


def project_version() -> str:
    """As the bundle's metadata says; where only the package is installed, the package's; else "unknown"."""
    metadata = Path(__file__).parents[2] / "configs" / "metadata.json"
    if metadata.is_file():
        return str(json.loads(metadata.read_text())["version"])
    try:
        return importlib.metadata.version("ct_mr_sparse_mim_pretraining")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
