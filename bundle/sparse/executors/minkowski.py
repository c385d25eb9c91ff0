# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The `minkowski` executor: MinkowskiEngine's sparse convolution on the network's `Conv3d` weights.

Importing this file imports MinkowskiEngine, so `SparseVolume.executor_class` does it only when the executor is chosen.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bundle.cells import Triple, triple
from bundle.errors import UserError
from bundle.sparse.executors.cells import CellsVolume
from bundle.sparse.layout import CellLayout
from bundle.sparse.storage import blocks_to_rows, rows_to_blocks
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume
from bundle.sparse.windows import Window

try:
    import MinkowskiEngine as minkowski  # noqa: N813 - a module's name is in lower case
    from MinkowskiEngineBackend._C import ConvolutionMode  # MinkowskiEngine itself does not hand it out
except ImportError as error:
    raise UserError(
        f"executor minkowski: MinkowskiEngine cannot be imported ({error}); build it with "
        "`python scripts/minkowski/build.py`, or choose the executor cells"
    ) from error

__all__ = ["MinkowskiVolume"]


class MinkowskiVolume(CellsVolume, executor="minkowski"):
    """Convolves the visible sites with MinkowskiEngine (Choy et al. 2019, arXiv:1904.08755).

    Stores what `cells` stores. Blocks in channels-last order are the matrix ``[sites, C]`` that MinkowskiEngine works
    on, cell after cell and so sample after sample, hence norms, activations and pooling are those of `cells`; only the
    convolutions differ. Those run in float32 (float64 for float64): MinkowskiEngine has no half precision on a CPU.
    """

    def convolve(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> SparseVolume:
        if groups != 1:
            raise UnsupportedOperation(
                f"MinkowskiEngine's convolution has no groups ({groups} asked for): choose the executor cells or masked"
            )
        cell_shape = window.outputs(self.cell_shape)
        rows = blocks_to_rows(self.features)
        if window.is_pointwise:  # no neighbours: MinkowskiEngine would do the same
            rows = F.linear(rows, weight.flatten(1), bias)
        else:
            rows = self._convolve(rows, weight, bias, window)
        return self._like(rows_to_blocks(rows, cell_shape), cell_shape)

    def _convolve(self, rows: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        """Convolves ``[sites, C_in]`` of this level to ``[sites, C_out]`` of the level that `window` leads to."""
        # output o of a dense layer reads from o * stride - padding on; MinkowskiEngine's reads from its coordinate on,
        # or on an axis where the kernel is odd, around it
        before = [k // 2 * d if k % 2 else 0 for k, d in zip(window.kernel, window.dilation)]
        shift = triple(b - p for b, p in zip(before, window.padding))
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        convolved = _Convolution.apply(
            rows.to(dtype).contiguous(),
            # MinkowskiEngine's kernel is [places, C_in, C_out], and of the places the first axis runs fastest
            weight.to(dtype).permute(4, 3, 2, 1, 0).reshape(-1, *weight.shape[1::-1]).contiguous(),
            minkowski.KernelGenerator(*map(list, (window.kernel, window.stride, window.dilation)), dimension=3),
            ConvolutionMode.DEFAULT,
            _coordinate_map(self.layout, self.cell_shape, (1, 1, 1), (0, 0, 0)),
            _coordinate_map(self.layout, window.outputs(self.cell_shape), window.stride, shift),
            _coordinate_manager(self.layout),
        )
        return (convolved if bias is None else convolved + bias).to(rows.dtype)


class _Convolution(minkowski.MinkowskiConvolutionFunction):
    """MinkowskiEngine's convolution, with its inputs where autograd sees that they were changed in place.

    The original keeps them as attributes and would compute wrong gradients from changed ones without a word.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, kernel: Tensor, *geometry: Any) -> Tensor:
        convolved = minkowski.MinkowskiConvolutionFunction.forward(ctx, rows, kernel, *geometry)
        del ctx.input_features, ctx.kernel_weights
        ctx.save_for_backward(rows, kernel)
        return convolved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.input_features, ctx.kernel_weights = ctx.saved_tensors
        gradients = minkowski.MinkowskiConvolutionFunction.backward(ctx, grad)
        del ctx.input_features, ctx.kernel_weights
        return gradients


def _coordinate_manager(layout: CellLayout) -> Any:
    """MinkowskiEngine's store of coordinates and kernel maps: one per layout, so each is made once per mask."""
    return layout.cached(("minkowski",), lambda: _new_manager(layout.device))


def _new_manager(device: torch.device) -> Any:
    if device.type == "cpu":
        kind = minkowski.CoordinateMapType.CPU
    elif device.type == "cuda" and minkowski.is_cuda_available():
        kind = minkowski.CoordinateMapType.CUDA
    else:
        raise UserError(
            f"executor minkowski: MinkowskiEngine is not built for the device {device}; for an NVIDIA GPU build it "
            "with `python scripts/minkowski/build.py --target cuda`, or choose the executor cells"
        )
    return minkowski.CoordinateManager(D=3, coordinate_map_type=kind)


def _coordinate_map(layout: CellLayout, cell_shape: Triple, stride: Triple, shift: Triple) -> Any:
    """The key of the map that holds, for each visible site of a level, the coordinate ``site * stride + shift``."""
    return layout.cached(("minkowski", cell_shape, stride, shift), lambda: _insert(layout, cell_shape, stride, shift))


def _insert(layout: CellLayout, cell_shape: Triple, stride: Triple, shift: Triple) -> Any:
    samples, cells = layout.cells[:, None, :1], layout.cells[:, None, 1:]
    scale, step, origin = (cells.new_tensor(axes) for axes in (cell_shape, stride, shift))
    inside = torch.cartesian_prod(*(torch.arange(size, device=layout.device) for size in cell_shape))
    sites = cells * scale + inside  # [N, sites of a block, 3]
    coordinates = torch.cat([samples.expand(-1, len(inside), -1), sites * step + origin], dim=2).flatten(0, 1).int()
    manager = _coordinate_manager(layout)
    key, _ = manager.insert_and_map(coordinates, list(stride), f"{cell_shape} {stride} {shift}")
    if not torch.equal(manager.get_coordinates(key), coordinates):  # rows of features would be taken for other sites
        raise RuntimeError("MinkowskiEngine keeps the sites in another order than it was given")
    return key
