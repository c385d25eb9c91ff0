# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The settings in a run's folder: `config.yaml`, and `config_2.yaml`, ... that resumes have added."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from bundle.errors import UserError

__all__ = ["config_of_checkpoint", "config_text", "newest_config", "next_config", "read_config"]


class _Dumper(yaml.SafeDumper):
    """Writes what is no YAML (an object that Python code put into the config) as its text."""


_Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(str(value)))


def config_text(config: Mapping[str, Any]) -> str:
    """A merged config as it is recorded."""
    return yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, width=120)


def newest_config(folder: Path) -> Path | None:
    """The settings of the run's last start that was not refused; None if none are recorded."""
    numbers = _numbered(folder)
    return numbers[max(numbers)] if numbers else None


def config_of_checkpoint(folder: Path, checkpoint: Path) -> Path | None:
    """The settings that a checkpoint was trained with: the file that it names, else the newest.

    Args:
        folder: of the run.
        checkpoint: that `RunCheckpoint` wrote; versions before 0.2.0 named no settings in it.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)  # reads no weights yet
        named = folder / saved["config"]
    except Exception:  # noqa: BLE001 - whoever loads the weights says what is wrong with the file
        return newest_config(folder)
    return named if named in _numbered(folder).values() else newest_config(folder)


def next_config(folder: Path) -> Path:
    """Where the settings of another start go."""
    numbers = _numbered(folder)
    return folder / (f"config_{max(numbers) + 1}.yaml" if numbers else "config.yaml")


def read_config(file: Path) -> dict[str, Any]:
    """Reads recorded settings, as they were written.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}): name another run, or move it away") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings: name another run, or move it away")
    return content


def _numbered(folder: Path) -> dict[int, Path]:
    return {
        int(match[1] or 1): file
        for file in folder.glob("config*.yaml")
        if (match := re.fullmatch(r"config(?:_(\d+))?\.yaml", file.name))
    }
