# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The index of an archive: what its files are, kept in one file of SQLite, so that a start need not look again.

`bundle.data.find_volumes` starts from it; `bundle.data.index.update.update_index` makes it.
"""
