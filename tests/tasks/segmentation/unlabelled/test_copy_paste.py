# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import Tensor

from bundle.errors import UserError
from bundle.tasks.segmentation import StackedSupervisionLoss
from bundle.tasks.segmentation.unlabelled import CopyPaste, PseudoLabels, supervise_regions
from bundle.tasks.segmentation.unlabelled.copy_paste import IGNORED, LABELLED, UNLABELLED

SIZE = (4, 6, 5)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three pairs with two channels and two classes."""
    generator = torch.Generator().manual_seed(0)
    image, other = (torch.randn(3, 2, *SIZE, generator=generator).double() for _ in range(2))
    label = torch.randint(0, 3, (3, 1, *SIZE), generator=generator)
    box = torch.tensor([[[0, 3], [2, 6], [1, 4]], [[1, 4], [0, 4], [2, 5]], [[1, 3], [1, 5], [0, 3]]])
    return {"image": image, "label": label, "unlabelled": other, "box": box, "draw": torch.tensor([6, 7, 8])}


def teacher(image: Tensor) -> tuple[Tensor, Tensor]:
    """Some label map, not sure of it everywhere."""
    return (image.sum(1, keepdim=True) > 0).to(image.dtype) * 2, image[:, :1] > -0.5


def voxels(batch: dict[str, Tensor], pair: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """Voxel by voxel, what the network should see of a pair and what should supervise it."""
    pseudo, sure = teacher(batch["unlabelled"])
    image, target = torch.zeros(2, *SIZE).double(), torch.zeros(2, *SIZE).double()
    for place in itertools.product(*map(range, SIZE)):
        inside = all(first <= p < last for p, (first, last) in zip(place, batch["box"][pair].tolist()))
        here, everywhere = (pair, slice(None), *place), (slice(None), *place)
        if inside != reverse:
            image[everywhere] = batch["unlabelled"][here]
            supervised_by = UNLABELLED if sure[here] else IGNORED
            target[everywhere] = torch.tensor([pseudo[here].item(), supervised_by], dtype=torch.float64)
        else:
            image[everywhere] = batch["image"][here]
            target[everywhere] = torch.tensor([batch["label"][here].item(), LABELLED], dtype=torch.float64)
    return image, target


def test_pairs_are_mixed_one_way_and_the_other_by_turns(batch: dict[str, Tensor]):
    image, target = CopyPaste(pseudo_labels=teacher)(batch, "cpu")
    assert image.shape == (3, 2, *SIZE) and target.shape == (3, 2, *SIZE)
    for pair, reverse in enumerate((False, True, False)):
        wanted = voxels(batch, pair, reverse)
        assert torch.equal(image[pair], wanted[0]) and torch.equal(target[pair], wanted[1])


def test_both_ways_doubles_the_batch(batch: dict[str, Tensor]):
    image, target = CopyPaste(pseudo_labels=teacher, both_ways=True)(batch, "cpu")
    assert len(image) == 6
    for number, (reverse, pair) in enumerate(itertools.product((False, True), range(3))):
        wanted = voxels(batch, pair, reverse)
        assert torch.equal(image[number], wanted[0]) and torch.equal(target[number], wanted[1])


def dice_and_cross_entropy(scores: Tensor, target: Tensor, supervised_by: int) -> float:
    """The plain formula over the voxels of one part, all crops together, in NumPy."""
    logits = scores.movedim(1, -1).reshape(-1, scores.shape[1]).numpy()
    label, region = (target[:, channel].reshape(-1).numpy() for channel in (0, 1))
    rows = [row for row in range(len(label)) if region[row] == supervised_by]
    intersection, total, entropy = np.zeros(3), np.zeros(3), 0.0
    for row in rows:
        probability = np.exp(logits[row]) / np.exp(logits[row]).sum()
        truth = np.eye(3)[int(label[row])]
        intersection += probability * truth
        total += probability + truth
        entropy -= np.log(probability[int(label[row])]) / len(rows)
    return float((1 - (2 * intersection + 1e-5) / (total + 1e-5)).mean() + entropy)


def plain_loss() -> DiceCELoss:
    return DiceCELoss(to_onehot_y=True, softmax=True, include_background=True, batch=True)


def test_the_loss_is_that_of_each_part_by_itself(batch: dict[str, Tensor]):
    _, target = CopyPaste(pseudo_labels=teacher)(batch, "cpu")
    scores = torch.randn(3, 3, *SIZE).double().requires_grad_()
    parts = [dice_and_cross_entropy(scores.detach(), target, part) for part in (LABELLED, UNLABELLED)]
    loss = supervise_regions(plain_loss(), weight=lambda: 0.3)(scores, target)
    assert loss.item() == pytest.approx(parts[0] + 0.3 * parts[1], rel=1e-10)
    loss.backward()
    ignored = target[:, 1:] == IGNORED
    assert ignored.any() and not scores.grad.masked_select(ignored).any()
    without = supervise_regions(plain_loss(), weight=lambda: 0.0)(scores, target)
    assert without.item() == pytest.approx(parts[0], rel=1e-10)


def test_deep_supervision_halves_the_weight_of_each_coarser_output(batch: dict[str, Tensor]):
    _, target = CopyPaste(pseudo_labels=teacher)(batch, "cpu")
    outputs = [torch.randn(3, 3, *size) for size in (SIZE, (2, 3, 5))]
    coarse = target[:, :, 1::2, 1::2]  # what nearest-exact takes of an even size
    wanted = 0.0
    for scores, at_its_size, share in zip(outputs, (target, coarse), (1, 0.5)):
        parts = [dice_and_cross_entropy(scores.double(), at_its_size, part) for part in (LABELLED, UNLABELLED)]
        wanted += share * (parts[0] + 0.3 * parts[1])
    original = DeepSupervisionLoss(plain_loss())
    loss = supervise_regions(original, weight=lambda: 0.3)
    assert loss(outputs, target.float()).item() == pytest.approx(wanted, rel=1e-4)
    assert isinstance(original.loss, DiceCELoss), "the one that fits the heads stays"
    stacked = supervise_regions(StackedSupervisionLoss(plain_loss()), weight=lambda: 0.3)
    twice = torch.stack([outputs[0], outputs[0]], dim=1)
    assert stacked(twice, target.float()).item() == pytest.approx(1.5 * loss([outputs[0]], target.float()).item())


def test_a_part_without_voxels_has_no_loss_but_a_gradient():
    scores = torch.randn(1, 3, *SIZE, requires_grad=True)
    loss = supervise_regions(plain_loss(), weight=lambda: 1.0)(scores, torch.zeros(1, 2, *SIZE))
    loss.backward()
    assert loss.item() == 0 and not scores.grad.any()


def test_pseudo_labels_are_the_most_probable_class_where_it_is_probable_enough():
    scores = torch.log(torch.tensor([[0.2, 0.7, 0.1], [0.45, 0.2, 0.35], [0.3, 0.1, 0.6]])).double()
    image = scores.T.reshape(1, 3, 3, 1, 1)
    label, sure = PseudoLabels(teacher=lambda scores: scores, threshold=0.5)(image)
    assert label.flatten().tolist() == [1, 0, 2] and sure.flatten().tolist() == [True, False, True]
    assert label.dtype == image.dtype
    with pytest.raises(UserError, match="--unlabelled_threshold 50 does not fit"):
        PseudoLabels(teacher=lambda scores: scores, threshold=50)


def test_of_a_single_class_the_largest_component_of_each_crop_stays():
    wanted = torch.zeros(2, 1, 6, 6, 6)
    wanted[:, :, 0, 0, :3], wanted[:, :, 4, 4:, 4:], wanted[:, :, 2, 2, 2] = 1, 2, 2
    scores = torch.cat([(wanted == number).double() for number in range(3)], dim=1)
    scattered = scores.clone()
    scattered[0, :, 5, 5, 0] = scattered[1, :, 0, 0, 5] = torch.tensor([0.0, 9.0, 0.0])
    label, sure = PseudoLabels(teacher=lambda scores: scores, largest=[1], threshold=0.0)(scattered)
    assert torch.equal(label, wanted.double()) and sure.all()
