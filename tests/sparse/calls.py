# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What torch runs, operation by operation, and encoders to look at."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

ENCODERS = {
    "SegResEncoder, batch norm": dict(name="SegResEncoder", init_filters=4, blocks_down=(1, 1, 1, 1, 1), norm="batch"),
    "SegResEncoder, instance norm": dict(
        name="SegResEncoder", init_filters=4, blocks_down=(1, 1, 1, 1, 1), norm="instance"
    ),
    "ResNet": dict(
        name="ResNet", block="basic", layers=(1, 1, 1, 1), block_inplanes=(4, 8, 16, 32), n_input_channels=1
    ),
}


class Calls(TorchDispatchMode):
    """Counts the operations that run while it is active and not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.paused = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        name = function.overloadpacket.__name__
        if not self.paused:
            self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))

    def waits(self) -> dict[str, int]:
        kinds = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "lift_fresh")
        return {name: count for name, count in self.counts.items() if name in kinds}
