# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From files to crops: find, read and check, prepare once, split, crop."""

from bundle.data.appearance import change_appearance
from bundle.data.archive_preparation import prepare_archive
from bundle.data.crops import CropDataset, DrawSampler, PlacedCropd, RandForegroundCropd, make_loader
from bundle.data.draws import repeat_unless_named
from bundle.data.find import find_volumes
from bundle.data.found_volume import FoundVolume
from bundle.data.geometry import OptionalSpacingd, PadToCropd, ToPlainTensorsd, crop_size
from bundle.data.intensity import Foregroundd, Modalityd, NormalizeByModalityd
from bundle.data.intensity_scheme import NormalizeBySchemed, normalization
from bundle.data.mirrors import mirrored_axes, random_mirrors
from bundle.data.prepared_volume import PreparedVolume, SkippedVolume, skipped_because
from bundle.data.pretext_classes import PretextClasses, PretextClassesd, fit_pretext_classes
from bundle.data.read import ReadVolumed, read_volume
from bundle.data.region_appearance import RandRegionAppearanced
from bundle.data.safe_names import result_names, table_row
from bundle.data.scans import find_scans
from bundle.data.volume_set import VolumeSet
from bundle.data.weight_map import WeightMapd
from bundle.data.wide_crops import RandWideCropd
from bundle.stores.blosc2_store import Blosc2Store
from bundle.stores.plain_store import PlainStore
from bundle.stores.store import Store

__all__ = [
    "Blosc2Store",
    "CropDataset",
    "DrawSampler",
    "Foregroundd",
    "FoundVolume",
    "Modalityd",
    "NormalizeByModalityd",
    "NormalizeBySchemed",
    "OptionalSpacingd",
    "PadToCropd",
    "PlacedCropd",
    "PlainStore",
    "PreparedVolume",
    "PretextClasses",
    "PretextClassesd",
    "RandForegroundCropd",
    "RandRegionAppearanced",
    "RandWideCropd",
    "ReadVolumed",
    "SkippedVolume",
    "Store",
    "ToPlainTensorsd",
    "VolumeSet",
    "WeightMapd",
    "change_appearance",
    "crop_size",
    "find_scans",
    "find_volumes",
    "fit_pretext_classes",
    "make_loader",
    "mirrored_axes",
    "normalization",
    "prepare_archive",
    "random_mirrors",
    "read_volume",
    "repeat_unless_named",
    "result_names",
    "skipped_because",
    "table_row",
]
