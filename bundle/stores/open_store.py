# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A store by its name. To add one, write a class in a file beside this one, and give it a name here."""

from __future__ import annotations

from pathlib import Path

from bundle.errors import UserError
from bundle.stores.blosc2_store import Blosc2Store
from bundle.stores.plain_store import PlainStore
from bundle.stores.store import Store

__all__ = ["STORES", "open_store"]

#: names that `VolumeSet` takes
STORES = ("blosc2", "plain")


def open_store(store: str | Store, folder: Path) -> Store:
    """A store by its name in `STORES`, or the given one.

    Args:
        store: name, or a store.
        folder: of the cache, for a store by name.

    Raises:
        UserError: if there is no store of that name, or its folder is a file.
    """
    if isinstance(store, Store):
        return store
    if store not in STORES:
        raise UserError(f"--store {store!r} is not known: choose one of {', '.join(STORES)}")
    if not next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()).is_dir():
        raise UserError(f"--cache_dir {folder} is a file or lies below one: give a folder")
    return Blosc2Store(folder) if store == "blosc2" else PlainStore(folder)
