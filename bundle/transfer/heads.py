# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A segmentation network's heads, and how to fit them to its features, so that fine-tuning does not start at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.probing import minimize

__all__ = ["find_heads", "fit_heads", "is_head"]

#: what MONAI's networks and nnU-Net's call the layers that make classes of features
HEADS = {"head", "heads", "deep_supervision_heads", "output_block", "segmentation_head", "conv_final", "seg_layers"}


def is_head(name: str) -> bool:
    """Whether a module or parameter of that name in a network is a head's."""
    return not HEADS.isdisjoint(name.split("."))


def find_heads(network: nn.Module) -> dict[str, nn.Conv3d]:
    """The convolutions that make classes of features, by their names."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv3d) and is_head(name)}


def fit_heads(
    network: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    loss: nn.Module,
    *,
    voxels: int = 2**16,
    ridge: float = 1e-4,
    iterations: int = 50,
) -> dict[str, tuple[float, float]]:
    """Fits each head to the features that it is given, all other weights as they are.

    A head that starts at random has to be learned while its gradients already change what is below it. Fitting it
    first keeps the features (Kumar et al., arXiv:2202.10054, "linear probing, then fine-tuning"), and costs a forward
    pass over a few batches: a head is one convolution, and the loss of a linear map of given features is fitted by
    L-BFGS in seconds.

    Args:
        network: on the batches' device; left in the mode it was in. Its heads are changed in place.
        batches: of `image` ``[B, C, D, H, W]`` and `label` ``[B, 1, D, H, W]``.
        loss: of one output ``[B, classes, D, H, W]`` and a label map of its size.
        voxels: drawn from all batches for each head.
        ridge: weight of the squared weights, of features of unit deviation.
        iterations: of L-BFGS.

    Returns:
        For each head its loss before and after, on the voxels it was fitted to.

    Raises:
        UserError: if there is no head, or one that is no plain convolution.

    Example:
        >>> import torch
        >>> from monai.losses import DiceCELoss
        >>> from monai.networks.nets import SegResNetDS
        >>> from bundle.transfer import fit_heads
        >>> _ = torch.manual_seed(0)
        >>> network = SegResNetDS(out_channels=2, init_filters=8, blocks_down=[1, 1, 1], norm="instance")
        >>> image = torch.randn(1, 1, 16, 16, 16)
        >>> losses = fit_heads(
        ...     network, [{"image": image, "label": (image > 1).float()}], DiceCELoss(softmax=True, to_onehot_y=True)
        ... )
        >>> [(name, before > after) for name, (before, after) in losses.items()]
        [('up_layers.1.head', True)]
    """
    heads = find_heads(network)
    if not heads:
        raise UserError(
            f"--fit_heads finds no heads in {type(network).__name__}: set it to 0, or add their name to HEADS in "
            "bundle/transfer/heads.py"
        )
    for name, head in heads.items():
        plain = head.padding_mode == "zeros" and not isinstance(head.padding, str) and head.bias is not None
        if head.groups > 1 or set(head.stride) != {1} or set(head.dilation) != {1} or not plain:
            raise UserError(f"--fit_heads cannot fit {name}, {head}: set it to 0")
    samples = _samples(network, heads, batches, voxels)
    return {name: _fit(heads[name], *sample, loss, ridge, iterations) for name, sample in samples.items()}


def _samples(
    network: nn.Module, heads: Mapping[str, nn.Conv3d], batches: Iterable[Mapping[str, Tensor]], voxels: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Each head's inputs ``[N, C, *kernel]`` around some voxels, and the labels ``[N]`` there."""
    batches = list(batches)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    label = torch.empty(0)

    def keep(head: nn.Conv3d, inputs: tuple[Tensor], *, name: str) -> None:
        (features,) = inputs
        here = F.interpolate(label, features.shape[2:], mode="nearest-exact").flatten()
        where = torch.randint(len(here), (voxels // len(batches),), generator=generator).to(here.device)
        x, y = found.setdefault(name, ([], []))
        x.append(_neighbourhoods(features.float(), head, where))
        y.append(here[where])

    training = {module: module.training for module in network.modules()}
    hooks = [head.register_forward_pre_hook(partial(keep, name=name)) for name, head in heads.items()]
    network.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                label = batch["label"].float()
                network(batch["image"])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return {name: (torch.cat(x), torch.cat(y)) for name, (x, y) in found.items()}


def _neighbourhoods(features: Tensor, head: nn.Conv3d, where: Tensor) -> Tensor:
    """What the head's kernel covers around voxels of ``[B, C, D, H, W]``, counted through the batch: ``[N, C, *k]``."""
    size = (len(features), *features.shape[2:])
    b, *corner = (index.view(-1, 1, 1, 1) for index in torch.unravel_index(where, size))
    kernel = torch.meshgrid(*(torch.arange(k, device=where.device) for k in head.kernel_size), indexing="ij")
    d, h, w = (place + offset for place, offset in zip(corner, kernel))
    assert not isinstance(head.padding, str)  # fit_heads has looked
    padded = F.pad(features, [p for p in reversed(head.padding) for _ in range(2)])
    return padded[b, :, d, h, w].movedim(-1, 1)


def _fit(head: nn.Conv3d, x: Tensor, y: Tensor, loss: nn.Module, ridge: float, iterations: int) -> tuple[float, float]:
    mean = x.mean((0, 2, 3, 4), keepdim=True)
    deviation = x.std((0, 2, 3, 4), keepdim=True).clamp(min=1e-6)
    label = y.view(1, 1, -1, 1, 1)
    assert head.bias is not None  # fit_heads has looked
    before = _compute_loss(loss, _as_columns(x), head.weight, head.bias, label).item()
    x = _as_columns((x - mean) / deviation)
    weight = torch.zeros_like(head.weight, requires_grad=True)
    bias = torch.zeros(head.out_channels, device=x.device, requires_grad=True)

    def objective() -> Tensor:
        return _compute_loss(loss, x, weight, bias, label) + ridge * weight.square().sum()

    minimize(objective, [weight, bias], iterations)
    with torch.no_grad():
        after = _compute_loss(loss, x, weight, bias, label).item()
        head.weight.copy_(weight / deviation)
        head.bias.copy_(bias - (head.weight * mean).sum((1, 2, 3, 4)))
    return before, after


def _as_columns(x: Tensor) -> Tensor:
    """``[N, C, *kernel]`` as ``[C * kernel, N]``: one product takes a third of the time of N convolutions."""
    return x.flatten(1).T.contiguous()


def _compute_loss(loss: nn.Module, x: Tensor, weight: Tensor, bias: Tensor, label: Tensor) -> Tensor:
    """The loss of single voxels' neighbourhoods, in columns, laid out as one volume."""
    logits = torch.addmm(bias[:, None], weight.flatten(1), x)  # [classes, N]
    return loss(logits[None, :, :, None, None], label)
