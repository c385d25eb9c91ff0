# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The error for an operation without a rule."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import HighResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from bundle.errors import UserError
from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import example


class _Upsampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), nn.Upsample(scale_factor=2))

    def forward(self, x):
        return self.body(x)


def test_an_operation_without_a_rule_names_itself_its_module_and_the_file(executor):
    with pytest.raises(
        UnsupportedOperation, match=r"interpolate.*body\.1 \(Upsample\) of _Upsampler.*rules/pointwise\.py"
    ):
        _Upsampler()(SparseVolume.from_dense(*example(), executor))


def test_a_tensor_method_without_a_rule_says_so():
    with pytest.raises(UnsupportedOperation, match="permute"):
        SparseVolume.from_dense(*example()).permute(0, 1, 2, 4, 3)


class _Applies(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("__getitem__", lambda x: x[:, :2]),
        ("gt", lambda x: x > 0),
        ("le", lambda x: x <= 0),
        ("eq", lambda x: x == 0),
        ("floor_divide", lambda x: x // 2),
        ("remainder", lambda x: x % 2),
        ("matmul", lambda x: x @ x),
        ("__bool__", bool),
        ("__iter__", list),
        ("as_tensor", torch.as_tensor),
        ("softmax", lambda x: x.softmax(1)),
        ("pow", lambda x: 2**x),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_an_operator_without_a_rule_names_itself_and_its_module(executor, name, function, last):
    volume = SparseVolume.from_dense(*example(), executor)
    with pytest.raises(UnsupportedOperation, match=rf"{name}.*called by 0 \(_Applies\) of Sequential"):
        nn.Sequential(_Applies(function))(volume.movedim(1, -1) if last else volume)


def test_highresnet_is_refused_by_the_name_of_what_it_asks_for():
    network = HighResNet(in_channels=4, out_channels=2).double()
    with pytest.raises(UnsupportedOperation, match=r"as_tensor.*\(HighResBlock\) of HighResNet"):
        network(SparseVolume.from_dense(*example()))


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x * 2 if isinstance(x, torch.Tensor) else x.to_dense() * 2

    @staticmethod
    def backward(_, grad):
        return grad * 2


class _Within(torch.autograd.Function):
    """Takes tensors, as it should, and makes a volume of its own."""

    @staticmethod
    def forward(_, image, visible, executor):
        return SparseVolume.from_dense(image, visible, executor).relu().to_dense()

    @staticmethod
    def backward(_, grad):
        return grad, None, None


class _Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv3d(4, 4, 3, padding=1).double() for _ in range(2))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(self.second, self.first(x), use_reentrant=self.use_reentrant)


def test_a_function_that_would_drop_the_gradient_is_refused(executor):
    image, visible = example()
    volume = SparseVolume.from_dense(image, visible, executor)
    with pytest.raises(UserError, match=r"CheckpointFunction\.apply.*of _Checkpointed.*use_reentrant=False"):
        _Checkpointed(use_reentrant=True)(volume)
    needs_gradient = SparseVolume.from_dense(image.requires_grad_(), visible, executor)
    with pytest.raises(UserError, match=r"_Double\.apply of a sparse volume.*must take tensors"):
        _Double.apply(needs_gradient)
    with pytest.raises(UserError, match=r"CheckpointFunction\.apply"):
        checkpoint(torch.relu, needs_gradient.movedim(1, -1), use_reentrant=True)


def test_without_gradients_checkpoints_and_functions_run(executor):
    image, visible = example()
    network = _Checkpointed(use_reentrant=True)
    volume = SparseVolume.from_dense(image, visible, executor)
    with torch.no_grad():
        assert network(volume).to_dense().any() and _Double.apply(volume).any()
    needs_gradient = network.first(volume)
    with torch.no_grad():
        assert torch.equal(network.second(needs_gradient).to_dense(), network(volume).to_dense())
    assert _Within.apply(image.requires_grad_(), visible, executor).requires_grad
    network.use_reentrant = False
    network(volume).to_dense().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
