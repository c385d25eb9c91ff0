# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from typing import Any

import pytest
from monai.networks.nets import DynUNet

from bundle.errors import UserError
from bundle.tasks.segmentation import build_segmentation_network
from tests.prediction.models import Thresholds

DYNUNET: dict[str, Any] = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2], "norm_name": ["INSTANCE", {"affine": True}],  # json knows no tuples
}  # fmt: skip


def test_networks_are_built_by_name_or_dotted_name():
    assert type(build_segmentation_network({"network": {"name": "DynUNet", **DYNUNET}})) is DynUNet
    named = {"name": "tests.prediction.models.Thresholds", "in_channels": 2}
    network = build_segmentation_network({"network": named})
    assert type(network) is Thresholds and network.in_channels == 2


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"name": "NoSuchNet"}, "the network 'NoSuchNet', which is none of MONAI's"),
        ({"name": "os.system", "command": "true"}, "the network 'os.system', which is none"),
        ({"name": "no.such.Net"}, "the network 'no.such.Net', which is none"),
        ({"name": "SegResNetDS", "filters": 3}, "arguments that the network SegResNetDS does not take"),
        ("EncoderClassifier", "the network '', which is none"),
        (None, "the network '', which is none"),
    ],
)
def test_what_is_no_network_is_refused(network: Any, said: str):
    with pytest.raises(UserError, match=said):
        build_segmentation_network({"network": network})
