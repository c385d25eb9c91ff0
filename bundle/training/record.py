# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Keeps the config that a run was started with."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from bundle.atomic import replace_file
from bundle.runs import RunFolder
from bundle.runs.config_source import calling_config
from bundle.runs.distributed import is_main_rank
from bundle.runs.recorded_config import config_text, newest_config, next_config, read_config

__all__ = ["RecordConfig"]


class RecordConfig:
    """Writes the merged config, with all presets and overrides, to `config.yaml` when the first epoch starts.

    By then a resume was accepted: one that is refused, or that finds nothing more to train, leaves no settings behind.
    A resumed run with settings other than the newest adds `config_2.yaml`, and so on. Under several processes only the
    main one writes.

    Args:
        run_folder: where to.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.folder = run_folder.path
        # the config can be seen only now, while MONAI's parser makes this object
        source = calling_config()
        self.config: dict[str, Any] = {} if source is None else copy.copy(source.parser.get())
        self.config.pop(ConfigParser.meta_key, None)
        self.text = config_text(self.config)
        self._written = False

    def attach(self, engine: Engine) -> None:
        """Registers at the start of the trainer's epochs."""
        if is_main_rank():
            engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        """Writes the file, once."""
        if self._written:
            return
        self._written = True
        newest = newest_config(self.folder)
        if newest is None or _without_resume(read_config(newest)) != _without_resume(yaml.safe_load(self.text)):
            with replace_file(next_config(self.folder)) as temporary:
                temporary.write_text(self.text, encoding="utf-8")


def _without_resume(config: dict[str, Any]) -> dict[str, Any]:
    """The settings but for the one that goes on with a run: the same command with --resume changes nothing."""
    return {name: value for name, value in config.items() if name != "resume"}
