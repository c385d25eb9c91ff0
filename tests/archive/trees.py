# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Small archives with all that an archive may hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import itk
import nibabel
import numpy as np

from tests.data import dicom_files
from tests.data.volumes import PATIENT, ct_phantom, ellipsoid, mr_phantom, write_dicom, write_nifti

__all__ = ["make_tree"]


def make_tree(root: Path) -> Path:
    """Scans that can be used and scans that cannot, label maps, copies, reports, and files of other kinds."""
    ct, mr = ct_phantom((12, 10, 8)).transpose(2, 1, 0), mr_phantom((12, 10, 8)).transpose(2, 1, 0)
    write_dicom(root / "a/ct", ct)
    write_dicom(root / "a/two in one", ct[:, ::-1], name="first")
    write_dicom(root / "a/two in one", mr - 1024, modality="MR", name="second")
    write_dicom(root / "b/gap", ct, leave_out=[3], tags={**PATIENT, "PatientID": "HOSP-4712"})
    shutil.copytree(root / "a/ct", root / "b/copy of ct")
    write_dicom(root / "b/stray", ct[:1])
    write_dicom(root / "c/cut off", ct)
    for file in (root / "c/cut off").iterdir():
        file.write_bytes(file.read_bytes()[:-50])
    stored = dicom_files.planes()
    dicom_files.save([dicom_files.image(stored[k], k) for k in range(len(stored))], root / "c/plain")
    shift = np.array([0, 0.7, 0])
    tilted = [
        dicom_files.image(plane, k, position=dicom_files.place(k) + k * shift, SeriesInstanceUID="1.2.3.5")
        for k, plane in enumerate(dicom_files.planes(seed=1))
    ]
    dicom_files.save(tilted, root / "c/tilted")
    places = [dicom_files.place(k) for k in range(len(stored))]
    multi = dicom_files.enhanced(stored, places)
    multi.SeriesInstanceUID = "1.2.3.6"
    dicom_files.save([multi], root / "c/multi")
    report = dicom_files.image(stored[0], 0, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    dicom_files.save([report], root / "c/reports")
    _write_files(root)
    return root


def _write_files(root: Path) -> None:
    """Volumes that are files, and what is none."""
    volume = mr_phantom((12, 10, 8))
    write_nifti(root / "msd/imagesTr/é ü.nii.gz", volume, np.diag([1.5, 1.5, 3, 1]))
    write_nifti(root / "msd/labelsTr/é ü.nii.gz", ellipsoid((12, 10, 8)).astype(np.uint8))
    (root / "msd/dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "training": []}))
    write_nifti(root / "files/flat.nii", volume[..., :1])
    write_nifti(root / "files/four.nii", np.stack([volume, volume], axis=3))
    write_nifti(root / "files/again.nii", ct_phantom((12, 10, 8)))
    shutil.copy(root / "files/again.nii", root / "files/once more.nii")
    write_nifti(root / "files/cut.nii", volume)
    (root / "files/cut.nii").write_bytes((root / "files/cut.nii").read_bytes()[:-100])
    (root / "files/broken.nii.gz").write_bytes(b"no nifti at all")
    (root / "files/notes.txt").write_text("Doe^Jane")
    (root / "files/.hidden.nii").write_bytes(b"")
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(volume)), str(root / "files/volume.nrrd"))
    nibabel.save(nibabel.MGHImage(volume.astype(np.float32), np.eye(4)), root / "files/brain.mgz")
