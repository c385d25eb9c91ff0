# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""SyncBatchNorm over the visible sites of all processes.

torch's layer runs a function that looks past `__torch_function__`, so no rule can stand in for it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from bundle.ranks import is_distributed
from bundle.sparse.volume import SparseVolume, require_two_sites

__all__ = ["VisibleSyncBatchNorm", "sync_over_visible_sites"]


class VisibleSyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, on sparse volumes too: each process counts as many sites as it sees.

    Two passes, the mean first, in float32 at least, and on any device. Dense input runs torch's layer.
    """

    def forward(self, x: Any) -> Any:
        together = self.training and is_distributed()
        if not isinstance(x, SparseVolume) or not together:
            return super().forward(x)
        if dist.get_world_size(self.process_group) == 1:  # each of several processes sees a site or more
            require_two_sites(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = wide.sample_sum().sum(0)
        sites = total.new_full((1,), x.layout.count_sites(x.cell_shape))
        total, count = all_reduce(torch.cat([total, sites]), group=self.process_group).split([self.num_features, 1])
        mean = total / count
        centred = wide - mean.view(1, -1, 1, 1, 1)
        var = all_reduce(centred.square().sample_sum().sum(0), group=self.process_group) / count
        self._track(mean.detach(), (var * count / (count - 1)).detach())
        scale = (var + self.eps).rsqrt() if self.weight is None else (var + self.eps).rsqrt() * self.weight
        normal = centred * scale.view(1, -1, 1, 1, 1)
        if self.bias is not None:
            normal = normal + self.bias.view(1, -1, 1, 1, 1)
        return normal.to(x.dtype)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # it is there if running statistics are
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)


def sync_over_visible_sites(network: nn.Module) -> None:
    """Makes every SyncBatchNorm in `network` a `VisibleSyncBatchNorm`, in place, keys and weights as they are."""
    for module in network.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = VisibleSyncBatchNorm
