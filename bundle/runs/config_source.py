# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The config that a component is being made from: MONAI does not hand it to components."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.utils import ensure_tuple

__all__ = ["ConfigSource", "calling_config"]

#: what a workflow is given beside the overrides
_WORKFLOW_ARGUMENTS = set(inspect.signature(ConfigWorkflow.__init__).parameters)


@dataclass(frozen=True)
class ConfigSource:
    """A merged config and where it came from.

    Args:
        parser: MONAI's parser, with all files and overrides merged.
        files: the config files in the order of merging, the base first; empty if unknown.
        overrides: what was given beside the files, by id; None if unknown.
        dropped: the overrides with the value None, which `create_workflow` leaves out without a word.
    """

    parser: ConfigParser
    files: tuple[Path, ...] = ()
    overrides: Mapping[str, Any] | None = None
    dropped: tuple[str, ...] = ()

    def restore_dropped(self) -> None:
        """Sets the dropped overrides to None, so that `--pretrained None` means what it says.

        Call it before anything is built: what the parser has made so far is made again.
        """
        for name in self.dropped:
            self.parser.set(None, name)


def calling_config(config_name: str | Sequence[str] = "train.yaml") -> ConfigSource | None:
    """The config whose parser is calling, found on the call stack; None if no parser is.

    MONAI's parser makes every component, so it is always among the callers; this holds for the command line,
    `create_workflow`, `ConfigWorkflow` and a bare `ConfigParser`. Only `create_workflow`, which the command line uses,
    too, still knows the names of the files.

    Args:
        config_name: name of the base config, or the names of the files to merge, in the workflow's folder of configs,
            for when the files are not known.
    """
    parser: ConfigParser | None = None
    files: tuple[Path, ...] = ()
    overrides: Mapping[str, Any] | None = None
    dropped: tuple[str, ...] = ()
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if parser is None and isinstance(caller, ConfigParser):
            parser = caller
        elif parser is not None and isinstance(caller, ConfigWorkflow):
            files = tuple(Path(caller.config_root_path) / name for name in ensure_tuple(config_name))
        elif parser is not None and frame.f_code is create_workflow.__code__:
            files = tuple(Path(file) for file in ensure_tuple(frame.f_locals["config_file"]))
            given = frame.f_locals.get("_args", {})
            overrides = {key: value for key, value in given.items() if key not in _WORKFLOW_ARGUMENTS}
            left_out = frame.f_locals["kwargs"].items()
            dropped = tuple(name for name, value in left_out if value is None and name not in _WORKFLOW_ARGUMENTS)
            break
        frame = frame.f_back
    if parser is None:
        return None
    return ConfigSource(parser, tuple(file for file in files if file.is_file()), overrides, dropped)
