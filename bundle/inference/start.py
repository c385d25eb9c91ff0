# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What happens before inference builds anything."""

from __future__ import annotations

import torch

from bundle.errors import install_excepthook
from bundle.runs import pick_device
from bundle.runs.busy import warn_of_busy_cores
from bundle.runs.memory import keep_freed_memory
from bundle.runs.start import check_options

__all__ = ["start_inference"]


def start_inference(
    *, device: str | torch.device = "auto", config_name: str = "inference.yaml", keep_memory: bool = True
) -> None:
    """Checks the options; from here on a mistake of the user's ends the program with one line.

    An option `--name None`, which MONAI would leave out without a word, is set before.

    Args:
        device: as for `bundle.runs.pick_device`.
        config_name: name of the base config, for when MONAI does not tell it.
        keep_memory: whether a process on the CPU keeps the memory that it has freed, which is faster and takes more.

    Raises:
        UserError: if an option is unknown or cannot work, or the device is not there.
    """
    install_excepthook()
    check_options(config_name)
    on_cpu = pick_device(device).type == "cpu"
    if on_cpu:
        warn_of_busy_cores()
        if keep_memory:
            keep_freed_memory()
