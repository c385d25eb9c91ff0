# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Small synthetic volumes on disk, and the preparation that configs/train.yaml describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import yaml
from monai.bundle import ConfigParser
from monai.transforms import Compose
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROOT = Path(__file__).parents[2]

#: what must never be found outside the DICOM files
PATIENT = {
    "PatientName": "Doe^Jane",
    "PatientID": "HOSP-4711",
    "PatientBirthDate": "19560401",
    "AccessionNumber": "ACC-0815",
    "StudyDate": "20190523",
    "InstitutionName": "St Elsewhere",
}


def preparation(crop_size: Sequence[int] = (16, 16, 16), **values: Any) -> Compose:
    """The transforms under `prepare` of configs/train.yaml, with `values` for what they refer to."""
    config = yaml.safe_load((ROOT / "configs/train.yaml").read_text())
    values_of = ("spacing", "modality", "weight_maps", "ct_window", "mr_percentiles", "mr_floor", "init_from")
    ids = ("prepare", "preparation", *values_of)
    config["prepare"]["transforms"][-2]["cell"] = list(values.pop("cell", (1, 1, 1)))  # else the encoder's stride
    parser = ConfigParser({**{key: config[key] for key in ids}, "checked_crop_size": list(crop_size), **values})
    return parser.get_parsed_content("prepare")


def ct_phantom(size: Sequence[int] = (24, 20, 16), seed: int = 0) -> np.ndarray:
    """Air at -1000 HU around an ellipsoid of soft tissue with some texture, int16 of shape `size`."""
    inside = ellipsoid(size)
    texture = np.random.default_rng(seed).normal(40, 20, size)
    return np.where(inside, texture, -1000).astype(np.int16)


def mr_phantom(size: Sequence[int] = (24, 20, 16), seed: int = 0) -> np.ndarray:
    """Dark noise around a bright ellipsoid, int16 of shape `size`."""
    generator = np.random.default_rng(seed)
    return np.where(ellipsoid(size), generator.normal(500, 60, size), generator.integers(0, 20, size)).astype(np.int16)


def ellipsoid(size: Sequence[int], radius: float = 0.7) -> np.ndarray:
    """Where a centred ellipsoid is; `radius` 1 touches the borders."""
    axes = [np.linspace(-1, 1, s) for s in size]
    return sum(x**2 for x in np.meshgrid(*axes, indexing="ij")) < radius**2


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Writes a NIfTI file; by default with axes to RAS and voxels of 1 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def write_pair(folder: Path, endings: tuple[str, str], seed: int = 0) -> Path:
    """Writes a volume of `mr_phantom`, 24 x 20 x 16, as a header and its voxels, with the same header for every seed.

    Args:
        folder: made if missing; the files are called `t1`.
        endings: of the header, one of .hdr, .mhd and .nhdr, and of the voxels.
        seed: of the phantom.

    Returns:
        The header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    voxels, header = mr_phantom(seed=seed).astype("<i2"), folder / f"t1{endings[0]}"
    if endings[0] == ".hdr":
        nibabel.save(nibabel.Nifti1Pair(voxels, np.eye(4)), header)
        return header
    (folder / f"t1{endings[1]}").write_bytes(voxels.tobytes(order="F"))
    size, name = " ".join(map(str, voxels.shape)), f"t1{endings[1]}"
    text = f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementType = MET_SHORT\nElementDataFile = {name}\n"
    if endings[0] == ".nhdr":
        text = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {size}\nspace: left-posterior-superior\n"
            "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\nendian: little\n"
            f"data file: {name}\n"
        )
    header.write_text(text)
    return header


def write_dicom(
    folder: Path,
    array: np.ndarray,
    *,
    modality: str = "CT",
    thickness: float = 2.0,
    series: str | None = None,
    leave_out: Sequence[int] = (),
    name: str = "slice",
    tags: Mapping[str, str] = PATIENT,
) -> list[Path]:
    """Writes a series whose slices are ``array[k]`` (rows, columns), 1 mm pixels; HU = stored value - 1024.

    Args:
        folder: made if missing.
        array: of shape slices, rows, columns, in HU.
        modality: DICOM tag.
        thickness: mm between slices.
        series: SeriesInstanceUID; a new one by default.
        leave_out: numbers of slices not to write.
        name: files are named name_0.dcm and so on, in reverse order of position.
        tags: further attributes of every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study = series or generate_uid(), tags.get("StudyInstanceUID", generate_uid())
    paths = []
    for k, plane in enumerate(array):
        if k in leave_out:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{name}_{len(array) - k}.dcm"
        header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        header.update({pydicom.datadict.tag_for_keyword(tag): _element(tag, value) for tag, value in tags.items()})
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        header.SeriesInstanceUID, header.StudyInstanceUID, header.Modality = series, study, modality
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, k * thickness], [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.SliceThickness, header.InstanceNumber = [1, 1], thickness, k + 1
        header.Rows, header.Columns = plane.shape
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        header.RescaleSlope, header.RescaleIntercept = 1, -1024
        header.PixelData = (plane.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        header.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _element(tag: str, value: str) -> pydicom.DataElement:
    return pydicom.DataElement(pydicom.datadict.tag_for_keyword(tag), pydicom.datadict.dictionary_VR(tag), value)
