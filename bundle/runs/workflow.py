# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""MONAI's workflow for configs, with the options checked before MONAI merges them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.utils import ensure_tuple

from bundle.errors import install_excepthook
from bundle.runs.overrides import check_parents

__all__ = ["CheckedWorkflow"]


class CheckedWorkflow(ConfigWorkflow):
    """A `ConfigWorkflow` in which a mistyped parent of a nested option is one line instead of a traceback.

    On the command line: ``python -m monai.bundle run training --workflow_name bundle.runs.CheckedWorkflow ...``, as
    ``scripts/train.sh`` does. All other options are checked in any workflow, by `start_run`.

    Args:
        config_file: as for `ConfigWorkflow`.
        *args: likewise.
        **kwargs: likewise, and the options.

    Raises:
        UserError: if the parent of a nested option is unknown.
    """

    def __init__(
        self, config_file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *args: Any, **kwargs: Any
    ) -> None:
        install_excepthook()
        monais = inspect.signature(ConfigWorkflow.__init__).parameters
        files = [Path(file) for file in ensure_tuple(config_file)]
        if all(file.is_file() for file in files):  # MONAI says it of one that is not
            check_parents(files, [name for name in kwargs if name not in monais])
        super().__init__(config_file, *args, **kwargs)
