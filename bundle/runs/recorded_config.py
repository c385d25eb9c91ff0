# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The settings in a run's folder: `config.yaml`, and `config_2.yaml`, ... that resumes have added."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bundle.errors import UserError

__all__ = ["config_text", "named_config", "newest_config", "next_config", "read_config"]


class _Dumper(yaml.SafeDumper):
    """Writes what is no YAML (an object that Python code put into the config) as its text."""


_Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(str(value)))


def config_text(config: Mapping[str, Any]) -> str:
    """A merged config as it is recorded."""
    return yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, width=120)


def named_config(folder: Path, name: Any) -> Path | None:
    """The file of that name if it is one of the run's settings, else the newest."""
    return next((file for file in _numbered(folder).values() if file.name == name), newest_config(folder))


def newest_config(folder: Path) -> Path | None:
    """The settings of the run's last start that was not refused; None if none are recorded."""
    numbers = _numbered(folder)
    return numbers[max(numbers)] if numbers else None


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
