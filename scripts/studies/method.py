# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the parts of the method do: the bundle's own training with one thing changed at a time, several seeds.

    python scripts/studies/method.py                                      every arm, three seeds
    python scripts/studies/method.py --arms base dense --seeds 0 1 --steps 100

Every arm runs configs/train.yaml on the volumes that scripts/fetch_data.py fetches, for the same number of steps, with
two volumes held out (a chest CT and a brain MR). Measured on those, in the same way for all arms:

- reconstruction: squared error on hidden voxels in raw intensities over that of the constant 0, under the same crops
  and masks (adaptive, 60 %) for all; the arm's own masks and targets are only for training;
- probe: a linear map from the frozen encoder's features to labels, fitted on one half of a held-out volume and tried
  on the other across a gap: CSF, grey and white matter (brain), six groups of organs (chest). Mean Dice;
- fitted, fine-tuned: a map fitted as a classifier, then encoder and map trained together for some steps
  (--tune-steps 0 leaves both out);
- the health figures of scripts/studies/method.md.

Finished runs are kept in the output file: a second call does what is missing. Writes a table, JSON and a plot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from torch import Tensor, nn
from tqdm import tqdm

from bundle.atomic import replace_file
from bundle.data import CropDataset, read_volume
from bundle.masking import AdaptiveBlocks, MaskSampler
from bundle.networks import PretrainingNetwork
from bundle.probing import fit_ridge, minimize

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "scripts/benchmarks"))  # the SparK-style arm trains spark_baseline
HELD_OUT = ("ct_chest_lidc", "mr_brain_mni152")

CHILD = {
    "_target_": "bundle.masking.ChildLevel",
    "children": 2,
    "size": [32, 32, 32],
    "masking": {
        "_target_": "bundle.masking.MaskSampler",
        "rule": {"_target_": "bundle.masking.AdaptiveBlocks", "ratio": 0.6},
        "cell": "$@encoder.total_stride",
        "seed": "@seed",
    },
}
#: children of children: half the extent, seen twice as large
GRANDCHILD = {**CHILD, "extent": [16, 16, 16]}
RULE = {"ratio": "@mask_ratio"}
DEPTH_TEACHER = {
    "alignment_heads#head": "mlp",
    "alignment_heads#predictor": True,
    "network_def#teacher_momentum": 0.99,
    "loss#alignment#exclusion_mm": 20,
}
LEVEL_TEACHER = {
    "alignment_heads": {"_target_": "bundle.networks.VolumeLevelPairs", "levels": "$@encoder.levels"},
    "network_def#teacher_momentum": 0.99,
    "loss#alignment#exclusion_mm": 20,
    "mask_in_mask#levels": [CHILD],
}
#: the arm that has the decoder and the loss of configs/train.yaml; all others have objective_reconstruction.yaml's
FULL = "full decoder, histogram"
#: what each arm changes against `base`: sparse, adaptive masks, one level, no alignment, per_volume target, stride 4
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "untrained": {},
    "dense": {"sparse": False},
    "uniform masks": {"masking#rule": {"_target_": "bundle.masking.UniformCells", **RULE}},
    "physical masks": {"masking#rule": {"_target_": "bundle.masking.PhysicalBlocks", "block_mm": 96, **RULE}},
    "ratio 0.6-0.9": {"mask_ratio": [0.6, 0.9]},
    "foreground weight": {"mask_weight": "foreground"},
    "2 levels": {"mask_in_mask#levels": [CHILD]},
    "3 levels": {"mask_in_mask#levels": [CHILD, GRANDCHILD]},
    "depth alignment": {"network_def#alignment": "@alignment_heads"},
    "depth, teacher": {"network_def#alignment": "@alignment_heads", **DEPTH_TEACHER},
    "level, teacher": {"network_def#alignment": "@alignment_heads", **LEVEL_TEACHER},
    "target none": {"loss#reconstruction#target": "none"},
    "target per_patch": {"loss#reconstruction#target": "per_patch"},
    "decoder stride 2": {"decoder#stride": 2},
    "decoder stride 8": {"decoder#stride": 8},
    FULL: {"objectives": {}, "loss#level_weights": [1, 1, 1]},
    "SparK-style": {
        "encoder#norm": "batch",
        "network_def": {"_target_": "spark_baseline.SparKPretraining", "encoder": "@encoder", "autocast": None},
        "validate#handlers#2#_disabled_": True,  # the health figures are of SparseVolume's features
    },
}
COMMON = {
    "crop_size": [48, 48, 48],
    "spacing": [3, 3, 3],
    "num_workers": 0,
    "lr": 1.0e-3,
    "encoder#init_filters": 16,
    "encoder#blocks_down": [1, 1, 1, 2, 2],
    "decoder#width": 32,
    "alignment_warmup": 0,
    "warmup_epochs": 0.1,
    "epochs": 1,
    "val_interval": 1,
    "device": "auto",
}
NO_ALIGNMENT = {"network_def#alignment": None}
#: TotalSegmentator's numbers of the chest CT's labels, in groups
ORGANS = {"lung": range(10, 15), "heart and vessels": range(51, 69), "liver": [5], "vertebrae": range(25, 51),
          "ribs": range(92, 116), "muscle": range(80, 90)}  # fmt: skip


def data_list(folder: Path) -> Path:
    """An MSD-style list that holds out `HELD_OUT`."""
    files = sorted((ROOT / "data/volumes").iterdir())
    parts: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for file in files:
        part = "validation" if file.name.split(".")[0] in HELD_OUT else "training"
        parts[part].append({"image": str(file)})
    path = folder / "volumes.json"
    path.write_text(json.dumps(parts))
    return path


def train(arm: str, seed: int, steps: int, folder: Path) -> tuple[ConfigWorkflow, dict[str, float]]:
    """Runs the bundle's training; the workflow, and what it measured itself."""
    settings = {**COMMON, **(NO_ALIGNMENT if "network_def" not in ARMS[arm] else {}), **ARMS[arm]}
    files = ["train.yaml"] if arm == FULL else ["train.yaml", "objective_reconstruction.yaml"]
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in files],
        meta_file=str(ROOT / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(folder),
        output_dir=str(folder / "run"),
        dataset_dir=str(data_list(folder)),
        cache_dir=str(ROOT / ".cache/study"),
        seed=seed,
        steps_per_epoch=steps,
        **settings,
    )
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    if arm == "untrained":
        return workflow, {}
    trainer.run()
    rate = trainer.state.metrics["train/volumes_per_second"]
    figures = {"step seconds": workflow.parser.get_parsed_content("batch_size") / rate}
    metrics = workflow.parser.get_parsed_content("validate#evaluator").state.metrics
    return workflow, figures | {k.split("/")[1]: v for k, v in metrics.items() if "health" in k or "alignment" in k}


@torch.no_grad()
def held_out_reconstruction(workflow: ConfigWorkflow, crops: int = 8) -> dict[str, float]:
    """Raw squared error over that of the constant 0 on hidden voxels, under masks that are the same for all arms."""
    parser = workflow.parser
    network: PretrainingNetwork = parser.get_parsed_content("network_def").eval()
    loss, device = parser.get_parsed_content("loss"), parser.get_parsed_content("run_device")
    transform = parser.get_parsed_content("validate#preprocessing")
    volumes = parser.get_parsed_content("volumes").validation
    cell = network.encoder.total_stride
    masking = MaskSampler(rule=AdaptiveBlocks(), cell=cell, seed=1234)
    dataset = CropDataset(data=volumes, transform=transform, seed=1234, shuffle=False)
    ratios: dict[str, list[float]] = {}
    for draw in range(crops * len(volumes)):
        crop = dataset[draw]
        batch = {k: v[None].to(device) for k, v in crop.items() if isinstance(v, Tensor)}
        mask = masking(batch["valid"].cpu(), torch.tensor([draw]))
        visible, hidden = mask.visible.to(device), mask.hidden.to(device)
        out = network(batch["image"], visible=visible, hidden=hidden, spacing=batch["spacing"])
        restored = loss.restore(out, batch)
        where = batch["valid"] & hidden.repeat_interleave(cell[0], 2).repeat_interleave(cell[1], 3).repeat_interleave(
            cell[2], 4
        )
        error = (restored - batch["image"])[where].square().mean() / batch["image"][where].square().mean()
        ratios.setdefault(volumes[crop["volume"]].modality, []).append(error.item())
    return {f"reconstruction {modality}": statistics.mean(values) for modality, values in ratios.items()}


def read_labels(name: str, workflow: ConfigWorkflow) -> Tensor:
    """int64 ``[D, H, W]`` on the prepared volume's grid; 0 is unlabelled."""
    steps = workflow.parser.get_parsed_content("prepare").transforms
    file = next((ROOT / "data/volumes").glob(f"{name}.*"))
    item: dict[str, Any] = {"image": [str(file)], "name": name, "modality": ""}
    for step in steps[:3]:  # read, orient, resample
        item = step(item)
    image = item["image"]

    def on_grid(file: str, mode: str) -> Tensor:
        volume = read_volume([str(ROOT / "data/labels" / file)], file)
        return ResampleToMatch(mode=mode, padding_mode="zeros")(volume, image)[0].as_tensor()

    if name.startswith("mr_brain"):
        grey, white = (on_grid(f"{name}_{tissue}.nii.gz", "bilinear") / 255 for tissue in ("grey", "white"))
        tissue = torch.stack([(1 - grey - white).clamp(min=0), grey, white]).argmax(0) + 1
        labels = torch.where(image[0].as_tensor() > 0, tissue, 0)
    else:
        numbers = on_grid(f"{name}.nii.gz", "nearest").round().long()
        labels = torch.zeros_like(numbers)
        for group, members in enumerate(ORGANS.values(), 1):
            labels[torch.isin(numbers, torch.tensor(list(members)))] = group
    item["weight_map"] = MetaTensor(labels[None].float(), affine=image.affine)  # cropped and padded like the image
    for step in steps[3:]:
        item = step(item)
    return item["weight_map"][0].round().long()


def features_at(network: PretrainingNetwork, image: Tensor, places: Tensor) -> Tensor:
    """``[M, C]``: every level's features of a whole volume, interpolated at voxels ``[M, 3]``, and the intensity."""
    stride, size = network.encoder.total_stride, image.shape[1:]
    padded = F.pad(image[None], [p for s, n in zip(stride[::-1], size[::-1]) for p in (0, -n % s)])
    whole = torch.tensor(padded.shape[2:])
    grid = ((2 * places + 1) / whole - 1).flip(1).view(1, -1, 1, 1, 3).float()
    levels = [padded, *network.encoder(padded)]
    return torch.cat([F.grid_sample(x, grid, align_corners=False)[0, :, :, 0, 0] for x in levels]).T


def drawn(where: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to `count` of the voxels that are True, ``[M, 3]``."""
    places = where.nonzero()
    return places[torch.randperm(len(places), generator=generator)[:count]]


def halves(labels: Tensor, gap: int = 4) -> tuple[Tensor, Tensor]:
    """Bool masks of the labelled voxels of two halves, left and right, with a gap between them."""
    labelled = labels > 0
    middle = int(labelled.any(2).any(1).nonzero().float().mean().round())
    first, second = labelled.clone(), labelled.clone()
    first[middle - gap :] = False
    second[: middle + gap] = False
    return first, second


def dice(predicted: Tensor, truth: Tensor, classes: int) -> float:
    """Mean Dice over the classes that the truth has."""
    scores = []
    for label in range(1, classes + 1):
        a, b = predicted == label, truth == label
        if b.any():
            scores.append((2 * (a & b).sum() / (a.sum() + b.sum())).item())
    return statistics.mean(scores)


@torch.no_grad()
def probe(network: PretrainingNetwork, image: Tensor, labels: Tensor, seed: int) -> float:
    """Ridge regression from frozen features to one-hot labels: fitted on one half, mean Dice on the other."""
    network.eval()
    generator, classes = torch.Generator().manual_seed(seed), int(labels.max())
    fit, test = (drawn(half, 8000, generator) for half in halves(labels))
    x, z = features_at(network, image, torch.cat([fit, test])).double().split([len(fit), len(test)])
    predict = fit_ridge(x, F.one_hot(labels[tuple(fit.T)] - 1, classes).double())
    return dice(predict(z).argmax(1) + 1, labels[tuple(test.T)], classes)


def fit_map(x: Tensor, y: Tensor, classes: int) -> nn.Sequential:
    """A linear map of standardized features ``[N, C]``, fitted to labels ``[N]`` by L-BFGS: see `fit_heads`."""
    norm, linear = nn.BatchNorm1d(x.shape[1], affine=False, momentum=1.0), nn.Linear(x.shape[1], classes)
    x = norm(x)  # which keeps the mean and deviation of its last call
    nn.init.zeros_(linear.weight)

    def objective() -> Tensor:
        return F.cross_entropy(linear(x), y) + 1e-3 * linear.weight.square().sum()

    minimize(objective, linear.parameters())
    return nn.Sequential(norm, linear)


def fine_tune(network: PretrainingNetwork, image: Tensor, labels: Tensor, seed: int, steps: int) -> tuple[float, float]:
    """Encoder and a fitted linear map trained together on voxels of one half; mean Dice on the other, before and after.

    Each step sees the whole volume, as the test does: a network with InstanceNorm gives other features to a crop.
    """
    generator = torch.Generator().manual_seed(seed)
    (fit, held_out), classes = halves(labels), int(labels.max())
    network.eval()

    def features_and_labels(half: Tensor) -> tuple[Tensor, Tensor]:
        places = drawn(half, 8000, generator)
        return features_at(network, image, places), labels[tuple(places.T)]

    @torch.no_grad()
    def score() -> float:
        network.eval()
        head.train()
        head(features_and_labels(fit)[0])  # this encoder's mean and deviation
        head.eval()
        features, truth = features_and_labels(held_out)
        return dice(head(features).argmax(1) + 1, truth, classes)

    with torch.no_grad():
        features, truth = features_and_labels(fit)
    head = fit_map(features, truth - 1, classes)
    before = score()
    network.train()
    head.train()
    optimizer = torch.optim.AdamW([*network.encoder.parameters(), *head.parameters()], lr=3e-4, weight_decay=0.01)
    for _ in range(steps):
        features, truth = features_and_labels(fit)
        optimizer.zero_grad()
        F.cross_entropy(head(features), truth - 1).backward()
        optimizer.step()
    return before, score()


def one_run(arm: str, seed: int, steps: int, tune_steps: int) -> dict[str, float]:
    """Trains and measures one arm with one seed."""
    with tempfile.TemporaryDirectory() as folder:
        workflow, figures = train(arm, seed, steps, Path(folder))
        network = workflow.parser.get_parsed_content("network_def")
        figures |= held_out_reconstruction(workflow)
        if arm == "SparK-style":  # its encoder has other layers; what counts is the reconstruction
            workflow.finalize()
            return figures
        for volume in workflow.parser.get_parsed_content("volumes").validation:
            name = Path(volume.name).name.split(".")[0]
            prepared = volume.load()
            labels = read_labels(name, workflow)
            figures[f"probe {volume.modality}"] = probe(network, prepared["image"], labels, seed)
            if tune_steps:
                state = {k: v.clone() for k, v in network.state_dict().items()}
                before, after = fine_tune(network, prepared["image"], labels, seed, tune_steps)
                figures |= {f"fitted {volume.modality}": before, f"fine-tuned {volume.modality}": after}
                network.load_state_dict(state)
        workflow.finalize()
    return figures


LEARNED = ("reconstruction CT", "reconstruction MR", "probe CT", "probe MR", "fitted CT", "fitted MR",
           "fine-tuned CT", "fine-tuned MR")  # fmt: skip
HEALTH = ("health_top1", "health_top1_position", "health_top1_untrained", "health_effective_rank", "step seconds")


def measured(results: dict[str, dict[str, dict[str, float]]], names: tuple[str, ...]) -> list[str]:
    """Those of the names that any run has."""
    return [n for n in names if any(n in figures for seeds in results.values() for figures in seeds.values())]


def table(results: dict[str, dict[str, dict[str, float]]], names: tuple[str, ...]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    shown = measured(results, names)
    lines = ["| arm | " + " | ".join(n.removeprefix("health_") for n in shown) + " |", "|" + "---|" * (len(shown) + 1)]
    for arm, seeds in results.items():
        cells = []
        for name in shown:
            values = [figures[name] for figures in seeds.values() if name in figures]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
        lines.append(f"| {arm} ({len(seeds)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A dot per seed for each arm and figure."""
    names = measured(results, LEARNED)
    figure = Figure(figsize=(2 + 2 * len(names), 0.32 * len(results) + 1.6), layout="constrained", dpi=100)
    axes = figure.subplots(1, len(names), sharey=True)
    for ax, name in zip(axes, names):
        for row, seeds in enumerate(results.values()):
            values = [figures[name] for figures in seeds.values() if name in figures]
            ax.plot(values, [row] * len(values), "o", alpha=0.7)
        base = [f[name] for f in results.get("base", {}).values() if name in f]
        if base:
            ax.axvline(statistics.mean(base), color="grey", linestyle=":")
        ax.set(title=name, yticks=range(len(results)), yticklabels=list(results))
        ax.invert_yaxis() if ax is axes[0] else None
    figure.savefig(path)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="The bundle's training with one thing changed at a time.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of pre-training")
    parser.add_argument("--tune-steps", type=int, default=10, help="steps of fine-tuning; 0 leaves it out")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/figures/method_study", help="without extension")
    options = parser.parse_args()
    if missing := [name for name in HELD_OUT if not list((ROOT / "data/volumes").glob(f"{name}.*"))]:
        sys.exit(f"error: {missing[0]} is not in data/volumes: run python scripts/fetch_data.py --all")

    file = options.output.with_suffix(".json")
    content = json.loads(file.read_text()) if file.exists() else {}
    setting = {"steps": options.steps, "tune_steps": options.tune_steps}
    if content and {k: content[k] for k in setting} != setting:
        sys.exit(f"error: {file} holds runs of other lengths: choose another --output")
    results = content.get("results", {})
    todo = [(arm, seed) for seed in options.seeds for arm in options.arms if str(seed) not in results.get(arm, {})]
    for arm, seed in tqdm(todo, desc="runs"):
        results.setdefault(arm, {})[str(seed)] = one_run(arm, seed, options.steps, options.tune_steps)
        with replace_file(file) as temporary:
            temporary.write_text(json.dumps({**setting, "results": results}, indent=1))
    print(table(results, LEARNED), table(results, HEALTH), sep="\n\n")
    plot(results, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
