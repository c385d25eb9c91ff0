# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules for pooling: absent sites are not there, neither as values nor in a mean's divisor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple, triple
from bundle.sparse.layout import CellLayout
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume, rule
from bundle.sparse.windows import Window, pool_windows, require_whole_cells

# ---- windows ------------------------------------------------------------------------------------------------------


@rule(F.max_pool3d, torch.max_pool3d)
def _max_pool3d(
    volume: SparseVolume,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> SparseVolume:
    if return_indices:
        raise UnsupportedOperation("max_pool3d with indices: a sparse volume has no flat index")
    kernel = triple(kernel_size)
    window = Window(kernel, triple(stride) if stride else kernel, triple(padding), triple(dilation))
    require_whole_cells(volume.shape[2:], window, ceil_mode=ceil_mode)
    if not all(_sees_itself(window, axis) for axis in range(3)):
        raise UnsupportedOperation(
            f"max_pool3d with kernel {kernel}, padding {window.padding} and dilation {window.dilation}: its windows "
            "leave out their own site, so that a visible one may see none"
        )
    return volume.pool("max", window)


def _sees_itself(window: Window, axis: int) -> bool:
    """Whether a window reads one of the sites that its output stands for, on one axis."""
    reads = (k * window.dilation[axis] - window.padding[axis] for k in range(window.kernel[axis]))
    return any(0 <= site < window.stride[axis] for site in reads)


@rule(F.avg_pool3d)
def _avg_pool3d(
    volume: SparseVolume,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> SparseVolume:
    """Mean over the window's sites that are not masked.

    Zero padding around the volume counts as in the dense layer, so with everything visible it is the dense layer.
    """
    kernel = triple(kernel_size)
    window = Window(kernel, triple(stride) if stride else kernel, triple(padding))
    require_whole_cells(volume.shape[2:], window, ceil_mode=ceil_mode)
    if divisor_override is not None:
        return volume.pool("sum", window) / divisor_override
    if window.is_side_by_side:
        return volume.pool("mean", window)
    counts = volume.layout.cached(
        ("window counts", volume.cell_shape, window, count_include_pad),
        lambda: _window_counts(volume.layout, volume.cell_shape, window, count_include_pad),
    )
    total = volume.pool("sum", window)
    return total / counts.to(total.dtype)


def _window_counts(layout: CellLayout, cell_shape: Triple, window: Window, include_padding: bool) -> Tensor:
    """Dense ``[B, 1, D, H, W]``: the sites each window's mean divides by, at least one."""
    d, h, w = window.padding
    counted = F.pad(layout.site_mask(cell_shape).float(), (w, w, h, h, d, d), value=float(include_padding))
    # a last window in ceil mode reaches past the padding, and what it reads there is not counted
    past = [high - low for low, high in zip(window.padding, window.high)]
    counted = F.pad(counted, (0, past[2], 0, past[1], 0, past[0]))
    return pool_windows("sum", counted, window).clamp(min=1)


# ---- a value per sample: dense tensors ---------------------------------------------------------------------------


@rule(F.adaptive_avg_pool3d)
def _adaptive_avg_pool3d(volume: SparseVolume, output_size: int | Sequence[int]) -> Tensor:
    _require_one_site(output_size)
    return _sample_mean(volume)


@rule(F.adaptive_max_pool3d)
def _adaptive_max_pool3d(
    volume: SparseVolume, output_size: int | Sequence[int], return_indices: bool = False
) -> Tensor:
    _require_one_site(output_size)
    return volume.sample_max()[:, :, None, None, None]


def _require_one_site(output_size: int | Sequence[int]) -> None:
    if triple(output_size) != (1, 1, 1):
        raise UnsupportedOperation(f"adaptive pooling of a sparse volume to {output_size}: only to a single site")


@rule(torch.mean, Tensor.mean)
def _mean(
    volume: SparseVolume,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> SparseVolume | Tensor:
    axes = _axes(() if dim is None else dim)
    if dtype is not None:
        raise UnsupportedOperation(f"mean of a sparse volume as {dtype}: convert the volume or the mean")
    if axes == (1,) and keepdim:
        return volume.pointwise(lambda features: features.mean(1, keepdim=True))
    _require_spatial("mean", axes)
    mean = _sample_mean(volume)
    return mean if keepdim else mean[:, :, 0, 0, 0]


@rule(torch.norm, Tensor.norm)
def _norm(
    volume: SparseVolume,
    p: float | str | None = "fro",
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    out: None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Euclidean norm over each sample's visible sites, as global response normalization takes it."""
    _require_spatial("norm", _axes(() if dim is None else dim))
    if p not in ("fro", 2):
        raise UnsupportedOperation(f"the {p}-norm of a sparse volume: only the 2-norm")
    total = volume.pointwise(lambda f: f.to(torch.promote_types(f.dtype, torch.float32)).square()).sample_sum()
    norm = torch.where(total > 0, total, 1).sqrt() * (total > 0)  # the root's slope at zero is infinite
    norm = norm.to(volume.dtype)
    return norm[:, :, None, None, None] if keepdim else norm


def _sample_mean(volume: SparseVolume) -> Tensor:
    d, h, w = volume.cell_shape
    mean = volume.sample_sum() / (volume.layout.divisors * (d * h * w))[:, None]
    return mean.to(volume.dtype)[:, :, None, None, None]


def _axes(dim: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(d % 5 for d in ((dim,) if isinstance(dim, int) else dim)))


def _require_spatial(name: str, axes: tuple[int, ...]) -> None:
    if axes != (2, 3, 4):
        raise UnsupportedOperation(f"{name} of a sparse volume over axes {axes}: only over all spatial ones, 2 to 4")
