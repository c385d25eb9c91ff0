# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How a network was built, for the json beside its weights: a config states it once."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigComponent
from monai.networks import nets
from torch import nn

from bundle.runs.config_source import calling_config

__all__ = ["network_settings"]


def network_settings(network: nn.Module) -> dict[str, Any]:
    """The name of a network and the arguments that the config built it with.

    Use it as a component of the config that builds the network, such as
    ``{_target_: bundle.tasks.network_settings, network: "@network_def"}``: the arguments are those of the config, with
    all overrides, and with references and expressions resolved.

    Args:
        network: what a ``_target_`` of the config has made.

    Returns:
        `name` of its class, with its module where it is none of MONAI's, and its arguments; the name alone if no
        ``_target_`` of a config has made it.
    """
    made = type(network)
    settings: dict[str, Any] = {"name": made.__name__}
    source = calling_config()
    if source is not None:
        resolver = source.parser.ref_resolver
        for name, item in resolver.items.items():
            if isinstance(item, ConfigComponent) and resolver.resolved_content.get(name) is network:
                arguments = item.resolve_args()
                if not any(value is network for value in arguments.values()):  # it has not made it, only passed it on
                    if getattr(nets, made.__name__, None) is not made:
                        settings["name"] = f"{made.__module__}.{made.__qualname__}"
                    settings.update(arguments)
    return settings
