"""One pass over a gradient gives a mergeable value, from which everything else is computed."""

from gradstats.summary.histograms import summarize_counts, summarize_histogram
from gradstats.summary.moments import Moments
from gradstats.summary.summarizing import summarize, summarize_segments
from gradstats.summary.summary import Summary

__all__ = [
    "Moments",
    "Summary",
    "summarize",
    "summarize_counts",
    "summarize_histogram",
    "summarize_segments",
]
