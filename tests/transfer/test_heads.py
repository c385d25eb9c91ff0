# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, FlexibleUNet, ResNet, SegResNetDS
from torch import nn

from bundle.errors import UserError
from bundle.transfer import fit_heads
from bundle.transfer.heads import _neighbourhoods, find_heads

CLASSES = 3


class OneHead(nn.Module):
    """Fixed features of the image, and a head."""

    def __init__(self, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Conv3d(6, CLASSES, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x) * 10 + 3)  # far from mean 0 and deviation 1


class CrossEntropy(nn.Module):
    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, label[:, 0].long())


def batches(count: int = 2) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    blobs = torch.randn(count * 2, 1, 8, 8, 8)
    images = nn.functional.interpolate(blobs, size=(32, 32, 32), mode="trilinear").unflatten(0, (count, 2))
    return [{"image": image, "label": (image > -0.3).float() + (image > 0.3).float()} for image in images]


@pytest.mark.parametrize("kernel", [1, 3])
def test_voxels_neighbourhoods_are_what_torchs_convolution_reads(kernel):
    head = nn.Conv3d(4, 2, (kernel, 1, kernel), padding=(kernel // 2, 0, kernel // 2)).double()
    features = torch.randn(2, 4, 5, 3, 6, dtype=torch.float64)
    where = torch.arange(2 * 5 * 3 * 6)
    found = nn.functional.conv3d(_neighbourhoods(features, head, where), head.weight, head.bias).flatten(1)
    torch.testing.assert_close(found, head(features).movedim(1, -1).reshape(-1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_head_that_explains_the_labels_is_found(kernel):
    torch.manual_seed(0)
    truth, network = OneHead(kernel).eval(), OneHead(kernel)
    network.features.load_state_dict(truth.features.state_dict())
    data = batches()
    for batch in data:
        batch["label"] = truth(batch["image"]).argmax(1, keepdim=True).float()
    (before, after), *_ = fit_heads(network, data, CrossEntropy(), voxels=2**13, ridge=1e-7, iterations=100).values()
    assert after < 0.05 < before
    network.eval()
    agree = [(network(b["image"]).argmax(1, keepdim=True) == b["label"]).float().mean() for b in data]
    assert min(agree) > 0.98


def test_it_is_the_minimum_of_the_loss_and_the_ridge():
    """The gradient of the plain formula, on whole volumes instead of drawn voxels, is nearly zero."""
    torch.manual_seed(0)
    network = OneHead(1)
    data = batches(1)
    fit_heads(network, data, CrossEntropy(), voxels=2**19, ridge=0.01, iterations=300)
    network.eval()
    with torch.no_grad():
        x = network.features(data[0]["image"]) * 10 + 3
    deviation = x.std((0, 2, 3, 4)).view(1, -1, 1, 1, 1)
    loss = CrossEntropy()(network.head(x), data[0]["label"])
    loss = loss + 0.01 * (network.head.weight * deviation).square().sum()
    (gradient,) = torch.autograd.grad(loss, network.head.weight)
    zero = torch.zeros_like(network.head.weight, requires_grad=True)
    untrained = CrossEntropy()(nn.functional.conv3d(x - x.mean((0, 2, 3, 4), keepdim=True), zero), data[0]["label"])
    (at_zero,) = torch.autograd.grad(untrained, zero)
    assert (gradient / deviation).abs().max() < 0.05 * (at_zero / deviation).abs().max()


NETWORKS = {
    "SegResNetDS": lambda: SegResNetDS(
        init_filters=8, blocks_down=[1, 1, 1], in_channels=1, out_channels=CLASSES, dsdepth=2, norm="batch"
    ),
    "DynUNet": lambda: DynUNet(
        3, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[8, 8, 16, 16], deep_supervision=True, deep_supr_num=2
    ),
    "FlexibleUNet": lambda: FlexibleUNet(1, CLASSES, "resnet10", spatial_dims=3),
}
FITTED = {"SegResNetDS": 2, "DynUNet": 3, "FlexibleUNet": 1}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_heads_of_monais_networks_fit_and_all_else_stays(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    fitted = fit_heads(network, batches(), loss)
    assert len(fitted) == FITTED[name]
    assert all(after < first - 0.1 for first, after in fitted.values())
    after = network.state_dict()  # where DynUNet's heads have two names
    heads = {after[f"{head}.{part}"].data_ptr() for head in fitted for part in ("weight", "bias")}
    assert {value.data_ptr() for key, value in after.items() if not torch.equal(value, before[key])} == heads
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_fitting_is_the_same_every_time():
    heads = []
    for _ in range(2):
        torch.manual_seed(0)
        network = OneHead(1)
        fit_heads(network, batches(), CrossEntropy())
        heads.append(network.head.weight)
    assert torch.equal(*heads)


def test_a_network_without_heads_is_one_clear_line():
    with pytest.raises(UserError, match=r"--fit_heads finds no heads in Sequential: set it to 0"):
        fit_heads(nn.Sequential(nn.Conv3d(1, 2, 1)), batches(1), CrossEntropy())


@pytest.mark.parametrize("change", [{"stride": 2}, {"groups": 3}, {"bias": False}, {"padding": "same"}])
def test_a_head_that_is_no_plain_convolution_is_one_clear_line(change):
    network = OneHead(1)
    network.head = nn.Conv3d(6, CLASSES, 1, **change)
    with pytest.raises(UserError, match=r"--fit_heads cannot fit head, Conv3d\(.*\): set it to 0"):
        fit_heads(network, batches(1), CrossEntropy())


def test_a_classifiers_last_layer_is_not_taken_for_a_segmentation_head():
    assert not find_heads(ResNet("basic", [1, 1, 1, 1], [8, 8, 8, 8], n_input_channels=1, num_classes=2))
