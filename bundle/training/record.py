# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Keeps the config that a run was started with."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from bundle.atomic import free_path, replace_file
from bundle.runs import RunFolder
from bundle.runs.config_source import calling_config
from bundle.runs.distributed import is_main_rank

__all__ = ["RecordConfig"]


class _Dumper(yaml.SafeDumper):
    """Writes what is no YAML (an object that Python code put into the config) as its text."""


_Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(str(value)))


class RecordConfig:
    """Writes the merged config, with all presets and overrides, to `config.yaml` when training starts.

    A resumed run with other settings adds `config_2.yaml`, and so on; with settings already written it adds nothing.
    Under several processes only the main one writes.

    Args:
        run_folder: where to.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.path = run_folder.config
        # the config can be seen only now, while MONAI's parser makes this object
        source = calling_config()
        self.config: dict[str, Any] = {} if source is None else copy.copy(source.parser.get())
        self.config.pop(ConfigParser.meta_key, None)
        self.text = yaml.dump(self.config, Dumper=_Dumper, sort_keys=False, width=120)

    def attach(self, engine: Engine) -> None:
        """Registers at the start of the trainer."""
        if is_main_rank():
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        """Writes the file."""
        earlier = self.path.parent.glob(f"{self.path.stem}*{self.path.suffix}")
        if not any(file.read_text() == self.text for file in earlier):
            with replace_file(free_path(self.path)) as temporary:
                temporary.write_text(self.text)
