# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Loads ITK's readers, which takes more than a second: ITK loads its parts when they are first asked for."""

import gc

import itk

_ = itk.ImageIOFactory, itk.imread, itk.F
gc.freeze()  # as in the module before
