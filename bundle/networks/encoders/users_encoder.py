# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""An encoder that a user's file makes, found by its dotted name, and checked before anything is trained."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from bundle.errors import UserError
from bundle.networks.encoders.encoder import Encoder

__all__ = ["check_levels", "find_maker"]


def find_maker(name: str) -> Callable[..., Any]:
    """Imports the function that makes the encoder.

    Args:
        name: of the module and of the function in it, such as "my_file.my_encoder".

    Raises:
        UserError: if there is no such module, importing it fails, or it has no such function.
    """
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"encoder#name {name!r}: {module_name} imports {error.name}, which is not installed: install it"
            ) from error
        raise UserError(
            f"encoder#name {name!r}: there is no module {error.name!r} to import: start from the folder that holds it, "
            "or put that folder into PYTHONPATH"
        ) from error
    except Exception as error:  # a module that is imported raises anything
        raise UserError(
            f"encoder#name {name!r}: {module_name} cannot be imported ({type(error).__name__}: {error}): correct the "
            "file; BUNDLE_DEBUG=1 shows the traceback"
        ) from error
    maker = getattr(module, attribute, None)
    if not callable(maker):
        raise UserError(
            f"encoder#name {name!r}: {module.__file__} has no function {attribute!r}: correct the name in the config"
        )
    return maker


def check_levels(encoder: Any, name: str) -> Encoder:
    """Runs an encoder on a small image of one channel, and compares each level's features with what its stages say.

    The encoder stays as it is: it runs in eval mode, without gradients, on zeros.

    Args:
        encoder: what the maker returned.
        name: of the maker, for the error.

    Returns:
        The same encoder.

    Raises:
        UserError: if it is no `Encoder`, has no stages, does not run, or a level is not as its stage says.
    """
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"encoder {name} returns {type(encoder).__name__}: let it return bundle.networks.Encoder(network, stages)"
        )
    if not encoder.stages:
        raise UserError(f"encoder {name} has no stages: give one bundle.networks.Stage per level, finest first")
    parts = set(encoder.network.modules())
    for depth, stage in enumerate(encoder.stages):
        if not parts.issuperset(stage.modules):
            raise UserError(f"encoder {name}: stage {depth} runs a module that is no part of the network: add it there")
    image, features = _run(encoder, name)
    for depth, (level, given) in enumerate(zip(encoder.levels, features)):
        expected = [1, level.channels, *(n // step for n, step in zip(image.shape[2:], level.stride))]
        found = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        if found != expected:
            raise UserError(
                f"encoder {name}: level {depth} gives {found} of {list(image.shape)}, its stages say {expected}: "
                "correct channels and step of the stages"
            )
    return encoder


def _run(encoder: Encoder, name: str) -> tuple[torch.Tensor, list[Any]]:
    """A small image, and what the stages make of it."""
    size = [2 * step for step in encoder.total_stride]
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    image = torch.zeros(1, 1, *size, device=device)
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with torch.no_grad():
            features = encoder(image)
    except Exception as error:  # a user's network raises anything
        text = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"encoder {name}: its stages do not run one after the other on {list(image.shape)} "
            f"({type(error).__name__}: {text}): correct the stages"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return image, features
