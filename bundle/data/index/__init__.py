# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads the index of an archive, so that a start need not look at its files. `bundle.archive` makes the index."""
