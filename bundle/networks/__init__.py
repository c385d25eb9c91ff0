# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Encoders, the decoder and the pre-training network. A new encoder is an adapter in `encoders`."""

from bundle.networks.batch_norm import reestimate_batch_norm
from bundle.networks.decoder import Decoder
from bundle.networks.depth_pairs import EncoderDepthPairs, average_at
from bundle.networks.encoders.build import build_encoder
from bundle.networks.encoders.encoder import Encoder, Level, Stage
from bundle.networks.encoders.from_plan import encoder_from_plan
from bundle.networks.encoders.nnunet import nnunet_arguments
from bundle.networks.feature_map import build_feature_map, total_stride
from bundle.networks.key_queue import BodyPlaces, KeyQueue
from bundle.networks.level_pairs import VolumeLevelPairs
from bundle.networks.matching_decoder import build_decoder
from bundle.networks.nnunet_decoder import NnunetDecoder
from bundle.networks.nnunet_segmentation import NnunetSegmentation
from bundle.networks.objective import Objective, ObjectiveSum
from bundle.networks.pairs import Pairs, View, find_pairs
from bundle.networks.pretraining import PretrainingNetwork, PretrainingOutput
from bundle.networks.prototypes import PlacePrototypes, PrototypeHeads
from bundle.networks.segres_decoder import SegResDecoder
from bundle.networks.site_features import SiteFeatures, read_site_features
from bundle.networks.teacher import Teacher

__all__ = [
    "BodyPlaces",
    "Decoder",
    "Encoder",
    "EncoderDepthPairs",
    "KeyQueue",
    "Level",
    "NnunetDecoder",
    "NnunetSegmentation",
    "Objective",
    "ObjectiveSum",
    "Pairs",
    "PlacePrototypes",
    "PretrainingNetwork",
    "PretrainingOutput",
    "PrototypeHeads",
    "SegResDecoder",
    "SiteFeatures",
    "Stage",
    "Teacher",
    "View",
    "VolumeLevelPairs",
    "average_at",
    "build_decoder",
    "build_encoder",
    "build_feature_map",
    "encoder_from_plan",
    "find_pairs",
    "nnunet_arguments",
    "read_site_features",
    "reestimate_batch_norm",
    "total_stride",
]
