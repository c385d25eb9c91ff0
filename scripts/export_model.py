# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Exports a pre-trained encoder to other file formats, each verified against the network it comes from.

    python scripts/export_model.py models/model.pt
    python scripts/export_model.py models/model.pt --formats onnx safetensors --output_dir exports --input volume.nii.gz

Each file is read back and must give the network's features on noise of two sizes and, with --input, on crops of a real
volume, prepared as in pre-training. A file that does not is not kept. What the formats are for: docs/how-to/export.md.
The format nnunet is for encoders of nnU-Net's: docs/how-to/nnunet.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from monai.transforms import CenterSpatialCrop, Compose, CropForegroundd, Orientationd
from torch import Tensor
from tqdm import tqdm

from bundle.atomic import replace_file
from bundle.data import (
    Foregroundd,
    FoundVolume,
    Modalityd,
    OptionalSpacingd,
    PadToCropd,
    ReadVolumed,
    ToPlainTensorsd,
    find_volumes,
    normalization,
)
from bundle.errors import UserError, install_excepthook, user_error_in
from bundle.export import (
    FORMATS,
    PlainModel,
    copy_trainer,
    export_model,
    fit_plans,
    plain_model,
    plan_axes,
    verify_file,
    verify_nnunet,
    without_private,
    write_nnunet,
)
from bundle.runs.writable import make_folder
from bundle.weights import ModelFiles


def real_images(model: PlainModel, volume: Path) -> list[Tensor]:
    """Two crops ``[1, 1, D, H, W]`` of a volume, prepared as in pre-training: of the crop's size, and of about half.

    Args:
        model: with the settings of its pre-training.
        volume: a NIfTI or NRRD file, or the folder of a DICOM series.

    Raises:
        UserError: if the volume cannot be used.
    """
    if (channels := model.network.in_channels) != 1:
        raise UserError(f"--input is one image, and the model takes {channels} channels: leave it out")
    cell = model.network.strides[-1]
    crop = model.settings.get("crop_size") or [4 * step for step in cell]
    half = [max(2, size // step // 2) * step for size, step in zip(crop, cell)]
    image = _prepared(model.settings, _found(volume), crop, cell)
    return [CenterSpatialCrop(size)(image)[None] for size in dict.fromkeys([tuple(crop), tuple(half)])]


def _found(volume: Path) -> FoundVolume:
    if not volume.exists():
        raise UserError(f"--input {volume} does not exist: give a NIfTI or NRRD file, or the folder of a DICOM series")
    if volume.is_dir():
        volumes = find_volumes(volume)
        if len(volumes) > 1:
            raise UserError(f"--input {volume} holds {len(volumes)} volumes: give one, such as {volumes[0].name} in it")
        return volumes[0]
    return FoundVolume(name=volume.name, files=(str(volume),))


def _prepared(settings: Mapping[str, Any], found: FoundVolume, crop: Sequence[int], cell: Sequence[int]) -> Tensor:
    """What configs/train.yaml's `prepare` makes of a volume, ``[1, D, H, W]``."""
    window, percentiles = settings.get("ct_window", (-1000, 1000)), settings.get("mr_percentiles", (0.5, 99.5))
    prepare = Compose(
        [
            ReadVolumed("image"),
            Orientationd("image", axcodes=settings.get("orientation", "RAS"), labels=None),
            OptionalSpacingd("image", pixdim=settings.get("spacing")),
            Modalityd("image", modality=settings.get("modality", "auto")),
            Foregroundd("image"),
            normalization(
                "image",
                scheme=settings.get("intensity_scheme"),
                ct_window=window,
                mr_percentiles=percentiles,
                mr_floor=settings.get("mr_floor", 3.0),
            ),
            CropForegroundd(["image", "foreground"], source_key="foreground", margin=4, allow_smaller=True),
            PadToCropd("image", spatial_size=crop, cell=cell),
            ToPlainTensorsd("image"),
        ]
    )
    try:
        image: Tensor = prepare({"image": list(found.files), "name": found.name, "modality": found.modality})["image"]
    except RuntimeError as error:  # MONAI wraps what a transform raises
        raise user_error_in(error) or error from error
    return image


def settings_file(model: Path, output_dir: Path, replace: bool) -> Path:
    """Where `model.json` goes, beside the exported files.

    Raises:
        UserError: if another one is there and may not be replaced.
    """
    target = output_dir / f"{model.stem}.json"
    known = (model.with_suffix(".json").read_bytes(), settings_to_hand_on(model))
    if target.exists() and target.read_bytes() not in known and not replace:
        raise UserError(f"{target} is of another model: pass --replace to write it anew, or another --output_dir")
    return target


def settings_to_hand_on(model: Path) -> bytes:
    """The file `model.json`, as it is if nothing in it is private; else without that."""
    written = model.with_suffix(".json").read_bytes()
    content = json.loads(written)
    told = without_private(content)
    return written if told == content else f"{json.dumps(told, indent=4)}\n".encode()


def copy_settings(model: Path, target: Path) -> None:
    """Puts `model.json` beside the exported files; nothing happens where it is the same already, or the model's own."""
    content = settings_to_hand_on(model)
    if not target.exists() or (target.read_bytes() != content and not target.samefile(model.with_suffix(".json"))):
        with replace_file(target) as temporary:
            temporary.write_bytes(content)


def read_plans(model: PlainModel, options: argparse.Namespace) -> dict[str, Any] | None:
    """The user's plan with the pre-trained network; None if none is given.

    Raises:
        UserError: if the plan cannot be used.
    """
    plans = options.nnunet_plans
    if plans is None:
        return None
    try:
        content = json.loads(plans.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--nnunet_plans {plans} is no readable json ({error}): give an nnUNetPlans.json") from error
    return fit_plans(content, model.settings, options.nnunet_configuration)


def write_plans(fitted: dict[str, Any], plans: Path, output_dir: Path, options: argparse.Namespace) -> str:
    """Writes a plan whose network is the pre-trained one; says where.

    Raises:
        UserError: if one is there already.
    """
    target = output_dir / f"{fitted['plans_name']}.json"
    if target.exists() and not options.replace:
        raise UserError(f"{target} is there already: pass --replace to write it anew, or another --output_dir")
    with replace_file(target) as temporary:
        temporary.write_text(json.dumps(fitted, indent=4) + "\n")
    return f"a plan for nnUNetv2_train -p {fitted['plans_name']}: put {target} beside {plans}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown, columns aligned."""
    head = ("format", "file", "MiB", "max difference", "of the largest", "remark")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths))} |" for line in lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the folder to write to."""
    parser = argparse.ArgumentParser(description="Exports a pre-trained encoder and verifies each file.")
    parser.add_argument("model", type=Path, help="folder of a run, or its model.pt with model.json beside it")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, help="default: all that can hold the encoder")
    parser.add_argument("--output_dir", type=Path, help="default: the model's folder")
    parser.add_argument("--input", type=Path, help="a volume to compare on as well: NIfTI, NRRD, or a DICOM folder")
    parser.add_argument("--input_channels", type=int, help="nnunet: of your data set; default: as pre-trained")
    parser.add_argument("--nnunet_plans", type=Path, help="nnunet: your plan, if its network or axes are others")
    parser.add_argument("--nnunet_configuration", default="3d_fullres", help="nnunet: of that plan")
    parser.add_argument("--replace", action="store_true", help="write files anew that are there already")
    options = parser.parse_args(arguments)
    options.model = ModelFiles(options.model).weights
    options.output_dir = options.output_dir or options.model.parent
    return options


def exported_file(name: str, options: argparse.Namespace) -> Path:
    """Where the file of a format goes."""
    folder: Path = options.output_dir
    return folder / f"{options.model.stem}{FORMATS[name].suffix}"


def fit_format(fitted: Mapping[str, Any] | None, input_channels: int | None) -> None:
    """Has the format nnunet written, and verified, for the user's data set: its channels, and the axes of its plan."""
    axes = None if fitted is None else plan_axes(fitted)
    FORMATS["nnunet"] = replace(
        FORMATS["nnunet"],
        write=partial(write_nnunet, input_channels=input_channels, axes=axes),
        verify=partial(verify_nnunet, axes=axes),
    )


def export_all(
    model: PlainModel, names: Sequence[str], images: Sequence[Tensor], options: argparse.Namespace
) -> list[tuple[str, ...]]:
    """Writes each format; gives a row of the table for each, without a file where it could not be written."""
    rows: list[tuple[str, ...]] = []
    for name in (bar := tqdm(dict.fromkeys(names), desc="exporting", unit="format")):
        bar.set_postfix_str(name)
        try:
            done = export_model(model, name, exported_file(name, options), images, replace=options.replace)
        except UserError as error:
            rows.append((name, "-", "-", "-", "-", str(error)))
            continue
        mib = f"{done.size / 2**20:.1f}"
        rows.append((name, str(done.file), mib, f"{done.difference:.1e}", f"{done.relative:.1e}", done.how))
    return rows


def export(options: argparse.Namespace) -> int:
    """Runs the command with its options.

    Returns:
        1 if a format could not be written, else 0.

    Raises:
        UserError: if nothing can be.
    """
    if options.input_channels is not None and options.input_channels < 1:
        raise UserError(f"--input_channels {options.input_channels} is no number of channels: give 1 or more")
    model = plain_model(options.model)
    fitted = read_plans(model, options)
    images = real_images(model, options.input) if options.input else []
    encoder = model.settings["encoder"]["name"]
    names = options.formats or [name for name, one in FORMATS.items() if encoder in (one.encoders or (encoder,))]
    settings = settings_file(options.model, options.output_dir, options.replace)
    make_folder(options.output_dir, "--output_dir")
    fit_format(fitted, options.input_channels)
    rows = export_all(model, names, images, options)
    sizes = ["noise", *(" x ".join(map(str, image.shape[2:])) for image in images)]
    print(table(rows))
    written = [row[0] for row in rows if row[1] != "-"]
    if not any(exported_file(name, options).exists() for name in names):
        return 1
    copy_settings(options.model, settings)
    print(f"compared with the network in PyTorch on {', '.join(sizes)}; settings: {settings}")
    if not images:
        print("no --input: no real volume was compared")
    if "nnunet" in written:
        folder = copy_trainer(options.output_dir).absolute()
        print(f'for nnU-Net: export nnUNet_extTrainer="{folder}", then nnUNetv2_train ... -tr nnUNetTrainerSparseMim')
    if fitted is not None:
        if "nnunet" not in written and (earlier := exported_file("nnunet", options)).exists():
            verify_file(earlier, "nnunet", model)  # it may have been written for other axes than this plan's
        print(write_plans(fitted, options.nnunet_plans, options.output_dir, options))
    return int(len(written) < len(rows))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if a format could not be written."""
    try:
        return export(parse(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
