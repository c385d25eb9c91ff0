# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where prepared volumes are kept: compressed in checked chunks, or as they are."""

from bundle.stores.blosc2_store import Blosc2Store
from bundle.stores.store import STORES, Crop, DamagedVolumeError, Header, PlainStore, Store, cut, open_store

__all__ = ["STORES", "Blosc2Store", "Crop", "DamagedVolumeError", "Header", "PlainStore", "Store", "cut", "open_store"]
