# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Starts from a network that was fine-tuned before: its encoder, its decoder, and its heads if they mean the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from bundle.transfer.heads import is_head
from bundle.transfer.load import find_prefix
from bundle.transfer.report import TransferReport
from bundle.weights import ModelFiles, require_fractions

__all__ = ["heads_loaded", "load_rest", "read_meanings", "say_what_was_taken", "split_encoder"]

logger = logging.getLogger(__name__)

#: the last layers of MONAI's RetinaNet
_BOX_HEADS = {"cls_logits", "bbox_reg"}


def read_meanings(model: str | os.PathLike[str]) -> list[str] | None:
    """What the outputs of a fine-tuned network mean, in their order; None for a pre-trained encoder.

    Args:
        model: its `model.pt`; `model.json` beside it tells.

    Raises:
        UserError: if `model.json` is damaged.
    """
    about = ModelFiles(model).read_settings()
    found = None if about is None else about.content.get("classes", about.content.get("findings"))
    return None if found is None else list(found)


def split_encoder(
    weights: Mapping[str, Tensor], encoder: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parts a fine-tuned network's weights.

    Args:
        weights: of the whole network.
        encoder: a state dict of the encoder alone, of any values.

    Returns:
        The encoder's weights under its own keys, and all others under those of the network.
    """
    prefix = find_prefix(encoder, weights)
    inside = {key: weights[f"{prefix}{key}"] for key in encoder if f"{prefix}{key}" in weights}
    return inside, {key: value for key, value in weights.items() if key.removeprefix(prefix) not in inside}


def load_rest(
    network: nn.Module, rest: Mapping[str, Tensor], *, same_meaning: bool, min_matched: float = 0.9
) -> TransferReport | None:
    """Copies what is not the encoder's: the decoder, and the heads if their outputs mean the same in both networks.

    Args:
        network: to be loaded into; untouched if it has another decoder.
        rest: of the fine-tuned network, under its keys.
        same_meaning: whether the outputs are of the same classes, in the same order.
        min_matched: share of these tensors, the heads apart, that must fit.

    Returns:
        What was loaded, or None where the network has another decoder.
    """
    current = network.state_dict()
    # a module may have two names, of which one says that it is a head
    heads = {value.data_ptr() for key, value in current.items() if _is_last(key)}
    last = {key for key in rest if _is_last(key) or (key in current and current[key].data_ptr() in heads)}
    report, body = TransferReport(""), TransferReport("")
    for key, value in rest.items():
        if key in last and not same_meaning:
            continue
        for one in (report,) if key in last else (report, body):
            _enter(one, key, value, current)
    if not body.loaded or body.share < min_matched:
        return None
    report.missing.extend(key for key in current if _is_last(key) and key not in report.loaded)
    taken = {key: rest[key] for key in report.loaded}
    require_fractions(taken, current, "the fine-tuned weights")
    network.load_state_dict(current | taken)
    return report


def heads_loaded(network: nn.Module, report: TransferReport | None) -> bool:
    """Whether all heads of a network are among what was loaded."""
    names = [key for key in network.state_dict() if _is_last(key)]
    return report is not None and bool(names) and {*names} <= {*report.loaded}


def say_what_was_taken(
    name: str, network: nn.Module, report: TransferReport | None, theirs: Sequence[str], ours: Sequence[str]
) -> None:
    """Logs where decoder and heads begin."""
    if report is None:
        logger.info("%s was fine-tuned; %s has another decoder, which starts untrained", name, type(network).__name__)
    elif heads_loaded(network, report):
        logger.info("%s was fine-tuned for the same classes: decoder and heads are taken as well", name)
    else:
        reason = (
            f"they are of {_listed(theirs)}, and here of {_listed(ours)}"
            if list(theirs) != list(ours)
            else "they do not fit"
        )
        logger.info("%s was fine-tuned: its decoder is taken as well, its heads are left: %s", name, reason)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing that was named"


def _is_last(key: str) -> bool:
    return is_head(key) or not _BOX_HEADS.isdisjoint(key.split("."))


def _enter(report: TransferReport, key: str, value: Tensor, current: Mapping[str, Tensor]) -> None:
    """Notes where a tensor goes."""
    if key not in current:
        report.unexpected.append(key)
    elif current[key].shape != value.shape:
        report.reshaped[key] = f"{list(value.shape)} -> {list(current[key].shape)}"
    else:
        report.loaded.append(key)
