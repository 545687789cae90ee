"""gradstats (gradient statistics)."""
