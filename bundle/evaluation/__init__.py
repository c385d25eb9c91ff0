# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a result is worth: metrics per case, intervals, paired comparisons; knows no network."""

from bundle.evaluation.folder import EvaluationFolder
from bundle.evaluation.intervals import Bootstrap, Estimate
from bundle.evaluation.names import case_name, match_names
from bundle.evaluation.summary import estimate_text, shortened_list, summary_rows, summary_table
from bundle.evaluation.tables import as_number, read_results, read_table, write_results, write_table

__all__ = [
    "Bootstrap",
    "Estimate",
    "EvaluationFolder",
    "as_number",
    "case_name",
    "estimate_text",
    "match_names",
    "read_results",
    "read_table",
    "shortened_list",
    "summary_rows",
    "summary_table",
    "write_results",
    "write_table",
]
