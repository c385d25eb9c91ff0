# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A wide field: what the first level is made of, where children are cut, and that each place is exact in mm."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from bundle.errors import UserError
from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, ChildLevel, MaskedBatch, MaskInMask, MaskSampler, UniformCells, WideField
from bundle.networks import Decoder, PretrainingNetwork, VolumeLevelPairs, build_encoder

CELL, SIZE, CHILD = (4, 4, 2), (16, 12, 8), (8, 8, 4)
FIELDS = [(2, 2, 2), (4, 3, 1), (1, 1, 1)]
SPACING = torch.tensor([0.7, 1.1, 3.3])


def masking(*further: ChildLevel, seed: int = 3, **options: Any) -> MaskInMask:
    child = ChildLevel(masking=sampler(0.5, seed), children=3, size=CHILD)
    return MaskInMask(masking=sampler(0.6, seed), levels=[child, *further], **options)


def sampler(ratio: float, seed: int = 3) -> MaskSampler:
    return MaskSampler(rule=UniformCells(ratio=ratio), cell=CELL, seed=seed)


def crop(field: tuple[int, int, int], draw: int = 5, **more: torch.Tensor) -> dict[str, Any]:
    """Three channels, each a voxel's place in mm on one axis, from a corner that is no whole number."""
    wide = [s * f for s, f in zip(SIZE, field)]
    axes = [17.3 + (torch.arange(n, dtype=torch.float64) + 0.5) * mm.item() for n, mm in zip(wide, SPACING)]
    image = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    valid = torch.ones(1, *wide, dtype=torch.bool)
    return {"image": image, "valid": valid, "foreground": valid, "spacing": SPACING, "draw": draw, "volume": 0, **more}


def blocks(x: torch.Tensor, field: tuple[int, int, int]):
    """Each voxel of the first level and its block of ``[C, D, H, W]``."""
    for place in itertools.product(*(range(n // f) for n, f in zip(x.shape[1:], field))):
        yield place, x[(slice(None), *(slice(p * f, (p + 1) * f) for p, f in zip(place, field)))]


@pytest.mark.parametrize("field", FIELDS)
def test_the_first_level_is_the_mean_of_valid_voxels_and_masks_go_by_majority(field):
    generator = torch.Generator().manual_seed(0)
    size = (8, 4, 4)
    item = {"valid": torch.ones(1, *(s * f for s, f in zip(size, field))), "spacing": SPACING, "draw": 0}
    item["image"] = torch.randn(2, *item["valid"].shape[1:], dtype=torch.float64, generator=generator)
    item["weight_map"] = torch.rand(item["valid"].shape, dtype=torch.float64, generator=generator)
    item["valid"] = torch.rand(item["valid"].shape, generator=generator) > 0.4
    item["foreground"] = torch.rand(item["valid"].shape, generator=generator) > 0.5
    seen = WideField(masking=MaskInMask(masking=sampler(0.5)), size=size)(item)
    assert seen["image"].shape[1:] == seen["valid"].shape[1:] == size
    inside = dict(blocks(item["valid"], field))
    for name in ("image", "weight_map"):
        for place, block in blocks(item[name], field):
            where = inside[place].expand_as(block)
            mean = [c[w].mean() if w.any() else c.mean() for c, w in zip(block, where)]
            torch.testing.assert_close(seen[name][(slice(None), *place)], torch.stack(mean), atol=1e-12, rtol=0)
    for name in ("valid", "foreground"):
        for place, block in blocks(item[name], field):
            assert seen[name][(0, *place)] == (block.sum() * 2 >= block.numel())
    assert torch.equal(seen["spacing"], SPACING.double() * torch.tensor(field))


@pytest.mark.parametrize("field", FIELDS)
def test_children_show_the_wide_crops_own_voxels_where_the_first_level_is_hidden(field):
    for draw in range(6):
        item = crop(field, draw)
        seen = WideField(masking=masking(), size=SIZE)(item)
        assert seen["children_image"].shape == (3, 3, *CHILD)
        child = 2  # no later one moved what it relies on
        corner = seen["children_corner"][child].double() * torch.tensor(field)
        assert torch.equal(corner, corner.round())
        window = tuple(slice(c, c + s) for c, s in zip(corner.long().tolist(), CHILD))
        assert torch.equal(seen["children_image"][child], item["image"][(slice(None), *window)])
        centre = (corner + torch.tensor(CHILD) / 2) / torch.tensor(field) / torch.tensor(CELL)
        assert seen["hidden"][(0, *centre.floor().long().tolist())], "the first level saw the child's centre"
        extent = seen["children_extent"][child].double() * torch.tensor(field)
        torch.testing.assert_close(extent, torch.tensor(CHILD).double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(seen["children_spacing"][child], SPACING.double(), atol=1e-12, rtol=0)
        assert not (seen["visible"] & seen["hidden"]).any() and (seen["visible"] | seen["hidden"]).all()


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("axes", [(), (1,), (1, 2, 3)])
def test_a_childs_place_in_its_parent_is_exact_to_a_millionth_of_a_mm(field, axes):
    item = crop(field)
    for name in ("image", "valid", "foreground"):  # as mirrors do it
        item[name] = item[name].flip(axes)
    seen = WideField(masking=masking(), size=SIZE)(item)
    image, spacing = seen["image"], seen["spacing"]
    start = image[:, 0, 0, 0]  # mm of the first voxel's centre
    sense = torch.tensor([-1.0 if axis + 1 in axes else 1.0 for axis in range(3)])
    first = start - sense * spacing / 2
    for child in range(3):
        origin = first + sense * seen["children_corner"][child] * spacing
        step = seen["children_spacing"][child]
        for axis, voxels in enumerate(CHILD):
            mm = origin[axis] + sense[axis] * (torch.arange(voxels, dtype=torch.float64) + 0.5) * step[axis]
            found = seen["children_image"][child, axis].movedim(axis, 0).flatten(1).mean(1)
            assert (found - mm).abs().max() < 1e-6


def batch(field=(2, 2, 2), rows: int = 2, dtype=torch.float64, **options: Any) -> tuple[dict[str, Any], MaskInMask]:
    nested = masking(**options)
    wide = WideField(masking=nested, size=SIZE)
    items = []
    for row in range(rows):
        item = crop(field, draw=40 + row)
        item["image"] = torch.randn(1, *item["valid"].shape[1:], generator=torch.Generator().manual_seed(row)).to(dtype)
        items.append(wide(item))
    return default_collate(items), nested


def test_crops_of_different_width_make_a_batch():
    wide = WideField(masking=masking(), size=SIZE)
    items = [wide(crop(field)) for field in FIELDS]
    assert {item["children_corner"].dtype for item in items} == {torch.float64}
    assert default_collate(items)["children_image"].shape == (3, 3, 3, *CHILD)


def test_a_batch_has_the_levels_and_no_draw_depends_on_it():
    together, nested = batch(rows=3)
    image, target, _, arguments = MaskedBatch(nested)(together, "cpu")
    (children,) = target["children"]
    assert image.shape == (3, 1, *SIZE) and children.image.shape == (9, 1, *CHILD)
    assert not any(key.startswith("children_") or key in ("visible", "hidden") for key in target)
    assert children.parent.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and children.clean is children.image
    assert torch.equal(arguments["hidden"], together["hidden"])
    alone, _ = batch(rows=1)
    _, other, _, _ = MaskedBatch(nested)(alone, "cpu")
    for name, value in vars(other["children"][0]).items():
        assert torch.equal(value, getattr(children, name)[:3]), name
    again = WideField(masking=masking(seed=4), size=SIZE)(crop((2, 2, 2)))
    assert not torch.equal(again["hidden"], WideField(masking=masking(), size=SIZE)(crop((2, 2, 2)))["hidden"])


def test_children_of_children_are_cut_from_the_full_resolution():
    small = MaskSampler(rule=UniformCells(ratio=0.5), cell=CELL, seed=3)
    nested = masking(ChildLevel(masking=small, children=2, size=CHILD, extent=(4, 4, 2)))
    items = [WideField(masking=nested, size=SIZE)(crop((2, 2, 2), draw)) for draw in (7, 8)]
    _, target, _, _ = MaskedBatch(nested)(default_collate(items), "cpu")
    first, second = target["children"]
    assert len(first.image) == 6 and len(second.image) == 12
    torch.testing.assert_close(second.spacing, (SPACING.double() / 2).expand(12, 3))
    for child, row in enumerate(second.parent.tolist()):
        if child % 2:  # the last of its parent
            cell = (second.corner[child] + second.extent[child] / 2) // torch.tensor(CELL)
            assert first.hidden[(row, 0, *cell.long().tolist())]


def test_what_is_degraded_is_restored_at_both_levels():
    item = crop((2, 2, 2))
    item["clean"], item["image"] = item["image"], item["image"] + 100
    nested = masking()
    _, target, _, _ = MaskedBatch(nested)(default_collate([WideField(masking=nested, size=SIZE)(item)]), "cpu")
    (children,) = target["children"]
    assert torch.equal(children.clean + 100, children.image)
    assert torch.equal(children.to(torch.float32).clean, children.clean.float())  # moved as well
    torch.testing.assert_close(target["clean"] + 100, target["image"], atol=1e-9, rtol=0)


def test_weights_follow_to_the_first_level():
    item = crop((2, 2, 2), foreground=torch.zeros(1, 32, 24, 16, dtype=torch.bool))
    item["foreground"][:, :, :, 8:] = True
    options = {"masking": MaskSampler(rule=UniformCells(ratio=0.5), cell=CELL, weight_floor=0), "levels": []}
    seen = WideField(masking=MaskInMask(**options, weight="foreground"), size=SIZE)(item)
    assert seen["hidden"][..., 2:].all() and not seen["hidden"][..., :2].any()
    assert MaskedBatch(MaskInMask(**options))(default_collate([seen]), "cpu")[1]["children"] == []
    with pytest.raises(UserError, match="weight_maps"):
        WideField(masking=MaskInMask(**options, weight="weight_map"), size=SIZE)(item)


def test_a_crop_of_another_width_is_refused():
    with pytest.raises(UserError, match="RandWideCropd"):
        WideField(masking=masking(), size=(16, 12, 10))(crop((2, 2, 2)))


def network(teacher: bool = True) -> PretrainingNetwork:
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm=("instance", {"affine": True}))
    heads = VolumeLevelPairs(levels=encoder.levels, dim=4, samples=64) if teacher else None
    decoder = Decoder(levels=encoder.levels, width=4, stride=2)
    return PretrainingNetwork(
        encoder=encoder, decoder=decoder, alignment=heads, teacher_momentum=0.9 if teacher else None
    )


def cubes(rows: int = 2, dtype=torch.float64) -> tuple[dict[str, Any], MaskInMask]:
    """With cells of 4 voxels on each axis, as the network has them."""
    mask = MaskSampler(rule=AdaptiveBlocks(ratio=0.5), cell=(4, 4, 4))
    nested = MaskInMask(masking=mask, levels=[ChildLevel(masking=mask, children=2, size=(8, 8, 8))])
    wide, items = WideField(masking=nested, size=(16, 16, 16)), []
    for row in range(rows):
        image = torch.randn(1, 48, 32, 16, generator=torch.Generator().manual_seed(row)).to(dtype)
        everywhere = torch.ones(1, 48, 32, 16, dtype=torch.bool)
        items.append(
            wide({"image": image, "valid": everywhere, "foreground": everywhere, "spacing": SPACING, "draw": row})
        )
    return default_collate(items), nested


def test_the_alignment_ties_the_same_place_in_mm():
    items, nested = cubes(3, torch.float32)
    image, target, _, arguments = MaskedBatch(nested)(items, "cpu")
    net = network()
    views = []
    net.alignment.register_forward_pre_hook(lambda _, inputs: views.extend(inputs[0]))
    (pair,) = net(image, **arguments)["made"]["alignment"]
    crops, children = views
    (level,) = target["children"]
    for child, row in enumerate(level.parent.tolist()):
        for axis, field in enumerate((3, 2, 1)):
            voxels = round(level.corner[child, axis].item() * field)
            mm = voxels * SPACING[axis].item()  # by the voxels of the prepared volume
            assert abs(children.origin[child, axis].item() - mm) < 1e-6
            assert abs(crops.spacing[row, axis].item() - field * SPACING[axis].item()) < 1e-6
            assert abs(children.spacing[child, axis].item() - SPACING[axis].item()) < 1e-6
    # each pair's place is the middle of a site of 4 voxels of one of its crop's children, to the micrometre
    steps = (pair.position[:, None] - children.origin[None]) / (4 * SPACING.double()) - 0.5
    whole = ((steps - steps.round()).abs().amax(2) < 1e-6) & (children.volume == pair.volume[:, None])
    assert whole.any(1).all() and pair.key.dtype == pair.query.dtype == torch.float32


def test_the_gradient_is_that_of_finite_differences_and_both_levels_give_to_it():
    items, nested = cubes()
    image, target, _, arguments = MaskedBatch(nested)(items, "cpu")
    net = network(teacher=False).double()
    parts = {
        "reconstruction": ReconstructionLoss(target="per_volume", visible_weight=0.0),
        "alignment": AlignmentLoss(),
    }
    weight = net.encoder.network.conv_init.weight

    def gradient(*levels: float) -> torch.Tensor:
        loss = PretrainingLoss(**parts, level_weights=levels)
        return torch.autograd.grad(loss(net(image, **arguments), target), weight)[0]

    both, mostly_first = gradient(1, 1), gradient(1, 0)
    torch.testing.assert_close(gradient(1, 3) - mostly_first, 3 * (both - mostly_first))
    assert (both - mostly_first).abs().max() > 1e-4 < mostly_first.abs().max()
    loss, step = PretrainingLoss(**parts, level_weights=[1.0, 1.0]), 1e-6 * torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step)
        values.append(loss(net(image, **arguments), target).item())
        with torch.no_grad():
            weight.sub_(sign * step)
    assert abs((values[0] - values[1]) / 2 - (both * step).sum().item()) < 1e-4 * abs((both * step).sum().item())
