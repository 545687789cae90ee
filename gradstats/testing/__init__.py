"""Checks for the authors of families and compressors."""

from gradstats.testing.compressor_laws import check_compressor, compressor_checks
from gradstats.testing.family_laws import check_family, family_checks
from gradstats.testing.host_reads import HostReads, counting_host_reads

__all__ = [
    "HostReads",
    "check_compressor",
    "check_family",
    "compressor_checks",
    "counting_host_reads",
    "family_checks",
]
