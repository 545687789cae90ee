"""Checks for the authors of families and compressors."""

from gradstats.testing.compressor_laws import check_compressor, compressor_checks
from gradstats.testing.family_laws import check_family, family_checks

__all__ = ["check_compressor", "check_family", "compressor_checks", "family_checks"]
