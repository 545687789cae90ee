"""Gradients on disk: Zarr v3, crash-safe to append to, lazy to read (docs/format.md)."""

from gradstats.store.addresses import as_place, beside
from gradstats.store.gradient_store import GradientStore
from gradstats.store.layout import FORMAT, FORMAT_VERSION, POINTS, StoreFormatError
from gradstats.store.parameters import Parameter, parameter_table, table_difference
from gradstats.store.places import InZip, Place
from gradstats.store.reading import Stream
from gradstats.store.rows import Row

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "POINTS",
    "GradientStore",
    "InZip",
    "Parameter",
    "Place",
    "Row",
    "StoreFormatError",
    "Stream",
    "as_place",
    "beside",
    "parameter_table",
    "table_difference",
]
