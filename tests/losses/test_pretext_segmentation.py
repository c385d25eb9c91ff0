# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.losses import PretextSegmentation
from bundle.networks import Decoder, PretrainingNetwork, SegResDecoder, build_encoder


def target(classes: torch.Tensor, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pretext_class": classes.to(torch.uint8), "valid": torch.ones_like(classes).bool(), "hidden": hidden}


def some_hidden() -> torch.Tensor:
    hidden = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    hidden[:, :, 0] = True
    return hidden


@pytest.mark.parametrize("hidden_weight", [1.0, 0.0, 3.0])
def test_the_loss_is_cross_entropy_of_valid_voxels_with_a_weight_where_hidden(hidden_weight: float):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(5, (2, 1, 8, 8, 8), generator=generator)
    logits = torch.randn(2, 5, 8, 8, 8, generator=generator)
    wanted = target(classes, some_hidden())
    wanted["valid"][1, :, :, :, 6:] = False
    loss, terms = PretextSegmentation(channels=4, classes=5, hidden_weight=hidden_weight).loss([logits], wanted)

    each = -logits.log_softmax(1).gather(1, classes)[:, 0].double()
    weight = torch.ones_like(each)
    weight[:, :4] = hidden_weight
    weight[1, :, :, 6:] = 0
    crops = [(values * of).sum() / of.sum() for values, of in zip(each, weight)]
    assert loss.item() == pytest.approx(sum(crops).item() / 2, rel=1e-5)
    right, valid = logits.argmax(1) == classes[:, 0], wanted["valid"][:, 0]
    assert terms["pretext_accuracy"].item() == pytest.approx(right[valid].double().mean().item())
    assert terms["pretext_accuracy_hidden"].item() == pytest.approx(right[:, :4][valid[:, :4]].double().mean().item())
    most = torch.bincount(classes[wanted["valid"]]).max().item()
    assert terms["pretext_accuracy_guess"].item() == pytest.approx(most / valid.sum().item())


@pytest.mark.parametrize("full", [True, False], ids=["full resolution", "a quarter"])
def test_hidden_voxels_are_learned_through_the_sparse_encoder_and_the_decoder(full: bool):
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm=("instance", {"affine": True}))
    decoder = SegResDecoder(encoder=encoder) if full else Decoder(levels=encoder.levels, width=8, stride=2)
    channels = 4 if full else 8
    objective = PretextSegmentation(channels=channels, classes=2)
    network = PretrainingNetwork(encoder=encoder, decoder=decoder, objectives={"pretext": objective})
    assert {"pretext.classes.weight", "pretext.classes.bias"} <= network.state_dict().keys()
    image = torch.randn(2, 1, 8, 8, 8)
    classes = torch.zeros(2, 1, 8, 8, 8, dtype=torch.long)
    classes[..., 4:] = 1  # one half of the crop: the place says it, no voxel does
    image = image + 2 * classes
    hidden = some_hidden()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        changed = image.clone()
        changed[:, :, :4] = torch.nan  # what is hidden is never seen
        output = network(changed, visible=~hidden, hidden=hidden, spacing=torch.ones(2, 3))
        loss, terms = objective.loss(output["made"]["pretext"], target(classes, hidden))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert output["made"]["pretext"][0].shape == (2, 2, *(3 * [8 if full else 4]))
    assert terms["pretext_accuracy_hidden"] > 0.95
    assert terms["pretext_accuracy_guess"] == 0.5


def test_a_coarser_grid_takes_the_voxel_in_the_middle_of_each_site():
    classes = torch.arange(8**3).reshape(1, 1, 8, 8, 8) % 7
    middle = classes[0, 0, 2::4, 2::4, 2::4]
    logits = 50.0 * F.one_hot(middle, 7).movedim(-1, 0)[None].float()
    hidden = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    loss, terms = PretextSegmentation(channels=4, classes=7).loss([logits], target(classes, hidden))
    assert loss < 1e-6 and terms["pretext_accuracy"] == 1


def test_nothing_valid_is_no_division_by_zero():
    wanted = target(torch.zeros(1, 1, 4, 4, 4, dtype=torch.long), torch.ones(1, 1, 1, 1, 1, dtype=torch.bool))
    wanted["valid"][:] = False
    loss, terms = PretextSegmentation(channels=4, classes=3).loss([torch.zeros(1, 3, 4, 4, 4)], wanted)
    assert loss == 0 and all(torch.isfinite(value) for value in terms.values())
