# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a result is worth: metrics per case, intervals, paired comparisons; knows no network."""

from bundle.evaluation.boxes import BOX_METRICS, FROC_RATES, BoxMatches, froc_curve
from bundle.evaluation.folder import EvaluationFolder
from bundle.evaluation.intervals import Bootstrap, Estimate
from bundle.evaluation.mask_metrics import mask_metrics, volume_metrics
from bundle.evaluation.names import case_name, match_names, skipped_reasons
from bundle.evaluation.page import write_page
from bundle.evaluation.probabilities import (
    DECISION_METRICS,
    PROBABILITY_METRICS,
    decision_metrics,
    probability_metrics,
    reliability_curve,
)
from bundle.evaluation.publish import publish
from bundle.evaluation.seen import seen_notes
from bundle.evaluation.summary import estimate_text, shortened_list, summary_rows, summary_table, unmatched_notes
from bundle.evaluation.tables import as_number, read_results, read_table, write_results, write_table

__all__ = [
    "BOX_METRICS",
    "DECISION_METRICS",
    "FROC_RATES",
    "PROBABILITY_METRICS",
    "Bootstrap",
    "BoxMatches",
    "Estimate",
    "EvaluationFolder",
    "as_number",
    "case_name",
    "decision_metrics",
    "estimate_text",
    "froc_curve",
    "mask_metrics",
    "match_names",
    "probability_metrics",
    "publish",
    "read_results",
    "read_table",
    "reliability_curve",
    "seen_notes",
    "shortened_list",
    "skipped_reasons",
    "summary_rows",
    "summary_table",
    "unmatched_notes",
    "volume_metrics",
    "write_page",
    "write_results",
    "write_table",
]
