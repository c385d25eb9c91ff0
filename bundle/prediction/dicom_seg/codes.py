# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""SNOMED CT codes of segments, by the names of their classes.

Only names that can mean one thing have a code of their own. Everything else is coded as "Tissue", which says nothing
and is never wrong: the segment's label tells what it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

__all__ = ["SegmentCodes", "segment_codes"]

#: name of a class, in small letters and without its side: keyword in pydicom's dictionary of SNOMED CT
_ANATOMY = {
    "adrenal gland": "AdrenalGland",
    "aorta": "Aorta",
    "bladder": "Bladder",
    "bone": "Bone",
    "brain": "Brain",
    "breast": "Breast",
    "cerebellum": "Cerebellum",
    "cerebrospinal fluid": "CerebrospinalFluid",
    "clavicle": "Clavicle",
    "clavicula": "Clavicle",
    "colon": "Colon",
    "common carotid artery": "CommonCarotidArtery",
    "duodenum": "Duodenum",
    "esophagus": "Esophagus",
    "eye": "Eye",
    "femur": "Femur",
    "gallbladder": "Gallbladder",
    "gray matter": "GrayMatter",
    "heart": "Heart",
    "hippocampus": "Hippocampus",
    "humerus": "Humerus",
    "inferior vena cava": "InferiorVenaCava",
    "kidney": "Kidney",
    "left atrium": "LeftAtrium",
    "left ventricle": "LeftVentricle",
    "liver": "Liver",
    "lung": "Lung",
    "lymph node": "LymphNode",
    "mandible": "Mandible",
    "muscle": "Muscle",
    "optic chiasm": "OpticChiasm",
    "optic nerve": "OpticNerve",
    "pancreas": "Pancreas",
    "parotid gland": "ParotidGland",
    "portal vein": "PortalVein",
    "prostate": "Prostate",
    "pulmonary artery": "PulmonaryArtery",
    "pulmonary vein": "PulmonaryVein",
    "rectum": "Rectum",
    "rib": "Rib",
    "right atrium": "RightAtrium",
    "right ventricle": "RightVentricle",
    "sacrum": "Sacrum",
    "scapula": "Scapula",
    "skull": "Skull",
    "small bowel": "SmallIntestine",
    "small intestine": "SmallIntestine",
    "spinal cord": "SpinalCord",
    "spleen": "Spleen",
    "sternum": "Sternum",
    "stomach": "Stomach",
    "superior vena cava": "SuperiorVenaCava",
    "thalamus": "Thalamus",
    "thyroid": "Thyroid",
    "thyroid gland": "Thyroid",
    "tooth": "Tooth",
    "trachea": "Trachea",
    "urinary bladder": "Bladder",
    "uterus": "Uterus",
    "vertebra": "Vertebra",
    "white matter": "WhiteMatter",
}
#: last word of a name: what is no healthy part of the body; the words before it may say where it is
_ABNORMAL = {
    "aneurysm": "Aneurysm",
    "cyst": "Cyst",
    "edema": "Edema",
    "hemorrhage": "Hemorrhage",
    "lesion": "Lesion",
    "necrosis": "Necrosis",
    "neoplasm": "Neoplasm",
    "nodule": "Nodule",
    "thrombus": "Thrombus",
    "tumor": "Neoplasm",
}
_SIDES = {"left": "Left", "right": "Right"}
#: other spellings, and plurals, of single words
_SPELLINGS = {
    "oesophagus": "esophagus",
    "grey": "gray",
    "haemorrhage": "hemorrhage",
    "oedema": "edema",
    "tumour": "tumor",
    "tumours": "tumor",
    "tumors": "tumor",
    "lesions": "lesion",
    "nodules": "nodule",
    "cysts": "cyst",
    "kidneys": "kidney",
    "lungs": "lung",
    "csf": "cerebrospinal fluid",
}


@dataclass(frozen=True)
class SegmentCodes:
    """What a segment is, in the terms of a DICOM SEG.

    Attributes:
        category: of the property: an anatomical structure, something abnormal, or a tissue.
        kind: the property's type, such as Liver.
        side: Left or Right, or None.
        region: where something abnormal is, or None.
    """

    category: Code
    kind: Code
    side: Code | None = None
    region: Code | None = None


def segment_codes(name: str) -> SegmentCodes:
    """The codes of a class, by its name.

    Example:
        >>> from bundle.prediction.dicom_seg import segment_codes
        >>> found = segment_codes("kidney_left")
        >>> found.kind.meaning, found.kind.value, found.side.meaning
        ('Kidney', '64033007', 'Left')
        >>> segment_codes("Pancreatic stuff").kind.meaning
        'Tissue'
    """
    sct = codes.SCT
    words = [_SPELLINGS.get(word, word) for word in re.findall(r"[^\W\d_]+|\d+", name.lower())]
    structure, side = _structure(words)
    if structure is not None:
        return SegmentCodes(sct.AnatomicalStructure, structure, side=side)
    if words and words[-1] in _ABNORMAL:
        region, side = _structure(words[:-1])
        kind = getattr(sct, _ABNORMAL[words[-1]])
        return SegmentCodes(sct.MorphologicallyAbnormalStructure, kind, side=side, region=region)
    return SegmentCodes(sct.Tissue, sct.Tissue)


def _structure(words: list[str]) -> tuple[Code | None, Code | None]:
    """The code of a part of the body and of its side; an atrium's side belongs to its name."""
    keyword = _ANATOMY.get(" ".join(words))
    if keyword is not None:
        return getattr(codes.SCT, keyword), None
    sides = [word for word in words if word in _SIDES]
    keyword = _ANATOMY.get(" ".join(word for word in words if word not in _SIDES)) if len(sides) == 1 else None
    return (getattr(codes.SCT, keyword), getattr(codes.SCT, _SIDES[sides[0]])) if keyword is not None else (None, None)
