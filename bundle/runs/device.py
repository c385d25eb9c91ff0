# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which device to train on, and in which precision."""

from __future__ import annotations

import logging
import os

import torch

from bundle.errors import UserError

__all__ = ["autocast_dtype", "pick_device"]

logger = logging.getLogger(__name__)


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device of this process.

    Args:
        device: "auto" takes this process's GPU (`LOCAL_RANK` under torchrun) if there is one, else the CPU; "cuda" asks
            for that GPU; anything else is a PyTorch device or its name, such as "cpu" or "cuda:1".

    Raises:
        UserError: if the device is unknown or this machine has not got it.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise UserError(f'unknown device "{device}": use --device auto, cpu, cuda or cuda:0') from None
    if picked.type not in ("cpu", "cuda"):
        raise UserError(f'device "{device}" has never been tried here: use --device auto, cpu, cuda or cuda:0')
    if picked.type != "cuda":
        return picked

    if not torch.cuda.is_available():
        reason = "this PyTorch is a CPU build" if torch.version.cuda is None else "PyTorch sees no GPU here"
        raise UserError(f'device "{device}" asked for, but {reason}: use --device cpu')
    index = local_rank if picked.index is None else picked.index
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(
            f"GPU {index} asked for, but this machine has {count} (0 to {count - 1}): "
            f"use --device cuda:0, or torchrun with --nproc_per_node {count}"
        )
    return torch.device("cuda", index)


def autocast_dtype(device: torch.device, amp: bool | str = True) -> torch.dtype | None:
    """The dtype for `torch.autocast` inside the network, or None for plain float32.

    A GPU without bfloat16 trains in float32 unless told otherwise: float16 needs its losses scaled (`ScaleLoss`), as
    gradients of a mean over millions of voxels fall below its smallest number.

    Args:
        device: where the network runs.
        amp: True for bfloat16 on GPUs that have it, False for float32, "bfloat16" or "float16" for that on any device.

    Raises:
        UserError: if `amp` is none of these.
    """
    if amp in ("bfloat16", "float16"):
        if device.type == "cpu" and not _cpu_computes_in(str(amp)):
            logger.warning(
                "this CPU has no instructions for %s: a step takes several times as long as with --amp False", amp
            )
        return torch.bfloat16 if amp == "bfloat16" else torch.float16
    if not isinstance(amp, bool):
        raise UserError(f'unknown precision "{amp}": use --amp True, False, bfloat16 or float16')
    if not amp or device.type != "cuda":
        return None
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        logger.warning("this GPU has no bfloat16: training in float32; --amp float16 is faster")
        return None
    return torch.bfloat16


def _cpu_computes_in(name: str) -> bool:
    """Whether PyTorch's kernels for this CPU compute in that precision, instead of converting to and fro."""
    short = {"bfloat16": "bf16", "float16": "fp16"}[name]
    # private, and the only place that knows: torch.compile asks it as well. A PyTorch without it is not warned about
    known: bool = getattr(torch.ops.mkldnn, f"_is_mkldnn_{short}_supported", lambda: True)()
    return known
