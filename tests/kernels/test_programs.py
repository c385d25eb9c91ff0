# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The programs compile for GPUs that are not there; tests/sparse/convolution/test_fused.py runs them interpreted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bundle.kernels import programs
from bundle.sparse import CellLayout, Window
from bundle.sparse.convolution.fused import convolve_fused

CENTRED = Window((3, 3, 3), padding=(1, 1, 1))
STRIDED = Window((3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))


class Compiler:
    """Stands where a kernel would: compiles it with the arguments it is started with, and starts nothing."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability
        self.assembly: list[str] = []

    def __getitem__(self, grid: Any) -> Any:
        assert all(0 < size < 65536 for size in grid)
        return self.compile

    def compile(self, *args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
        pointers = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}
        names = self.kernel.arg_names
        values = {**dict(zip(names, args)), **constants}
        signature, hints = {}, {}
        for place, (name, parameter) in enumerate(zip(names, self.kernel.params)):
            value = values[name]
            if parameter.is_constexpr or (value is not None and isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = pointers[value.dtype] if isinstance(value, torch.Tensor) else "i32"
                if isinstance(value, torch.Tensor) or value % 16 == 0:
                    hints[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, {(names.index(n),): v for n, v in constants.items()}, hints)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        self.assembly.append(compiled.asm["ptx"])
        assert compiled.asm["cubin"] and compiled.metadata.shared <= 96 * 2**10


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
@pytest.mark.parametrize(
    ("dtype", "c_in", "c_out", "window"),
    [
        (torch.bfloat16, 32, 32, CENTRED),
        (torch.bfloat16, 1, 32, CENTRED),
        (torch.float16, 64, 128, STRIDED),
        (torch.float32, 48, 64, CENTRED),
    ],
    ids=str,
)
def test_kernels_compile_to_products_of_matrices_that_read_ahead(
    dtype, c_in, c_out, window, capability, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = {}
    for name in ("convolve", "weight_gradient"):
        kernels[name] = Compiler(getattr(programs, name), capability)
        monkeypatch.setattr(programs, name, kernels[name])
    layout = CellLayout(torch.ones(1, 1, 2, 2, 2, dtype=torch.bool))
    blocks = torch.zeros(8, c_in, 8, 8, 8, dtype=dtype, requires_grad=True)
    weight, bias = (torch.zeros(s, dtype=dtype, requires_grad=True) for s in ((c_out, c_in, 3, 3, 3), (c_out,)))
    convolve_fused(blocks, weight, bias, layout, (8, 8, 8), window).sum().backward()
    assert [len(kernel.assembly) for kernel in kernels.values()] == [2, 1]
    for assembly in [*kernels["convolve"].assembly, *kernels["weight_gradient"].assembly]:
        assert re.search("wgmma.mma_async|mma.sync", assembly)
        assert ".local" not in assembly, "registers are spilled to memory"
    if c_in > 16:
        assert "cp.async" in kernels["convolve"].assembly[0]
