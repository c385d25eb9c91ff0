# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Loads what every process that prepares volumes needs."""

import gc
import importlib
import sys
from pathlib import Path

import blosc2  # noqa: F401

# the bundle that this file belongs to, not another one in the folder where the user is
sys.path.insert(0, str(Path(__file__).parents[3]))
importlib.import_module("bundle.data.preparation")
del sys.path[0]
gc.freeze()  # a collection in a forked process would copy every page that holds an object
