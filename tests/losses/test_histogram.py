# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.errors import UserError
from bundle.losses import Histogram, ReconstructionLoss

BINS = 5  # at -2, -1, 0, 1, 2


@pytest.fixture
def histogram() -> Histogram:
    return Histogram(bins=BINS, low=-2, high=2)


def shares(intensity: float) -> list[float]:
    """What each bin has of an intensity, by hand: each bin reaches to its neighbours."""
    intensity = max(-2.0, min(2.0, intensity))
    return [max(0.0, 1 - abs(intensity - centre)) for centre in (-2, -1, 0, 1, 2)]


@pytest.mark.parametrize("intensity", [-2.0, -1.3, 0.0, 0.25, 1.999, 2.0, 7.0, -40.0])
def test_it_is_torchs_cross_entropy_with_the_intensitys_shares(histogram, intensity):
    torch.manual_seed(0)
    logits = torch.randn(BINS, dtype=torch.float64, requires_grad=True)
    target = torch.tensor(intensity, dtype=torch.float64)
    loss = histogram(logits.view(1, 1, 1, BINS, 1), target.view(1, 1, 1, 1))
    oracle = F.cross_entropy(logits, torch.tensor(shares(intensity), dtype=torch.float64))
    assert loss.shape == (1, 1, 1, 1)
    torch.testing.assert_close(loss.squeeze(), oracle, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(x.sum(), logits)[0] for x in (loss, oracle))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_the_best_distribution_has_the_intensity_as_its_mean(histogram):
    target = torch.tensor([-1.75, 0.3, 2.0], dtype=torch.float64)
    best = torch.tensor([shares(t) for t in target.tolist()], dtype=torch.float64).clamp(min=1e-300).log()
    logits = best.T[None, None, None]
    torch.testing.assert_close(histogram.mean(logits), target[None, None, None])
    worse = (0.9 * logits.exp() + 0.1 / BINS).log()
    assert (histogram(worse, target[None, None, None]) > histogram(logits, target[None, None, None])).all()


def test_each_image_channel_has_its_own_bins(histogram):
    prediction = torch.randn(2, 3, 2 * BINS, 4)
    logits = histogram.logits(prediction, channels=2)
    assert torch.equal(logits[:, :, 1, 2], prediction[:, :, BINS + 2])


def test_too_few_channels_are_one_clear_line(histogram):
    loss = ReconstructionLoss(target="none", histogram=histogram, visible_weight=0.0)
    image, ones = torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    with pytest.raises(UserError, match=r"predicts 1 channels, and .* 5 bins .* needs 5: set decoder#channels"):
        loss(image, image, ones, ones[..., :2, :2, :2], ones)


@pytest.mark.parametrize("options", [{"bins": 1}, {"low": 1, "high": 1}])
def test_a_histogram_without_width_is_refused(options):
    with pytest.raises(UserError, match="give at least 2 bins, and low below high"):
        Histogram(**options)


def example() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    image = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64)
    valid = torch.rand(2, 1, 4, 4, 4) > 0.2
    hidden = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    hidden[:, :, 0] = True
    prediction = torch.randn(2, BINS, 4, 4, 4, dtype=torch.float64)
    return dict(reconstruction=prediction, image=image, valid=valid, hidden=hidden, foreground=image > 0)


def test_the_loss_is_the_mean_cross_entropy_of_hidden_voxels_and_the_log_says_the_distance(histogram):
    e = example()
    loss, terms = ReconstructionLoss(target="none", histogram=histogram, visible_weight=0.5)(**e)
    nats = {True: [], False: []}
    squares = []
    for b in range(2):
        square = []
        for place in e["valid"][b, 0].nonzero().tolist():
            at = (b, slice(None), *place)
            hidden, x = place[0] < 2, e["image"][at].item()
            logits = e["reconstruction"][at]
            nats[hidden].append(F.cross_entropy(logits, logits.new_tensor(shares(x))))
            if hidden:
                square.append((logits.softmax(0) @ torch.arange(-2.0, 3.0).double() - x) ** 2)
        squares.append(torch.stack(square).mean())
    wanted = torch.stack(nats[True]).mean() + 0.5 * torch.stack(nats[False]).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["reconstruction"], torch.stack(squares).mean(), rtol=1e-12, atol=0)
    assert all(not term.requires_grad for term in terms.values())


def test_the_reconstruction_is_given_back_in_the_images_units(histogram):
    e = example()
    certain = torch.full((2, BINS, 4, 4, 4), -1e3, dtype=torch.float64)
    certain[:, 3] = 1e3  # the bin at 1
    valid = torch.ones_like(e["valid"])
    loss = ReconstructionLoss(target="per_volume", histogram=histogram, visible_weight=0.0)
    restored = loss.restore(certain, e["image"], valid, (2, 2, 2))
    for b in range(2):
        one_deviation_up = e["image"][b].mean() + e["image"][b].std(unbiased=False)
        torch.testing.assert_close(restored[b], one_deviation_up.expand(1, 4, 4, 4), rtol=1e-12, atol=0)


def test_a_visible_voxel_gets_no_gradient(histogram):
    e = example()
    e["reconstruction"].requires_grad_()
    loss, _ = ReconstructionLoss(target="none", histogram=histogram, visible_weight=0.0)(**e)
    (gradient,) = torch.autograd.grad(loss, e["reconstruction"])
    assert gradient[:, :, :2].any() and not gradient[:, :, 2:].any()


def test_values_that_one_end_takes_though_they_differ_are_counted_and_a_background_is_not(histogram):
    inside = torch.linspace(-2, 2, 50)
    background = torch.full((40,), -9.0)
    assert histogram.merged(torch.cat([inside, background])) == 0
    assert histogram.merged(torch.empty(0)) == 0
    # bins beyond the low end: 4 values in one, 3 in the next, 2 in a third; beyond the high end 1 and 1
    below = torch.tensor([-2.1, -2.4, -2.5, -2.9, -3.1, -3.2, -3.9, -4.5, -4.6])
    assert histogram.merged(torch.cat([inside, below])) == 5
    assert histogram.merged(torch.cat([inside, below, torch.tensor([2.5, 7.0])])) == 6
