# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's plans and data sets: what its training feeds a network, for pre-training."""

from bundle.data.nnunet.case import ReadCased
from bundle.data.nnunet.find import find_cases
from bundle.data.nnunet.plan import Plan, read_plan
from bundle.data.nnunet.store import CaseStore

__all__ = ["CaseStore", "Plan", "ReadCased", "find_cases", "read_plan"]
