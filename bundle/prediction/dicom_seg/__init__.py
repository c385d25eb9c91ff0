# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The DICOM object of a segmentation: its references, its codes, and itself, in `make`, which needs highdicom."""

from bundle.prediction.dicom_seg.codes import SegmentCodes, segment_codes
from bundle.prediction.dicom_seg.sources import PATIENT_AND_STUDY, copy_patient_and_study, source_images

__all__ = ["PATIENT_AND_STUDY", "SegmentCodes", "copy_patient_and_study", "segment_codes", "source_images"]
