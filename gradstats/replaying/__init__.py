"""Compressors over captured gradients: rows and their ranking."""

from gradstats.replaying.factorised import factorised_rows
from gradstats.replaying.run import replay

__all__ = ["factorised_rows", "replay"]
