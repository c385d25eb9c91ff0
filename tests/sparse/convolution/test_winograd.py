# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How much Winograd's algorithm rounds."""

from __future__ import annotations

import pytest
import torch

from bundle.sparse import CellLayout, Window
from bundle.sparse.convolution.methods import convolve


# of the result, the gradient of the input and that of the weight, which is a sum over all tiles of a part
@pytest.mark.parametrize(("method", "times"), [("winograd depth", (2, 2, 2)), ("winograd cubes", (5, 5, 8))])
def test_winograd_rounds_a_few_times_as_much_as_the_plain_sum_in_float32(method: str, times: tuple[float, ...]):
    generator = torch.Generator().manual_seed(0)
    layout = CellLayout(torch.rand(1, 1, 2, 3, 3, generator=generator) < 0.6)
    inputs = [torch.randn(len(layout), 64, 8, 8, 8, generator=generator)]
    inputs += [torch.randn(64, 64, 3, 3, 3, generator=generator)]
    window = Window((3, 3, 3), padding=(1, 1, 1))

    def result_and_gradients(method: str, dtype: torch.dtype) -> list[torch.Tensor]:
        blocks, weight = (x.to(dtype).requires_grad_() for x in inputs)
        out = convolve(blocks, weight, None, layout, (8, 8, 8), window, 1, method)
        along = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        return [out.detach(), *torch.autograd.grad((out * along).sum(), [blocks, weight])]

    exact = result_and_gradients("blocks", torch.float64)
    plain, here = (result_and_gradients(m, torch.float32) for m in ("blocks", method))
    for a, b, truth, most in zip(plain, here, exact, times, strict=True):
        assert (b - truth).square().mean() < most**2 * (a - truth).square().mean()
        assert (b - truth).abs().max() < 2e-5 * truth.abs().max()
