# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Brings loaded weights part of the way back to random ones, so that they can still move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bundle.errors import UserError

__all__ = ["check_share", "shrink_and_perturb"]


def check_share(share: float) -> None:
    """Refuses a share that is none.

    Raises:
        UserError: if it is below 0 or not below 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"--transfer#perturb {share} does not fit: give a share from 0 to below 1, such as 0.5")


@torch.no_grad()
def shrink_and_perturb(network: nn.Module, fresh: Mapping[str, Tensor], names: Iterable[str], share: float) -> None:
    """Mixes the weights of convolutions and linear layers with those that the network had before, in place.

    ``(1 - share) * loaded + share * fresh``, where `fresh` is first given the deviation of the loaded tensor. Norms and
    biases stay as they are loaded. (Ash and Adams, arXiv:1910.08475: a network that goes on from weights may end
    behind one that starts at random, and this closes most of the gap.)

    Args:
        network: with the weights loaded.
        fresh: its tensors as they were initialised, by name.
        names: of the tensors that were loaded.
        share: of the fresh ones, from 0 to below 1.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Linear(100, 100, bias=False)
        >>> fresh = {"weight": layer.weight.detach().clone()}
        >>> _ = torch.nn.init.normal_(layer.weight, std=0.3)
        >>> loaded = layer.weight.detach().clone()
        >>> shrink_and_perturb(layer, fresh, ["weight"], 0.5)
        >>> expected = 0.5 * loaded + 0.5 * fresh["weight"] * loaded.std() / fresh["weight"].std()
        >>> torch.allclose(layer.weight, expected, atol=1e-6)
        True
    """
    tensors = network.state_dict()  # shares its memory with the network
    done: set[int] = set()  # DynUNet has some tensors under two names
    for name in names:
        loaded, start = tensors[name], fresh[name].to(tensors[name])
        if loaded.ndim < 2 or loaded.numel() < 2 or loaded.data_ptr() in done:
            continue
        done.add(loaded.data_ptr())
        scale = loaded.std() / start.std().clamp(min=1e-12)
        loaded.mul_(1 - share).add_(start * scale, alpha=share)
