# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""MinkowskiEngine's executor against the dense reference, in float64: features, gradients, the whole network."""

from __future__ import annotations

import subprocess
import sys

import MinkowskiEngine
import pytest
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import nn

from bundle.errors import UserError
from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, MaskSampler
from bundle.networks import Decoder, EncoderDepthPairs, PretrainingNetwork, build_encoder
from bundle.sparse import CellLayout, SparseVolume, UnsupportedOperation
from tests.sparse.oracle import site_mask

CELL_SHAPE = (4, 2, 4)


def example(grid=(2, 3, 2), cell_shape=CELL_SHAPE, channels=4) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of two in float64, and visible cells that are more in the second sample than in the first."""
    generator = torch.Generator().manual_seed(3)
    visible = torch.rand(2, 1, *grid, generator=generator) < torch.tensor([0.4, 0.7]).view(2, 1, 1, 1, 1)
    assert 0 < visible[0].sum() < visible[1].sum() < visible[1].numel()
    size = [g * b for g, b in zip(grid, cell_shape)]
    return torch.randn(2, channels, *size, dtype=torch.float64, generator=generator), visible


def assert_equal_but_for_rounding(actual: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max(), what


def features_and_gradients(network: nn.Module, image, visible, executor: str):
    """Every feature map, and the gradients of the image and every parameter for a random cotangent."""
    network.zero_grad()
    image = image.clone().requires_grad_()
    features = network(SparseVolume.from_dense(image, visible, executor))
    features = [f.to_dense() for f in (features if isinstance(features, list) else [features])]
    generator = torch.Generator().manual_seed(4)
    sum((f * torch.randn(f.shape, dtype=f.dtype, generator=generator)).sum() for f in features).backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    return features, {"image": image.grad, **gradients}


def assert_as_masked(network: nn.Module, image, visible) -> None:
    (features, gradients), (expected, expected_gradients) = (
        features_and_gradients(network, image, visible, executor) for executor in ("minkowski", "masked")
    )
    assert len(features) == len(expected)
    for level, (a, b) in enumerate(zip(features, expected)):
        assert_equal_but_for_rounding(a, b, f"level {level}")
    for name, b in expected_gradients.items():
        assert_equal_but_for_rounding(gradients[name], b, name)


CONVOLUTIONS = {
    "1x1x1": dict(kernel_size=1),
    "1x1x1 strided": dict(kernel_size=1, stride=2),
    "3x3x3": dict(kernel_size=3, padding=1),
    "3x3x3 without bias": dict(kernel_size=3, padding=1, bias=False),
    "3x3x3 strided": dict(kernel_size=3, padding=1, stride=2),
    "2x2x2 strided": dict(kernel_size=2, stride=2),
    "4x4x4 strided": dict(kernel_size=4, padding=1, stride=2),
    "5x5x5": dict(kernel_size=5, padding=2),
    "dilated": dict(kernel_size=3, padding=2, dilation=2),
    "even and dilated": dict(kernel_size=2, padding=1, dilation=2),
    "strided and dilated": dict(kernel_size=3, padding=2, dilation=2, stride=2),
    "anisotropic": dict(kernel_size=(3, 1, 5), padding=(1, 0, 2), stride=(2, 1, 4)),
    "anisotropic dilation": dict(kernel_size=3, padding=(1, 2, 3), dilation=(1, 2, 3)),
    "odd and even axes": dict(kernel_size=(3, 2, 1), padding=(1, 0, 0), stride=(1, 2, 1)),
    "padded on one side": dict(kernel_size=5, padding=1, stride=4),
}


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_and_its_gradients_are_the_references(arguments):
    torch.manual_seed(1)
    assert_as_masked(nn.Conv3d(4, 3, **arguments).double(), *example(cell_shape=(4, 4, 4)))


NORMS = [nn.BatchNorm3d(4), nn.BatchNorm3d(4).eval(), nn.InstanceNorm3d(4, affine=True), nn.GroupNorm(2, 4)]


@pytest.mark.parametrize("norm", NORMS, ids=["batch", "batch in eval", "instance", "group"])
def test_norms_of_convolved_sites_are_the_references(norm):
    torch.manual_seed(1)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    network = nn.Sequential(
        nn.Conv3d(4, 4, 3, padding=1, bias=False), norm, nn.LeakyReLU(0.1, inplace=True), nn.AvgPool3d((2, 1, 2))
    )
    assert_as_masked(network.double(), *example())


@pytest.mark.parametrize("norm", ["batch", "instance", ("group", {"num_groups": 4})], ids=str)
def test_an_unmodified_encoder_has_the_references_features_and_gradients(norm):
    torch.manual_seed(0)
    encoder = SegResEncoder(init_filters=4, blocks_down=(1, 2, 1, 1, 1), norm=norm).double()
    assert_as_masked(encoder, *example(grid=(2, 2, 2), cell_shape=(16, 16, 16), channels=1))


def test_a_sample_with_nothing_visible_changes_nothing_for_the_others():
    image, visible = example()
    network = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.InstanceNorm3d(4)).double()
    alone = network(SparseVolume.from_dense(image[1:], visible[1:], "minkowski")).to_dense()
    visible[0] = False
    both = network(SparseVolume.from_dense(image, visible, "minkowski")).to_dense()
    assert (both[0] == 0).all()
    assert_equal_but_for_rounding(both[1:], alone)


def test_masked_voxels_even_nan_change_no_feature_bit_for_bit():
    image, visible = example()
    changed = torch.where(site_mask(visible, CELL_SHAPE)[:, None], image, torch.nan)
    layer = nn.Conv3d(4, 4, 3, padding=1, stride=2).double()
    kept, other = (layer(SparseVolume.from_dense(x, visible, "minkowski")).to_dense() for x in (image, changed))
    assert torch.equal(kept, other)


def test_round_trip_keeps_visible_sites_and_fills_the_rest():
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, "minkowski")
    mask = site_mask(visible, CELL_SHAPE)[:, None]
    fill = torch.arange(4.0)
    assert volume.shape == image.shape
    assert torch.equal(volume.to_dense(), torch.where(mask, image, 0.0))
    assert torch.equal(volume.to_dense(fill), torch.where(mask, image, fill.double().view(1, 4, 1, 1, 1)))


def test_features_at_sites_of_a_coarser_level_are_the_dense_ones():
    image, visible = example()
    layout = CellLayout(visible)
    volume = nn.Conv3d(4, 3, 3, 2, 1).double()(SparseVolume.from_dense(image, layout, "minkowski"))
    sites = layout.draw_sites(50, volume.cell_shape)
    b, z, y, x = sites.unbind(1)
    assert torch.equal(volume.at(sites), volume.to_dense()[b, :, z, y, x])


def test_coordinates_are_given_to_minkowskiengine_once_per_mask(monkeypatch):
    image, visible = example()
    inserted = []
    original = MinkowskiEngine.CoordinateManager.insert_and_map
    monkeypatch.setattr(
        MinkowskiEngine.CoordinateManager,
        "insert_and_map",
        lambda self, *args: inserted.append(args) or original(self, *args),
    )
    same, down = nn.Conv3d(4, 4, 3, padding=1).double(), nn.Conv3d(4, 4, 3, stride=2, padding=1).double()
    volume = SparseVolume.from_dense(image, visible, "minkowski")
    for _ in range(2):
        down(same(same(volume)))
    assert len(inserted) == 2  # the fine level, and the coarse one in its sites


def test_a_change_in_place_of_what_a_gradient_needs_is_an_error_as_in_torch():
    image, visible = example()
    first, second = (nn.Conv3d(4, 4, 3, padding=1).double() for _ in range(2))
    between = first(SparseVolume.from_dense(image, visible, "minkowski"))
    out = second(between)
    nn.ReLU(inplace=True)(between)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.to_dense().sum().backward()


def test_bfloat16_autocast_stays_near_float32():
    image, visible = example()
    network = nn.Sequential(nn.Conv3d(4, 8, 1), nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.Conv3d(8, 4, 1))
    volume = SparseVolume.from_dense(image.float(), visible, "minkowski")
    exact = network(volume).to_dense()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(volume).to_dense()
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_convolution_with_groups_names_the_executors_that_can():
    with pytest.raises(UnsupportedOperation, match=r"no groups \(4 asked for\): choose the executor cells or masked"):
        nn.Conv3d(4, 4, 3, padding=1, groups=4).double()(SparseVolume.from_dense(*example(), "minkowski"))


def test_the_whole_network_has_the_loss_and_gradients_of_cells():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 1, 32, 32, 32, dtype=torch.float64, generator=generator)
    valid = torch.ones(image.shape, dtype=torch.bool)
    mask = MaskSampler(rule=AdaptiveBlocks(), cell=(16, 16, 16))(valid, torch.arange(2))
    data = {"image": image, "valid": valid, "foreground": valid, "visible": mask.visible, "hidden": mask.hidden}
    loss_function = PretrainingLoss(
        reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0), alignment=AlignmentLoss()
    )
    results = {}
    for executor in ("minkowski", "cells"):
        torch.manual_seed(0)
        encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1, 1, 1), norm="instance")
        network = PretrainingNetwork(
            encoder=encoder,
            decoder=Decoder(levels=encoder.levels, width=8),
            alignment=EncoderDepthPairs(levels=encoder.levels, dim=16, samples=64),
            executor=executor,
        ).double()
        out = network(image, visible=mask.visible, hidden=mask.hidden, spacing=torch.ones(2, 3))
        loss = loss_function(out, data)
        loss.backward()
        results[executor] = loss.detach(), {name: p.grad for name, p in network.named_parameters()}
    (loss, gradients), (expected_loss, expected) = results["minkowski"], results["cells"]
    assert_equal_but_for_rounding(loss, expected_loss)
    for name, b in expected.items():
        assert (gradients[name] - b).abs().max() <= 1e-12 * b.abs().max().clamp(min=1e-6), name


# ---- asked for, absent, unknown --------------------------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_it_is_imported_only_when_it_is_asked_for():
    code = """
import sys, torch
from bundle.sparse import SparseVolume
batch = torch.ones(1, 1, 4, 4, 4), torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
for executor in ("cells", "masked", "minkowski"):
    SparseVolume.from_dense(*batch, executor)
    print(executor, "MinkowskiEngine" in sys.modules)
print(*sorted(SparseVolume.executors))
"""
    done = python(code)
    assert done.stdout.splitlines() == ["cells False", "masked False", "minkowski True", "auto cells masked"], (
        done.stderr
    )


def test_where_it_is_not_installed_one_line_says_how_to_build_it():
    code = """
import sys
sys.modules["MinkowskiEngine"] = None  # importing it is now an ImportError
from bundle.errors import install_excepthook
from bundle.sparse import SparseVolume
install_excepthook()
SparseVolume.executor_class("minkowski")
"""
    done = python(code)
    assert done.returncode == 1
    assert done.stderr.startswith("error: executor minkowski: MinkowskiEngine cannot be imported")
    assert "`python scripts/minkowski/build.py`" in done.stderr and done.stderr.count("\n") == 1


def test_an_unknown_executor_names_them_all():
    assert SparseVolume.known_executors() == ["cells", "auto", "masked", "minkowski"]
    with pytest.raises(UserError, match="unknown executor 'dense': choose one of cells, auto, masked, minkowski"):
        SparseVolume.from_dense(*example(), executor="dense")


def test_a_device_that_it_is_not_built_for_is_named(monkeypatch):
    kind = SparseVolume.executor_class("minkowski")
    monkeypatch.setattr(MinkowskiEngine, "is_cuda_available", lambda: False)
    with pytest.raises(UserError, match=r"not built for the device cuda:0; .*--target cuda"):
        sys.modules[kind.__module__]._new_manager(torch.device("cuda:0"))
