# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The components of this package that a config names."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["list_missing_components"]


def list_missing_components(config: Any) -> list[str]:
    """The components of this package that a config names and that the package lacks, in the order of the config.

    Args:
        config: a config, or a part of it, as read from its file.

    Returns:
        Values of ``_target_``, such as "bundle.training.pick_device", which has been "bundle.runs.pick_device" since
        version 0.2.0.
    """
    targets = dict.fromkeys(target for target in _list_targets(config) if target.startswith("bundle."))
    return [target for target in targets if not _exists(target)]


def _list_targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if isinstance(target := config.get("_target_"), str):
            yield target
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _list_targets(item)


def _exists(target: str) -> bool:
    try:
        pkgutil.resolve_name(target)
    except (AttributeError, ImportError, ValueError):
        return False
    return True
