# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The config that a component is being made from: MONAI does not hand it to components."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.utils import ensure_tuple

__all__ = ["ConfigSource", "calling_config", "read_words"]

#: what a workflow is given beside the overrides
_WORKFLOW_ARGUMENTS = set(inspect.signature(ConfigWorkflow.__init__).parameters)


@dataclass(frozen=True)
class ConfigSource:
    """A merged config and where it came from.

    Args:
        parser: MONAI's parser, with all files and overrides merged.
        files: the config files in the order of merging, the base first; empty if unknown.
        overrides: what was given beside the files, by id; None if unknown.
        words: by id, what overrides are to be: None, which `create_workflow` leaves out without a word, and `null`,
            `true` and `false`, which configs have and a command line makes texts of.
    """

    parser: ConfigParser
    files: tuple[Path, ...] = ()
    overrides: Mapping[str, Any] | None = None
    words: Mapping[str, bool | None] = field(default_factory=dict)

    def restore_words(self) -> None:
        """Sets overrides to None, True and False where they say so: `--pretrained null`, `--overwrite false`.

        Call it before anything is built: what the parser has made so far is made again.
        """
        for name, value in self.words.items():
            self.parser.set(value, name)


def calling_config(config_name: str | Sequence[str] = "train.yaml") -> ConfigSource | None:
    """The config whose parser is calling, found on the call stack; None if no parser is.

    MONAI's parser makes every component, so it is always among the callers; this holds for the command line,
    `create_workflow`, `ConfigWorkflow` and a bare `ConfigParser`. Only `create_workflow`, which the command line uses,
    too, still knows the names of the files.

    Args:
        config_name: name of the base config, or the names of the files to merge, in the workflow's folder of configs,
            for when the files are not known.
    """
    frames = _list_callers()
    parser = next((caller for frame in frames if isinstance(caller := frame.f_locals.get("self"), ConfigParser)), None)
    if parser is None:
        return None
    files: tuple[Path, ...] = ()
    for frame in frames:  # those that called the parser
        if frame.f_code is create_workflow.__code__:
            return _read_arguments(parser, frame.f_locals)
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            files = tuple(Path(caller.config_root_path) / name for name in ensure_tuple(config_name))
    return ConfigSource(parser, _keep_existing(files))


def _list_callers() -> Iterator[FrameType]:
    """The frames of the call stack, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _read_arguments(parser: ConfigParser, arguments: Mapping[str, Any]) -> ConfigSource:
    """The source as the local variables of `create_workflow` tell it."""
    files = tuple(Path(file) for file in ensure_tuple(arguments["config_file"]))
    given = {**arguments.get("_args", {}), **{key: None for key, value in arguments["kwargs"].items() if value is None}}
    given = {key: value for key, value in given.items() if key not in _WORKFLOW_ARGUMENTS}
    words = {
        name: value for key, item in given.items() if not key.startswith("+") for name, value in _list_words(item, key)
    }
    return ConfigSource(parser, _keep_existing(files), {key: read_words(value) for key, value in given.items()}, words)


def _list_words(value: Any, name: str) -> Iterator[tuple[str, bool | None]]:
    """The ids in an override that are None, or one of the texts `null`, `true` and `false`, with what they mean."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _list_words(item, f"{name}#{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _list_words(item, f"{name}#{index}")
    elif value is None or _read_word(value) is not value:
        yield name, _read_word(value)


def read_words(value: Any) -> Any:
    """An override, as the command line reads it, with None, True and False where it says `null`, `true` and `false`."""
    if isinstance(value, dict):
        return {key: read_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_words(item) for item in value]
    return _read_word(value)


def _read_word(value: Any) -> Any:
    """None of `null`, True of `true` and False of `false`; anything else as it is. YAML also has `True` and `TRUE`."""
    if not isinstance(value, str):
        return value
    return None if value == "null" else {"true": True, "false": False}.get(value.lower(), value)


def _keep_existing(files: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(file for file in files if file.is_file())
