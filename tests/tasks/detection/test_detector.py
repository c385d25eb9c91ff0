# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The ResNet with a feature pyramid, and the detector built on it."""

from __future__ import annotations

import pytest
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.networks.nets import ResNet
from monai.networks.nets.resnet import ResNetFeatures

from bundle.errors import UserError
from bundle.networks import build_encoder
from bundle.tasks.detection import AnchorSampling, DetectionLoss, Detector, ResNetFPN
from bundle.tasks.detection.detector import whole_overlap

ENCODER = {"name": "ResNet", "block": "bottleneck", "layers": [1, 2, 1, 1], "block_inplanes": [4, 8, 8, 8],
           "conv1_t_size": 3, "conv1_t_stride": [2, 2, 1]}  # fmt: skip
SHAPES = [[6.0, 6, 4], [10, 10, 6]]


def detector(**options) -> Detector:
    torch.manual_seed(0)
    extractor = ResNetFPN(ENCODER, out_channels=8)
    network = RetinaNet(3, num_classes=2, num_anchors=2, feature_extractor=extractor,
                        size_divisible=extractor.size_divisible)  # fmt: skip
    options = {"crop_size": [32, 32, 16], "scales": extractor.scales, "anchor_shapes": SHAPES, **options}
    return Detector(network, **options)


def plain_features(network: ResNet, x: torch.Tensor) -> list[torch.Tensor]:
    """What MONAI's own forward computes, up to each of the four layers."""
    found = []
    hooks = [getattr(network, f"layer{n}").register_forward_hook(lambda *a: found.append(a[2])) for n in (1, 2, 3, 4)]
    network(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("no_max_pool", [False, True])
@pytest.mark.parametrize("layers", [[1, 2], [2, 3, 4]])
def test_the_body_computes_what_the_resnet_does(no_max_pool: bool, layers: list[int]):
    torch.manual_seed(0)
    arguments = {**ENCODER, "no_max_pool": no_max_pool, "n_input_channels": 1, "feed_forward": False}
    name = arguments.pop("name")
    extractor = ResNetFPN({"name": name, **arguments}, returned_layers=layers, out_channels=8).eval()
    network = ResNet(**arguments).eval()
    network.load_state_dict(extractor.body.state_dict(), strict=False)
    x, inner = torch.randn(1, 1, 64, 64, 32), []
    extractor.fpn.register_forward_pre_hook(lambda _, given: inner.append(given[0]))
    levels = extractor(x)
    expected = plain_features(network, x)
    for number in layers:
        torch.testing.assert_close(inner[0][f"layer{number}"], expected[number - 1])
    assert len(levels) == len(layers) + 1 and all(level.shape[1] == 8 for level in levels)
    size = [s * level for s, level in zip(extractor.size_divisible, levels[-1].shape[2:])]
    assert size == [64, 64, 32]
    assert extractor.scales == [levels[0].shape[2] // level.shape[2] for level in levels]


def test_resnets_by_name_are_taken_too():
    extractor = ResNetFPN({"name": "ResNetFeatures", "model_name": "resnet10"}, out_channels=8)
    own = ResNetFeatures("resnet10", pretrained=False).state_dict()
    body = extractor.body.state_dict()
    assert set(body) == {key for key in own if not key.startswith(("layer3", "layer4", "fc"))}


def test_the_share_of_the_encoder_that_is_used_is_known():
    given = build_encoder(**ENCODER).network_state_dict()
    for layers, above in (([1, 2], ("layer3", "layer4")), ([1, 2, 3], ("layer4",)), ([3, 4], ("none",))):
        extractor = ResNetFPN(ENCODER, returned_layers=layers, out_channels=8)
        kept = [key for key in given if not key.startswith(above)]
        assert set(kept) == set(extractor.body.state_dict())
        assert extractor.share == pytest.approx(len(kept) / len(given)) and extractor.min_matched < extractor.share


def test_losses_have_gradients_for_every_parameter_also_without_a_box():
    net = detector().train()
    for boxes, labels in (([], []), ([[4.0, 4, 4, 10, 10, 8]], [1])):
        target = {"box": torch.tensor(boxes).reshape(-1, 6), "label": torch.tensor(labels).long()}
        output = net(torch.randn(1, 1, 32, 32, 16), targets=[target])
        loss = DetectionLoss(class_weight=2, box_weight=0.5)(output)
        terms = output["terms"]
        assert loss.item() == pytest.approx(2 * terms["classes"].item() + 0.5 * terms["boxes"].item())
        assert terms["loss"].item() == loss.item() and (terms["boxes"] > 0) == bool(boxes)
        net.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_an_anchor_that_is_a_box_matches_it():
    net = detector()
    net.generate_anchors(torch.zeros(1, 1, 32, 32, 16), net.network(torch.zeros(1, 1, 32, 32, 16)))
    (anchors,) = net.anchors
    inside = ((anchors[:, :3] >= 0) & (anchors[:, 3:] <= torch.tensor([32, 32, 16]))).all(1)
    number = int(torch.nonzero(inside)[3])
    per_level = [8 * 8 * 8, 4 * 4 * 4, 2 * 2 * 2]
    (matched,) = net.compute_anchor_matched_idxs([anchors], [{"box": anchors[[number]]}], per_level)
    assert matched[number] == 0 and (matched < 0).any()
    (none,) = net.compute_anchor_matched_idxs([anchors], [{"box": torch.zeros(0, 6)}], per_level)
    assert (none < 0).all() and none.shape == matched.shape


@pytest.mark.parametrize(
    ("sampling", "positives", "negatives"),
    [
        (AnchorSampling(), 19, 44),  # of 64 anchors 30 % match a box, and 7 others come with 3 of those
        (AnchorSampling(samples=10, positive_fraction=0.5, min_negatives=1), 5, 5),
        (AnchorSampling(samples=10, positive_fraction=0.5, min_negatives=30), 5, 30),
    ],
)
def test_as_many_anchors_count_as_the_sampling_says(sampling: AnchorSampling, positives: int, negatives: int) -> None:
    sampler = detector(sampling=sampling).fg_bg_sampler
    matches = torch.zeros(2000)
    matches[:100] = 1
    torch.manual_seed(0)
    (chosen,), (others,) = sampler([matches], torch.rand(2000))
    assert int(chosen.sum()) == positives and int(others.sum()) == negatives
    assert bool((matches[chosen > 0] == 1).all()) and bool((matches[others > 0] == 0).all())


def test_whole_volumes_give_boxes_inside_them():
    net = detector(score_threshold=0.0, max_boxes=7).eval()
    volume = torch.randn(1, 1, 64, 48, 24)
    with torch.no_grad():
        (found,) = net(volume, use_inferer=True)
    assert found["box"].shape == (7, 6) and len(found["label"]) == len(found["label_scores"]) == 7
    assert (found["box"][:, 3:] <= torch.tensor([64, 48, 24])).all() and (found["box"] >= 0).all()


@pytest.mark.parametrize(("size", "stride"), [(96, 16), (80, 16), (48, 16), (32, 16), (16, 16), (112, 16), (64, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_begin_on_whole_sites(size: int, stride: int, overlap: float):
    used = whole_overlap(size, stride, overlap)
    step = int(size * (1 - used))  # as MONAI computes it
    assert step % stride == 0 and 0 < step <= size
    assert step == stride or used >= overlap - 0.3 / size


@pytest.mark.parametrize("crop", [[40, 32, 16], [32, 32], [0, 32, 16]])
def test_a_crop_that_does_not_fit_the_strides_is_refused(crop: list[int]):
    with pytest.raises(UserError, match="--crop_size"):
        detector(crop_size=crop)


def test_the_sampling_decides_how_many_anchors_count_in_the_loss():
    torch.manual_seed(0)
    sampling = AnchorSampling(candidates=2, samples=10, positive_fraction=0.2, min_negatives=3, negative_pool=1)
    net = detector(sampling=sampling)
    matched = torch.full((500,), -1.0)
    matched[[3, 50, 200, 400]] = 1.0  # labels as the sampler takes them: 1 and more match a box, 0 and less do not
    scores = torch.rand(500)
    positive, negative = net.fg_bg_sampler([matched.clamp(min=0)], scores)
    assert positive[0].sum() == 2 and negative[0].sum() == 8
    hardest = set(scores.masked_fill(matched > 0, -1).topk(8).indices.tolist())
    assert set(torch.nonzero(negative[0]).flatten().tolist()) == hardest
    assert net.proposal_matcher.num_candidates == 2
