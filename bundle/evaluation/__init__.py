# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a result is worth: metrics per case, intervals, paired comparisons; knows no network."""
