# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Where prepared volumes are kept: compressed in checked chunks, or as they are."""

from bundle.stores.blosc2_store import Blosc2Store
from bundle.stores.open_store import STORES, open_store
from bundle.stores.plain_store import PlainStore
from bundle.stores.store import Crop, DamagedVolumeError, Header, Store, cut

__all__ = ["STORES", "Blosc2Store", "Crop", "DamagedVolumeError", "Header", "PlainStore", "Store", "cut", "open_store"]
