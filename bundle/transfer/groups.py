# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Parameter groups for fine-tuning: smaller learning rates the nearer a layer is to the image."""

from __future__ import annotations

from typing import Any

from bundle.errors import UserError
from bundle.transfer.heads import is_head
from bundle.transfer.transfer import Transfer

__all__ = ["layer_wise_groups"]


def layer_wise_groups(
    transfer: Transfer,
    *,
    lr: float,
    encoder_factor: float = 1.0,
    decay: float = 1.0,
    weight_decay: float = 0.0,
    head_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for a PyTorch optimizer, by level and by whether weight decay applies.

    The decoder has `lr`, and the heads, the last layers, ``lr * head_factor``; level ``i`` of an encoder with ``L``
    levels has ``lr * encoder_factor * decay ** (L - 1 - i)``: layer-wise learning-rate decay as in Clark et al.
    (ELECTRA, arXiv:2003.10555), used for fine-tuning in SparK. Norms and biases have no weight decay.

    Args:
        transfer: network and depth of its parameters; parameters without gradient are left out.
        lr: of the rest of the network.
        encoder_factor: of the deepest level, relative to the rest.
        decay: from each level to the one above it; 1 is none.
        weight_decay: of weights with more than one axis.
        head_factor: of the heads, relative to the rest. Adam moves a weight by about its rate per step, so in a short
            training a new head is hardly more than the random one it began as, and all else has to learn around it.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, and `part`, which `FineTuneSchedule` reads: "encoder", "decoder" if
        that is pre-trained, too, or "rest".
    """
    if not 0 < decay <= 1 or min(encoder_factor, head_factor) <= 0:
        raise UserError(
            f"--layer_decay {decay}, --encoder_lr_factor {encoder_factor} or --head_lr_factor {head_factor} does not "
            "fit: give a decay above 0 and up to 1, and factors above 0"
        )
    loaded = set() if transfer.decoder_report is None else set(transfer.decoder_report.names)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in transfer.network.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = transfer.depths.get(name, transfer.levels)
        factor = 1.0 if depth == transfer.levels else encoder_factor * decay ** (transfer.levels - 1 - depth)
        is_new_head = head_factor != 1 and depth == transfer.levels and is_head(name) and name not in loaded
        factor *= head_factor if is_new_head else 1.0
        decays = parameter.ndim > 1
        part = "encoder" if depth < transfer.levels else "decoder" if name in loaded else "rest"
        group = groups.setdefault(
            (depth, not is_new_head, part, decays),
            {"params": [], "lr": lr * factor, "weight_decay": weight_decay if decays else 0.0, "part": part},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]  # the rest first: its rate is the one that is logged
