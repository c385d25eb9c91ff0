# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part a: sparse execution on the device computes what the masked reference computes, and reads nothing hidden."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import speed
import torch
from gpu_parts.context import Context
from gpu_parts.encoders import SMALL, make_batch, make_encoder
from torch import Tensor

from bundle.errors import UserError
from bundle.networks import Decoder, PretrainingNetwork
from bundle.sparse import SparseVolume
from bundle.sparse.convolution.methods import METHODS

__all__ = ["run"]

#: largest distance to the reference in the same type, relative to its length: features and gradients. In float32 the
#: gradient jumps where rounding moves a site over the kink of an activation.
ALLOWED = {torch.float64: (1e-12, 1e-10), torch.float32: (1e-4, 1e-2)}
#: in bfloat16 the angle to the reference may be so many times the one that `masked` has in bfloat16
ANGLE = 2.0


def run(context: Context) -> None:
    """Compares `cells` on every small encoder and looks for leaks, then the other executors on the first encoder."""
    torch.backends.cudnn.allow_tf32 = False  # ten bits of a float32 would hide a wrong sum
    first, *others = _encoders(context)
    agreement: list[dict[str, Any]] = []
    leaks = [_network_leak(context, "cells")]
    for name in (first, *others):
        agreement += _compare(context, name, ["cells"])
        leaks.append(_encoder_leak(context, name))
        context.table("agreement with the masked executor", agreement)
        context.table("leaks", leaks)
        context.say(f"{name} compared")
    for executor in _executors(context):  # Triton compiles for a while
        agreement += _compare(context, first, [executor])
        if executor != "minkowski":
            leaks.append(_network_leak(context, executor))
        context.table("agreement with the masked executor", agreement)
        context.table("leaks", leaks)
        context.say(f"{executor} compared")
    failed = sum(not row["ok"] for row in [*agreement, *leaks])
    context.note(f"{failed} of {len(agreement) + len(leaks)} checks failed")


def _encoders(context: Context) -> list[str]:
    """The encoders to compare: nnU-Net's where their package is there."""
    names = list(context.settings.small_encoders or SMALL)
    if importlib.util.find_spec("dynamic_network_architectures") is not None:
        return names
    context.note("no encoders of nnU-Net: dynamic-network-architectures is not installed")
    return [name for name in names if SMALL[name][0] not in ("ResidualEncoderUNet", "PlainConvUNet")]


def _executors(context: Context) -> list[str]:
    """What to compare beside `cells`: the other executors, and `cells` by the method fused."""
    executors = ["auto"]
    if METHODS["fused"].runs_on(context.device):
        executors.insert(0, "cells fused")
    else:
        context.note("no method fused: Triton is not there or does not work here")
    try:
        SparseVolume.executor_class("minkowski")
    except UserError as error:
        context.note(f"no minkowski: {error}")
        return executors
    return [*executors, "minkowski"]


def _compare(context: Context, name: str, executors: Sequence[str]) -> list[dict[str, Any]]:
    # in the same type: the draws of a drop-path differ between types
    references = {dtype: _features_and_gradients(context, name, "masked", dtype) for dtype in ALLOWED}
    rows = []
    for executor in executors:
        for dtype, allowed in ALLOWED.items():
            if executor == "minkowski" and dtype == torch.float64:
                allowed = (1e-10, 1e-8)  # noqa: PLW2901 - it adds in an order that is never the same
            found = _features_and_gradients(context, name, executor, dtype)
            distances = [_distance(a, b) for a, b in zip(found, references[dtype])]
            ok = all(d <= most for d, most in zip(distances, allowed))
            rows.append(_row(name, executor, dtype, distances, ok))
    plain = _features_and_gradients(context, name, "masked", torch.bfloat16)
    reference = references[torch.float32]
    most = [1e-4 + ANGLE * _angle(a, b) for a, b in zip(plain, reference)]
    for executor in executors:
        if executor != "minkowski":  # it has no bfloat16
            found = _features_and_gradients(context, name, executor, torch.bfloat16)
            angles = [_angle(a, b) for a, b in zip(found, reference)]
            rows.append(_row(name, executor, torch.bfloat16, angles, all(a <= m for a, m in zip(angles, most))))
    return rows


def _row(name: str, executor: str, dtype: torch.dtype, distances: Sequence[float], ok: bool) -> dict[str, Any]:
    about = {"encoder": name, "executor": executor, "type": str(dtype).removeprefix("torch.")}
    return {**about, "features": distances[0], "gradients": distances[1], "ok": ok}


def _features_and_gradients(context: Context, name: str, executor: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All features in one vector, and all gradients; float64. For bfloat16 the encoder is float32 under autocast."""
    half = dtype == torch.bfloat16
    stored = torch.float32 if half else dtype
    encoder = make_encoder(name, context.device, stored)
    image, visible = make_batch(encoder, context.device, stored)
    torch.manual_seed(1)  # draws of a drop-path
    executor, _, method = executor.partition(" ")
    with torch.autocast(context.device.type, torch.bfloat16, enabled=half), speed.convolve_by(method):
        volumes = encoder(SparseVolume.from_dense(image, visible, executor))
    features = [volume.to_dense() for volume in volumes]
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(f.shape, dtype=torch.float64, generator=generator).to(f.device, f.dtype) for f in features]
    torch.autograd.backward(features, weights)
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    one, other = (torch.cat([t.detach().double().flatten() for t in part]) for part in (features, gradients))
    return one, other


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _angle(a: Tensor, b: Tensor) -> float:
    """One minus the cosine."""
    return float(1 - torch.dot(a, b) / (a.norm() * b.norm()))


def _encoder_leak(context: Context, name: str) -> dict[str, Any]:
    """Whether any feature changes when what is hidden turns from zero to not-a-number."""
    encoder = make_encoder(name, context.device, torch.float32).eval()
    image, visible = make_batch(encoder, context.device, torch.float32)
    with torch.no_grad():
        found = [
            torch.cat([f.to_dense().flatten() for f in encoder(SparseVolume.from_dense(hidden, visible))])
            for hidden in _hide(image, visible)
        ]
    return _leak_row(name, "cells", *found)


def _network_leak(context: Context, executor: str) -> dict[str, Any]:
    """As `_encoder_leak`, of the whole pre-training network in bfloat16."""
    encoder = make_encoder("SegResEncoder", context.device, torch.float32)
    image, visible = make_batch(encoder, context.device, torch.float32)
    torch.manual_seed(2)
    stored, _, method = executor.partition(" ")
    network = PretrainingNetwork(
        encoder=encoder, decoder=Decoder(levels=encoder.levels, width=16), executor=stored, autocast=torch.bfloat16
    ).to(context.device)
    spacing = torch.ones(len(image), 3, device=context.device)
    with torch.no_grad(), speed.convolve_by(method):
        found = [
            network.eval()(hidden, visible=visible, hidden=~visible, spacing=spacing)["reconstruction"].flatten()
            for hidden in _hide(image, visible)
        ]
    return _leak_row("whole network, bfloat16", executor, *found)


def _hide(image: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The image with zeros, and with not-a-numbers, where it is hidden."""
    sites = visible
    for axis in (2, 3, 4):
        sites = sites.repeat_interleave(image.shape[axis] // visible.shape[axis], axis)
    return torch.where(sites, image, 0.0), torch.where(sites, image, torch.nan)


def _leak_row(name: str, executor: str, zeros: Tensor, nans: Tensor) -> dict[str, Any]:
    finite = bool(nans.isfinite().all())
    change = float((zeros - nans).abs().max() / zeros.abs().max()) if finite else float("nan")
    # the two passes may add in another order, no more
    return {"network": name, "executor": executor, "largest change": change, "ok": finite and change <= 1e-5}
