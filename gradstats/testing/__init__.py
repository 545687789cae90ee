"""Checks for the authors of families and compressors."""

from gradstats.testing.compressor_laws import check_compressor
from gradstats.testing.family_laws import check_family

__all__ = ["check_compressor", "check_family"]
