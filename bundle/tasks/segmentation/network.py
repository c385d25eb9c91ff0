# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The network of a fine-tuned segmentation, built as its model.json says."""

from __future__ import annotations

from collections.abc import Mapping
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.networks import nets
from torch import nn

from bundle.errors import UserError

__all__ = ["build_segmentation_network"]


def build_segmentation_network(content: Mapping[str, Any]) -> nn.Module:
    """Builds the network that `network` in the content of a `model.json` names, with its arguments.

    Args:
        content: `network` has the `name` of a network in `monai.networks.nets`, or a dotted name of another class
            of networks, and its arguments.

    Raises:
        UserError: if there is no such network, or it does not take the arguments.

    Example:
        >>> from bundle.tasks.segmentation import build_segmentation_network
        >>> network = {"name": "SegResNetDS", "in_channels": 1, "out_channels": 2, "init_filters": 4}
        >>> type(build_segmentation_network({"network": network})).__name__
        'SegResNetDS'
    """
    settings = content.get("network")
    arguments = dict(settings) if isinstance(settings, Mapping) else {}
    name = str(arguments.pop("name", ""))
    try:
        network_class = locate(name) if "." in name else getattr(nets, name, None)
    except ErrorDuringImport as error:
        raise UserError(f"model.json names the network {name}, which cannot be imported: {error.value}") from error
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise UserError(
            f"model.json names the network {name!r}, which is none of MONAI's nor a class that can be imported: put "
            "its package on PYTHONPATH, or write its dotted name there"
        )
    try:
        network: nn.Module = network_class(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model.json names arguments that the network {name} does not take ({error}): correct it"
        ) from error
    return network
