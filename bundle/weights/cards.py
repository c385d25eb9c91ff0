# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Published weights that are known here: how to recognise them, and how volumes must be prepared for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from bundle.weights.layouts import resnet_arguments, segres_encoder_arguments, segresnet_arguments
from bundle.weights.nnunet import NnunetEncoder, find_nnunet
from bundle.weights.orientation import ordered_axes, turn_kernels
from bundle.weights.read import list_wrappers
from bundle.weights.settings import ModelSettings

__all__ = ["CARDS", "Card", "PublishedEncoder", "recognise"]

logger = logging.getLogger(__name__)

_Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of one source of weights.

    Attributes:
        title: what people call them.
        axes: of the volumes that they were trained on, one letter for each array axis.
        spacing: mm per axis (R, A, S) that volumes are resampled to; None for the volume's own.
        intensity_scheme: as for `bundle.data.NormalizeBySchemed`; None for this project's own way.
        modality: "CT", "MR", or "CT and MR".
        trained_on: what, and how.
        licence: of the weights.
        source: where they are described.
        read_in: where the facts of this card come from.
        find_encoder: from the tensors below a wrapper, name and arguments of the encoder, as for `build_encoder`; None
            if these are not the source's. Cards of nnU-Net's networks, which `find_nnunet` finds, have none.
        keeps: beginnings of the names of the encoder's tensors, where `find_encoder` finds it; the others, such as a
            decoder's, are left.
        decoder: whether a decoder in the file was trained, too.
    """

    title: str
    axes: str
    spacing: Sequence[float | None] | None
    intensity_scheme: Any
    modality: str
    trained_on: str
    licence: str
    source: str
    read_in: str
    find_encoder: Callable[[_Weights], dict[str, Any] | None] | None = None
    keeps: tuple[str, ...] = ()
    decoder: bool = True


@dataclass(frozen=True)
class PublishedEncoder:
    """An encoder found in a file of known published weights.

    Attributes:
        name: of the card in `CARDS`.
        card: what is known of them.
        encoder: name and arguments, as for `build_encoder`.
        weights: of the encoder, under the plain network's names, with kernels turned to RAS axes.
        rest: the other tensors of a file whose decoder was trained, turned as well.
    """

    name: str
    card: Card
    encoder: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    rest: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def settings(self) -> ModelSettings:
        """What a `model.json` beside the file would say, for axes to which its kernels turn without a change."""
        return ModelSettings.from_content(
            {
                "encoder": dict(self.encoder),
                "spacing": None if self.card.spacing is None else list(self.card.spacing),
                "orientation": ordered_axes(self.card.axes),
                "intensity_scheme": self.card.intensity_scheme,
                "modality": self.card.modality if self.card.modality in ("CT", "MR") else "auto",
                "trained_on": self.card.trained_on,
                "licence": self.card.licence,
                "source": self.card.source,
                "card": self.name,
            }
        )


def recognise(weights: _Weights, about: Mapping[str, Any] | None = None) -> PublishedEncoder | None:
    """Finds the encoder of known published weights in a state dict, whatever stands before its names.

    A source is known by the layout and the sizes of its tensors, and for nnU-Net's networks by the plan in the file.
    Somebody else's weights of the same network look the same: a `model.json` beside the file then says what they are.

    Args:
        weights: as `read_checkpoint` returns them.
        about: what else stands in the file, as `read_checkpoint` returns it.

    Raises:
        UserError: if the plan in the file is another network's than the tensors.
    """
    for wrapper in list_wrappers(weights):
        below = {key.removeprefix(wrapper): value for key, value in weights.items() if key.startswith(wrapper)}
        for name, card in CARDS.items():
            encoder = card.find_encoder(below) if card.find_encoder else None
            if encoder is not None:
                kept = {key: value for key, value in below.items() if key.startswith(card.keeps)}
                rest = {key: w for key, w in weights.items() if key.removeprefix(wrapper) not in kept and card.decoder}
                return PublishedEncoder(
                    name, card, encoder, turn_kernels(kept, card.axes), turn_kernels(rest, card.axes)
                )
    found = find_nnunet(weights, about or {})
    return None if found is None else _of_nnunet(found, about or {})


def _of_nnunet(found: NnunetEncoder, about: Mapping[str, Any]) -> PublishedEncoder:
    """An encoder of nnU-Net's with the card of its source, and how the plan in the file prepares volumes."""
    ours, plan = about.get("model.json"), found.plan
    texts = f"{plan.dataset} {about.get('citations', '')} {about.get('trainer_name', '')}".lower()
    named = [name for name, marks in _NNSSL.items() if any(mark in texts for mark in marks)]
    name = "nnunet" if plan.kind == "nnunet" else named[0] if named else "nnssl"
    card = replace(CARDS[name], axes=plan.axes, modality=plan.modality or CARDS[name].modality)
    if plan.kind:
        card = replace(card, spacing=plan.spacing, intensity_scheme=plan.intensity_scheme)
    if plan.dataset:
        card = replace(card, trained_on=f"{card.trained_on} ({plan.dataset})")
    if isinstance(ours, Mapping):  # an export of this project, read again
        licence, trained_on = str(ours.get("licence", card.licence)), str(ours.get("trained_on", card.trained_on))
        card = replace(card, licence=licence, trained_on=trained_on, intensity_scheme=ours.get("intensity_scheme"))
    return PublishedEncoder(name, card, found.encoder, found.weights, found.rest)


def _ct_fm(weights: _Weights) -> dict[str, Any] | None:
    found = segres_encoder_arguments(weights)
    expected = {"in_channels": 1, "init_filters": 32, "blocks_down": [1, 2, 2, 4, 4], "norm": "batch"}
    return found if found == {"name": "SegResEncoder", **expected} else None


def _vista3d(weights: _Weights) -> dict[str, Any] | None:
    found = segres_encoder_arguments(weights)
    norm = ["instance", {"affine": True}]
    expected = {"in_channels": 1, "init_filters": 48, "blocks_down": [1, 2, 2, 4, 4], "norm": norm}
    return found if found == {"name": "SegResEncoder", **expected} else None


def _suprem(weights: _Weights) -> dict[str, Any] | None:
    found = segresnet_arguments(weights)
    sizes = found and (found["in_channels"], found["init_filters"], found["blocks_down"])
    return found if sizes == (1, 16, [1, 2, 2, 4]) else None


def _medicalnet(weights: _Weights) -> dict[str, Any] | None:
    found = resnet_arguments(weights)
    return found if found and found["in_channels"] == 1 else None


#: known sources by the name that logs and `model.json` use
CARDS: dict[str, Card] = {
    "ct_fm": Card(
        title="CT-FM",
        find_encoder=_ct_fm,
        keeps=("conv_init.", "layers."),
        axes="SPL",
        spacing=(1.0, 1.0, 3.0),
        intensity_scheme={"kind": "range", "window": [-1024, 2048], "to": [0, 1]},
        modality="CT",
        trained_on="148,000 CT scans, contrastively, without labels",
        licence="Apache-2.0",
        decoder=False,
        source="Pai et al., Vision Foundation Models for Computed Tomography, arXiv 2501.09001",
        read_in="github.com/project-lighter/CT-FM: notebooks and configs (axes, spacing, intensities)",
    ),
    "vista3d": Card(
        title="VISTA3D",
        find_encoder=_vista3d,
        keeps=("conv_init.", "layers."),
        axes="RAS",
        spacing=(1.5, 1.5, 1.5),
        intensity_scheme={"kind": "range", "window": [-963.8247715525971, 1053.678477684517], "to": [0, 1]},
        modality="CT",
        trained_on="11,454 CT scans with labels and pseudo-labels of 127 structures, so supervised",
        licence="NVIDIA's own, see the file's page: not for every use",
        source="He et al., VISTA3D, arXiv 2406.05285",
        read_in="MONAI's bundle vista3d, configs/inference.json; only the key layout was tried, with MONAI's class",
    ),
    "suprem_segresnet": Card(
        title="SuPreM's SegResNet",
        find_encoder=_suprem,
        keeps=("convInit.", "down_layers."),
        axes="RAS",
        spacing=(1.5, 1.5, 1.5),
        intensity_scheme={"kind": "range", "window": [-175, 250], "to": [0, 1]},
        modality="CT",
        trained_on="AbdomenAtlas 1.1: 9,262 abdominal CT scans with labels of 25 structures, so supervised",
        licence="not for commercial use, no derivatives (the repository's licence)",
        source="Li et al., How Well Do Supervised Models Transfer to 3D Image Segmentation?, ICLR 2024",
        read_in="github.com/MrGiovanni/SuPreM: direct_inference/dataset/dataloader_test.py and its options",
    ),
    "medicalnet": Card(
        title="MedicalNet",
        find_encoder=_medicalnet,
        keeps=("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4."),
        axes="RAS",
        spacing=None,
        intensity_scheme={"kind": "z_score", "over": "nonzero"},
        modality="CT and MR",
        trained_on="23 segmentation data sets of CT and MR, so supervised",
        licence="MIT",
        source="Chen et al., Med3D, arXiv 1904.00625",
        read_in="github.com/Tencent/MedicalNet: datasets/brains18.py, but for its noise where a volume is 0; its last "
        "two layers have stride 1 and dilations of 2 and 4, where ResNetFeatures has stride 2: features differ",
    ),
    "openmind": Card(
        title="OpenMind: the ResEnc-L checkpoints",
        axes="SPL",
        spacing=(1.0, 1.0, 1.0),
        intensity_scheme={"kind": "z_score", "over": "nonzero_box"},
        modality="MR",
        trained_on="114,000 MR volumes of heads, without labels, by the method that the file's name says",
        licence="CC BY 4.0",
        source="Wald et al., An OpenMind for 3D medical vision self-supervised learning, arXiv 2412.17041",
        read_in="huggingface.co/AnonRes: README and adaptation_plan.json of the ResEncL-OpenMind checkpoints",
    ),
    "nnfoundationcnn": Card(
        title="nnFoundationCNN",
        axes="SPL",
        spacing=None,
        intensity_scheme={"kind": "z_score", "over": "nonzero_box"},
        modality="CT and MR",
        trained_on="2.1 million CT, MR and PET volumes, by reconstruction, without labels",
        licence="CC BY-SA 4.0",
        source="nnFoundation, arXiv 2609.26924",
        read_in="huggingface.co/MIC-DKFZ/nnFoundationCNN: its page; nnssl's trainer of that name",
    ),
    "nnssl": Card(
        title="nnssl: another ResEnc checkpoint",
        axes="SPL",
        spacing=None,
        intensity_scheme={"kind": "z_score", "over": "nonzero_box"},
        modality="CT and MR",
        trained_on="what the file does not say",
        licence="not known, see where the file comes from",
        source="github.com/MIC-DKFZ/nnssl",
        read_in="the plan in the file; without one nnssl's usual preparation",
    ),
    "nnunet": Card(
        title="nnU-Net: a checkpoint of its training",
        axes="SPL",
        spacing=None,
        intensity_scheme=None,
        modality="CT and MR",
        trained_on="a data set with labels, so supervised",
        licence="not known, see where the file comes from",
        source="Isensee et al., nnU-Net, Nature Methods 18, 2021",
        read_in="the plan in the file",
    ),
}

#: what a file of nnssl's says of itself: names of data sets, of a paper, of a trainer
_NNSSL = {"nnfoundationcnn": ("nnfoundation", "2609.26924"), "openmind": ("openmind", "openneuro_v2", "2412.17041")}
