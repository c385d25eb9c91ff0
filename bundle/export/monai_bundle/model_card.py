# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""docs/README.md and docs/data_license.txt: what a reader must know before using the model, from what the run knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.export.monai_bundle.finished_run import FinishedRun
from bundle.export.monai_bundle.intensities import describe_intensities

__all__ = ["data_licence", "model_card"]

_LIMITS = (
    "Not a medical device. It must not be used for diagnosis or treatment.",
    "It knows its classes only, and always answers, on a scan of another body part or modality, too: look at the maps.",
    "A scan whose voxels are much larger than those of training shows less than the network has learnt from.",
)


def model_card(run: FinishedRun, *, title: str, components: str, has_torchscript: bool) -> str:
    """The model card, in markdown.

    Args:
        run: to be handed on.
        title: what to call the model.
        components: as for `inference_config`.
        has_torchscript: whether there is a models/model.ts.
    """
    sections = {
        "Description": _description(run),
        "Classes": _classes(run),
        "How to use it": _use(components),
        "Data": _data(run),
        "Preparation of a scan": _preparation(run),
        "Performance": _performance(run),
        "Intended use and limits": "\n".join(f"- {line}" for line in (*_LIMITS, *_further_limits(components))),
        "Files": _files(has_torchscript),
        "Licence": "Configuration and documents: Apache License 2.0, see `LICENSE`. Weights and data: see "
        "`docs/data_license.txt`.",
    }
    return "\n".join([f"# {title}", *(f"\n## {name}\n\n{text}" for name, text in sections.items()), ""])


def data_licence(run: FinishedRun, licence: str | None) -> str:
    """The terms of the weights, as far as they are known.

    Args:
        run: to be handed on.
        licence: as whoever exports the model states it; None if they do not.
    """
    stated = licence or (
        "not stated. Whoever trained the model decides on it, within the terms of the data that it was trained on. Ask "
        "them before you use or pass on the weights"
    )
    origin = run.origin
    lines = [f"The weights in models/: {stated}.", f"Labelled data: {_counted(run, 'training')}. It is not included."]
    if origin:
        lines.append(
            f"Training began with pre-trained weights; their licence: {origin[-1].get('licence') or 'not recorded'}. "
            f"They were trained on {_trained_on(origin[-1])}."
        )
        lines += [f"They went on from {_step(step)}." for step in reversed(origin[:-1])]
    else:
        lines.append("Training began from scratch.")
    return "\n".join([*lines, ""])


def _description(run: FinishedRun) -> str:
    names, network = ", ".join(run.classes), run.content["network"]["name"]
    start = "a pre-trained encoder" if run.content.get("pretrained") else "scratch"
    return (
        f"{network} that segments {names} in {' and '.join(run.modalities)}. It was fine-tuned from {start} with the "
        f"Mask-in-Mask bundle; these are the weights after epoch {run.content.get('epoch', '?')}."
    )


def _classes(run: FinishedRun) -> str:
    rows = [("background", 0), *run.classes.items()]
    lines = [f"| {channel} | {name} | {value} |" for channel, (name, value) in enumerate(rows)]
    return "\n".join(["| channel | class | value in the label map |", "|---|---|---|", *lines])


def _use(components: str) -> str:
    needs = (
        "Python with `pip install monai==<monai_version> pytorch-ignite nibabel fire` is enough."
        if components == "monai"
        else "It needs MONAI and the package of the Mask-in-Mask bundle (`pip install .` in its folder), which "
        "prepares the scans."
    )
    return f"""From this folder:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir /path/to/scans --output_dir results

From elsewhere, with the path of this folder:

    python -m monai.bundle run --bundle_root my_model --config_file my_model/configs/inference.json \\
        --dataset_dir /path/to/scans --output_dir results

A label map `<scan>_seg.nii.gz` on the scan's own grid is written for each scan; one that is there already is
replaced. {needs} The versions it was tested with stand in `configs/metadata.json`. The config is code: run those of
people you trust only."""


def _data(run: FinishedRun) -> str:
    held_out = (
        "" if run.is_held_out else " They are the training volumes, so the figures below say nothing of new scans."
    )
    return (
        f"Trained on {_counted(run, 'training')}, validated on {_counted(run, 'validation')}.{held_out} The volumes "
        "are not included, and nothing here names them."
    )


def _preparation(run: FinishedRun) -> str:
    about = run.content
    spacing = about.get("spacing")
    size = (
        "its own voxel size"
        if spacing is None
        else " x ".join("own" if s is None else f"{s:g}" for s in spacing) + " mm"
    )
    lines = [f"axes to RAS, {size}", *describe_intensities(run)]
    lines.append(f"windows of {' x '.join(map(str, about['crop_size']))} voxels, which overlap by half")
    return "\n".join(f"- {line}" for line in lines)


def _performance(run: FinishedRun) -> str:
    found = run.dice()
    if not found:
        return "Not known: the run has recorded no validation."
    volumes = "validation volumes" if run.is_held_out else "training volumes (nothing was held out)"
    lines = [f"| {'mean of the classes' if name == 'mean' else name} | {value:.4f} |" for name, value in found.items()]
    chosen = " The epoch was chosen by it, so it is a little too good." if run.is_held_out else ""
    return "\n".join([f"Dice on the {volumes}.{chosen}", "", "| class | Dice |", "|---|---|", *lines])


def _further_limits(components: str) -> tuple[str, ...]:
    if components == "monai":
        return (
            "Every scan is taken as CT in HU. Scans are read by MONAI: files of NIfTI, NRRD or MetaImage, not checked.",
            "Slices that are tilted against the long axis are not straightened.",
        )
    return ("A scan that cannot be read ends the run with a message that names it.",)


def _files(has_torchscript: bool) -> str:
    rows = {
        "configs/inference.json": "how scans are prepared and segmented",
        "configs/metadata.json": "channels, classes, versions",
        "models/model.pt": "the weights, a flat state dict",
        "models/model.json": "the settings of training, for the Mask-in-Mask bundle",
    }
    if has_torchscript:
        rows["models/model.ts"] = "the network with its weights as TorchScript, and both configs in it"
    return "\n".join(["| file | what |", "|---|---|", *(f"| `{name}` | {what} |" for name, what in rows.items())])


def _counted(run: FinishedRun, part: str) -> str:
    counted = [f"{number} {name}" for name, number in run.counts(part).items() if number]
    return f"{' and '.join(counted)} volumes" if counted else "an unknown number of volumes"


def _trained_on(step: Mapping[str, Any]) -> str:
    """What the weights of one step were trained on."""
    number = sum(int(count) for count in step.get("volumes", {}).get("training", {}).values())
    return str(step.get("trained_on") or f"{number or 'an unknown number of'} unlabelled volumes")


def _step(step: Mapping[str, Any]) -> str:
    """Weights that others went on from, in a few words."""
    digest = str(step.get("sha256") or "")[:8]
    source = f" ({step['source']})" if step.get("source") else f" (sha256 {digest}...)" if digest else ""
    licence = step.get("licence") or "not recorded"
    return f"{step.get('file', 'weights')}{source}, trained on {_trained_on(step)}; their licence: {licence}"
