# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.networks import Pairs


def example(with_pairs: bool):
    torch.manual_seed(0)
    image = torch.randn(1, 1, 4, 4, 4)
    hidden = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    hidden[0, 0, 0] = True
    visible = ~hidden
    visible[0, 0, 1, 1, 1] = False  # padding: neither
    features = Pairs(torch.randn(5, 3), torch.randn(5, 3), torch.zeros(5), torch.zeros(5, 3))
    reconstruction = torch.randn_like(image)
    output = {
        "reconstruction": reconstruction,
        "visible": visible,
        "hidden": hidden,
        "made": {"reconstruction": [reconstruction], **({"alignment": [features]} if with_pairs else {})},
        "terms": {},
    }
    target = {"image": image, "valid": torch.ones_like(image, dtype=torch.bool), "foreground": image > 0}
    return output, target


def loss(weight: float = 0.3) -> PretrainingLoss:
    return PretrainingLoss(
        reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0),
        alignment=AlignmentLoss(),
        alignment_weight=weight,
        level_weights=[1.0],
    )


def test_terms_add_up_to_the_loss():
    output, target = example(with_pairs=True)
    total = loss()(output, target)
    terms = output["terms"]
    assert total.item() == pytest.approx((terms["reconstruction"] + 0.3 * terms["alignment"]).item())
    assert terms["loss"] == total and not any(t.requires_grad for t in terms.values())


def test_without_heads_there_is_no_alignment():
    output, target = example(with_pairs=False)
    total = loss()(output, target)
    assert total == output["terms"]["reconstruction"] and "alignment" not in output["terms"]


def test_a_degraded_image_is_to_be_restored():
    output, target = example(with_pairs=False)
    clean = loss()(output, target)
    noisy = {**target, "clean": target["image"], "image": target["image"] + 1}
    assert loss()(output, noisy) == clean
    assert torch.equal(loss().restore(output, noisy), loss().restore(output, target))


def test_the_realised_mask_ratio_leaves_padding_out():
    output, target = example(with_pairs=False)
    loss()(output, target)
    assert output["terms"]["mask_ratio"].item() == pytest.approx(4 / 7)
