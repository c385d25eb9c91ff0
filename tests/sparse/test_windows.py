# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Windows, against the sites that a loop over outputs reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.sparse import UnsupportedOperation, Window
from bundle.sparse.windows import require_whole_cells


def reads(window: Window, sites: int) -> list[list[int]]:
    """For each output along the first axis, the sites that it reads."""
    kernel, stride, padding, dilation = (n[0] for n in (window.kernel, window.stride, window.padding, window.dilation))
    return [[o * stride - padding + k * dilation for k in range(kernel)] for o in range(sites // stride)]


def along_one_axis(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Window:
    return Window((kernel,) * 3, (stride,) * 3, (padding,) * 3, (dilation,) * 3)


WINDOWS = [(1,), (3, 1, 1), (3, 2, 1), (2, 2, 0), (5, 4, 2), (3, 1, 2, 2), (2, 1, 1), (1, 2), (3, 3, 1), (2, 1, 1, 2)]


@pytest.mark.parametrize("numbers", WINDOWS)
def test_it_knows_how_far_past_the_last_site_it_reads(numbers):
    window = along_one_axis(*numbers)
    assert window.high[0] == max(reads(window, 12)[-1]) - 11


@pytest.mark.parametrize("numbers", WINDOWS)
def test_it_knows_whether_it_is_pointwise_centred_or_side_by_side(numbers):
    window = along_one_axis(*numbers)
    sites = reads(window, 12)
    assert window.is_pointwise == (sites == [[i] for i in range(12)])
    assert window.keeps_size == (len(sites) == 12 and all(r[0] + r[-1] == 2 * i for i, r in enumerate(sites)))
    assert window.is_side_by_side == ([site for output in sites for site in output] == list(range(12)))


def test_outputs_per_cell_are_the_cell_shape_over_the_stride():
    assert Window((3, 3, 3), (2, 1, 4), (1, 1, 1)).outputs((4, 3, 8)) == (2, 3, 2)
    with pytest.raises(UnsupportedOperation, match=r"\(2, 1, 1\) does not divide a cell that is \(3, 4, 4\) sites"):
        Window((3, 3, 3), (2, 1, 1), (1, 1, 1)).outputs((3, 4, 4))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_windows_that_change_the_number_of_cells_are_refused(kernel, stride, ceil_mode):
    for padding in range(kernel // 2 + 1):
        window = along_one_axis(kernel, stride, padding)
        torchs = F.max_pool3d(torch.zeros(1, 1, 12, 12, 12), kernel, stride, padding, 1, ceil_mode).shape[-1]
        if torchs == 12 // stride:
            require_whole_cells((12, 12, 12), window, ceil_mode=ceil_mode)
        else:
            with pytest.raises(UnsupportedOperation, match="moves the map off its cells"):
                require_whole_cells((12, 12, 12), window, ceil_mode=ceil_mode)
