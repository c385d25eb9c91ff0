# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import socket
from pathlib import Path
from statistics import fmean

import pytest
import torch
import torch.distributed as dist

from bundle.cells import from_cells, to_cells
from bundle.errors import UserError
from bundle.losses import ReconstructionLoss
from bundle.runs import stop_distributed
from tests.commands import run_processes

CELL = (4, 2, 4)


def loss_of(**options) -> ReconstructionLoss:
    """Of the hidden voxels alone, and on a normalised target, unless told otherwise."""
    return ReconstructionLoss(**{"target": "per_volume", "visible_weight": 0.0, **options})


@pytest.fixture
def example() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    image = torch.randn(2, 1, 8, 4, 8, dtype=torch.float64) * 3 + 1
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[1, :, :, :, 6:] = False
    hidden = torch.rand(2, 1, 2, 2, 2) > 0.4
    prediction = torch.randn_like(image)
    return dict(reconstruction=prediction, image=image, valid=valid, hidden=hidden, foreground=image > 0)


def errors(e: dict[str, torch.Tensor], target: str, distance, floor: float = 0.05) -> list[list[float]]:
    """Each crop's errors on hidden, valid voxels: the definition, voxel by voxel."""
    crops = []
    for b in range(2):
        found = []
        volume = e["image"][b, 0][e["valid"][b, 0]]
        for z, y, x in e["hidden"][b, 0].nonzero().tolist():
            at = (slice(4 * z, 4 * z + 4), slice(2 * y, 2 * y + 2), slice(4 * x, 4 * x + 4))
            valid = e["valid"][b, 0][at]
            voxels, guess = e["image"][b, 0][at][valid], e["reconstruction"][b, 0][at][valid]
            source = {"per_patch": voxels, "per_volume": volume, "none": None}[target]
            if source is not None and len(voxels):
                voxels = (voxels - source.mean()) / max(source.std(unbiased=False).item(), floor)
            found += distance(guess - voxels).tolist()
        crops.append(found)
    return crops


def over_voxels(e: dict[str, torch.Tensor], target: str, distance) -> float:
    return fmean(error for crop in errors(e, target, distance) for error in crop)


def over_crops(e: dict[str, torch.Tensor], target: str, distance) -> float:
    return fmean(fmean(crop) for crop in errors(e, target, distance))


@pytest.mark.parametrize("target", ["none", "per_patch", "per_volume"])
@pytest.mark.parametrize(
    ("name", "distance"),
    [
        ("l1", torch.abs),
        ("l2", torch.square),
        ("huber", lambda d: torch.where(d.abs() < 1, d.square() / 2, d.abs() - 0.5)),
    ],
)
def test_it_is_the_mean_over_hidden_valid_voxels(example, target, name, distance):
    loss, _ = loss_of(target=target, distance=name)(**example)
    assert loss.item() == pytest.approx(over_voxels(example, target, distance), rel=1e-12)


@pytest.mark.parametrize("target", ["none", "per_patch", "per_volume"])
def test_what_is_logged_and_the_loss_of_a_validation_are_means_over_crops(example, target):
    mean = over_crops(example, target, torch.square)
    assert mean != pytest.approx(over_voxels(example, target, torch.square), rel=1e-3)
    _, terms = loss_of(target=target)(**example)
    assert terms["reconstruction"].item() == pytest.approx(mean, rel=1e-12)
    with torch.no_grad():
        assert loss_of(target=target)(**example)[0].item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("target", ["none", "per_patch", "per_volume"])
def test_visible_voxels_count_as_much_as_they_are_asked_to(example, target):
    loss, terms = loss_of(target=target, visible_weight=0.3)(**example)
    seen = example | {"hidden": ~example["hidden"]}
    visible = over_voxels(seen, target, torch.square)
    assert loss.item() == pytest.approx(over_voxels(example, target, torch.square) + 0.3 * visible, rel=1e-12)
    assert terms["reconstruction_visible"].item() == pytest.approx(over_crops(seen, target, torch.square), rel=1e-12)
    assert terms["reconstruction"].item() == pytest.approx(over_crops(example, target, torch.square), rel=1e-12)


def test_a_prediction_with_other_channels_than_the_image_is_refused(example):
    example["reconstruction"] = example["reconstruction"].repeat(1, 2, 1, 1, 1)
    with pytest.raises(UserError, match="predicts 2 channels of an image with 1: set decoder#channels"):
        loss_of()(**example)


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match="visible_weight -1 is negative"):
        loss_of(visible_weight=-1)


@pytest.mark.parametrize("target", ["per_patch", "per_volume"])
def test_the_zero_predictor_of_a_normalised_target_loses_about_one(example, target):
    zero = example | {"reconstruction": torch.zeros_like(example["image"])}
    with torch.no_grad():
        loss, terms = loss_of(target=target)(**zero)
    assert 0.8 < loss.item() <= 1.2 and terms["zero_predictor"] == loss


def test_a_constant_patch_does_not_blow_up(example):
    image = torch.full_like(example["image"], 5.0) + 1e-4 * torch.randn_like(example["image"])
    _, terms = loss_of(target="per_patch", floor=0.05)(**example | {"image": image})
    assert terms["zero_predictor"] < 1e-4


def test_visible_and_padded_voxels_do_not_count(example):
    loss = loss_of(target="none")
    before, _ = loss(**example)
    elsewhere = ~(
        example["valid"] & example["hidden"].repeat_interleave(4, 2).repeat_interleave(2, 3).repeat_interleave(4, 4)
    )
    after, _ = loss(**example | {"reconstruction": torch.where(elsewhere, torch.nan, example["reconstruction"])})
    assert torch.equal(before, after)


@pytest.mark.parametrize("distance", ["l1", "l2", "huber"])
@pytest.mark.parametrize("target", ["none", "per_patch", "per_volume"])
def test_nan_outside_the_scan_reaches_no_gradient(example, target, distance):
    def gradient(outside: float) -> torch.Tensor:
        image = torch.where(example["valid"], example["image"], outside)
        prediction = example["reconstruction"].clone().requires_grad_()
        changed = example | {"image": image, "reconstruction": prediction}
        loss_of(target=target, distance=distance)(**changed)[0].backward()
        assert prediction.grad is not None
        return prediction.grad

    assert torch.equal(gradient(torch.nan), gradient(0.0))
    assert gradient(torch.nan).isfinite().all()


def test_the_mean_predictor_knows_the_visible_mean_only(example):
    _, terms = loss_of(target="none")(**example)
    errors = []
    for b in range(2):
        hidden = example["hidden"][b, 0].repeat_interleave(4, 0).repeat_interleave(2, 1).repeat_interleave(4, 2)
        valid, image = example["valid"][b, 0], example["image"][b, 0]
        errors.append((image[hidden & valid] - image[~hidden & valid].mean()).square().mean().item())
    assert terms["mean_predictor"].item() == pytest.approx(sum(errors) / 2)


def rows(example: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {key: value[row : row + 1] for key, value in example.items()}


def _rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    part = torch.load(Path(folder) / "parts.pt", weights_only=True)[rank]
    part["reconstruction"].requires_grad_()
    loss, _ = loss_of(visible_weight=0.3)(**part)
    loss.backward()
    found = {"loss": loss.item(), "gradient": part["reconstruction"].grad}
    if rank == 0:  # the other process has no such batch to validate
        with torch.no_grad():
            loss_of()(**part)
    torch.save(found, Path(folder) / f"{rank}.pt")
    stop_distributed()


def test_two_processes_share_the_loss_of_the_whole_batch(example, tmp_path: Path):
    example["hidden"][0] = False  # a process may have no hidden voxel at all
    torch.save([rows(example, 0), rows(example, 1)], tmp_path / "parts.pt")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run_processes(_rank, port, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    example["reconstruction"].requires_grad_()
    loss, _ = loss_of(visible_weight=0.3)(**example)
    loss.backward()
    assert fmean(part["loss"] for part in found) == pytest.approx(loss.item(), rel=1e-12)
    # DDP averages over processes
    gradient = torch.cat([part["gradient"] for part in found]) / 2
    torch.testing.assert_close(gradient, example["reconstruction"].grad, rtol=1e-12, atol=0)


@torch.no_grad()
def test_a_validation_loses_as_much_in_a_batch_as_crop_by_crop(example):
    loss, terms = loss_of()(**example)
    alone = [loss_of()(**rows(example, row)) for row in range(2)]
    assert loss.item() == pytest.approx((alone[0][0].item() + alone[1][0].item()) / 2, rel=1e-12)
    for name, term in terms.items():
        assert term.item() == pytest.approx((alone[0][1][name].item() + alone[1][1][name].item()) / 2), name


def test_a_crop_without_air_has_no_part_in_the_error_of_air(example):
    example["foreground"][1] = True
    _, terms = loss_of()(**example)
    _, first = loss_of()(**rows(example, 0))
    assert terms["reconstruction_air"].item() == pytest.approx(first["reconstruction_air"].item())


@pytest.mark.parametrize("row", [0, 1])
def test_foreground_and_air_are_reported_apart(example, row):
    example = rows(example, row)
    loss, terms = loss_of()(**example)
    inside = example["valid"] & example["hidden"].repeat_interleave(4, 2).repeat_interleave(2, 3).repeat_interleave(
        4, 4
    )
    share = (inside & example["foreground"]).sum() / inside.sum()
    mixed = share * terms["reconstruction_foreground"] + (1 - share) * terms["reconstruction_air"]
    assert mixed.item() == pytest.approx(loss.item())


@pytest.mark.parametrize("target", ["none", "per_patch", "per_volume"])
def test_restoring_a_perfect_reconstruction_gives_the_image(example, target):
    loss = loss_of(target=target)
    mean, sd = loss._statistics(to_cells(example["image"], CELL), to_cells(example["valid"], CELL))
    perfect = from_cells((to_cells(example["image"], CELL) - mean) / sd, (8, 4, 8), CELL)
    restored = loss.restore(perfect, example["image"], example["valid"], CELL)
    torch.testing.assert_close(restored, example["image"])


def test_cells_come_in_raster_order_and_go_back():
    x = torch.arange(2 * 8 * 4 * 8.0).view(1, 2, 8, 4, 8)
    cells = to_cells(x, CELL)
    assert cells.shape == (1, 8, 2, 32) and torch.equal(cells[0, 1, 1].view(4, 2, 4), x[0, 1, :4, :2, 4:])
    assert torch.equal(from_cells(cells, (8, 4, 8), CELL), x)


@pytest.mark.parametrize("option", ["target", "distance"])
def test_an_unknown_choice_lists_the_known_ones(option):
    with pytest.raises(UserError, match="choose one of"):
        loss_of(**{option: "best"})
