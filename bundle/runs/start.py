# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What happens before anything is built: the first entry of the config's `initialize`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from monai.utils import set_determinism

from bundle.errors import install_excepthook
from bundle.runs.busy import warn_of_busy_cores
from bundle.runs.checked_settings import check_settings, read_defaults
from bundle.runs.config_source import calling_config
from bundle.runs.device import pick_device
from bundle.runs.distributed import is_main_rank, start_distributed
from bundle.runs.memory import keep_freed_memory
from bundle.runs.overrides import PRESETS_WITH_OPTIONS, check_overrides

__all__ = ["check_options", "start_run"]


def start_run(
    *, device: str | torch.device = "auto", seed: int | None = None, config_name: str | None = "train.yaml"
) -> None:
    """Checks the options, joins the process group under torchrun, and seeds.

    An option `--name None`, which MONAI would leave out without a word, is set before, and so are `--name null`,
    `--name true` and `--name false`, which would be texts.
    From here on a mistake of the user's ends the program with one line. Every rank gets the same seed: what must differ
    between samples is drawn from the number of the sample's draw. Ranks other than the first log warnings only.

    Args:
        device: as for `pick_device`. Give the name: a component would be made, and could fail, before this function
            has arranged for one-line errors.
        seed: for Python's, numpy's and PyTorch's generators; also makes cuDNN choose deterministic kernels. None leaves
            all of these alone.
        config_name: name of the base config, in the folder of configs, for when MONAI does not tell it; None checks no
            options.

    Raises:
        UserError: if an option is unknown or cannot work, or the device is not there.
    """
    install_excepthook()
    if config_name is not None:
        check_options(config_name, base_names=PRESETS_WITH_OPTIONS)
    picked = pick_device(device)
    if picked.type == "cpu":
        keep_freed_memory()
        warn_of_busy_cores()
    start_distributed(picked)
    if not is_main_rank():
        logging.getLogger().setLevel(logging.WARNING)
    if seed is not None:
        set_determinism(seed)


def check_options(config_name: str, base_names: Sequence[str] = ()) -> None:
    """Looks at the options of the config that is being run, before anything is built.

    An option `--name None`, which MONAI would leave out without a word, is set. So are `--name null`, `--name true` and
    `--name false`, which would be texts.

    Args:
        config_name: name of the base config, in the folder of configs, for when MONAI does not tell it.
        base_names: as for `check_overrides`.

    Raises:
        UserError: if an option is unknown or cannot work.
    """
    source = calling_config(config_name)
    if source is None:
        return
    source.restore_words()
    check_overrides(source, base_names=base_names)
    check_settings(source.parser.get(), read_defaults(source.files))
