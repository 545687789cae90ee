"""The on-disk format, version 1: names, the parameter table and the Zarr v3 documents.

Everything in this module is a value or a pure function; `docs/format.md` describes the same in
prose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstats.store.parameters import Parameter

FORMAT = "gradstats"
FORMAT_VERSION = 1
# optional parts of version 1 that this code can extend: columns that record how a gradient came to
# be, arrays of another length in every row, chunks that several small rows share, tables of a
# worker's own, pseudo-gradients
SHARED_CHUNKS = "shared_chunks"
FEATURES: tuple[str, ...] = ("context", "outer", "ragged", SHARED_CHUNKS, "worker_tables")

POINTS = ("unknown", "local", "reduced", "clipped", "outer")  # a point's code is its place here
QUANTITIES = ("grad", "weight")

# name -> how Zarr stores it; Zarr has no bfloat16, so its bits travel as uint16
DTYPES: Mapping[str, str] = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "uint16",
}
ITEMSIZE: Mapping[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

COORDINATES: Mapping[str, str] = {
    "step": "int64",
    "micro_step": "int64",
    "segment": "int64",
    "point": "int8",
    "loss": "float64",
    "learning_rate": "float64",
    "grad_norm": "float64",
    # of the feature "context": not in older stores
    "loss_scale": "float64",
    "unscaled": "int8",
    "skipped": "int8",
    "clip_norm": "float64",
    "clip_coefficient": "float64",
    "world_size": "int64",
    "step_seconds": "float64",
    # of the feature "outer"
    "inner_steps": "int64",
}
UNKNOWN: Mapping[str, int] = {
    "micro_step": 0,
    "unscaled": -1,
    "skipped": 0,
    "world_size": 0,
    "inner_steps": 0,
}
"""What stands for "not known" in the integer coordinates; in the others it is NaN."""

# a stream's place in its worker
PREFIXES: Mapping[str, str] = {
    "full": "",
    "track": "track/",
    "summary": "summary/",
    "shadow": "shadow/",
}
BLOBS = ("summary", "shadow")  # streams whose rows are bytes, in the ragged array of their name
GROUP_ATTRIBUTES: Mapping[str, str] = {"coordinates": " ".join(COORDINATES)}  # xarray looks here

CHUNK_BYTES = 8_000_000
CHUNK_ROWS = 32  # at most so many small rows share a chunk
COLUMN_CHUNK_ROWS = 1024
RAGGED_CHUNK_BYTES = 1_000_000
PRESENT_CHUNK_BYTES = 65_536

Document = dict[str, Any]
"""The parsed content of one zarr.json."""


class StoreFormatError(ValueError):
    """Raised if a path holds no complete store of a version that this code reads."""


def chunk_elements(width: int, itemsize: int) -> int:
    """Return the number of elements of one chunk.

    It is d / ceil(d·itemsize / 8 MB), rounded up, so that chunks are even.
    """
    pieces = max(1, math.ceil(width * itemsize / CHUNK_BYTES))
    return max(1, math.ceil(width / pieces))


def chunk_rows(width: int, itemsize: int) -> int:
    """Return the number of rows that share a chunk, so that a small row needs no file of its own.

    It is min(32, ceil(8 MB / (d·itemsize))), and 1 if a row has several chunks.
    """
    nbytes = width * itemsize
    return 1 if nbytes > CHUNK_BYTES else min(CHUNK_ROWS, math.ceil(CHUNK_BYTES / max(1, nbytes)))


def encode(document: Document) -> bytes:
    """Return the bytes of a zarr.json."""
    return json.dumps(document, separators=(",", ":")).encode()


def group_document(
    attributes: Mapping[str, Any], members: Mapping[str, Document] | None = None
) -> Document:
    """Describe a Zarr v3 group; with `members`, their documents are inline (consolidated)."""
    group: Document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if members is not None:
        inline = {"kind": "inline", "must_understand": False, "metadata": dict(members)}
        group["consolidated_metadata"] = inline
    return group


def array_document(
    dtype: str, shape: Sequence[int], chunks: Sequence[int], dimensions: Sequence[str]
) -> Document:
    """Describe a Zarr v3 array of raw little-endian chunks named c.ROW.COLUMN.

    Gradients do not compress (1.07-1.15 times), so there is no codec beyond the bytes themselves;
    the dot keeps all chunks of an array in one folder, so that a row needs no directory.
    """
    one_byte = dtype in ("bool", "int8", "uint8")
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": False if dtype == "bool" else 0,
        "codecs": [
            {"name": "bytes"}
            if one_byte
            else {"name": "bytes", "configuration": {"endian": "little"}}
        ],
        "attributes": {},
        "dimension_names": list(dimensions),
    }


def vector_documents(
    quantity: str, row_widths: Mapping[str, int], *, shared: bool
) -> dict[str, Document]:
    """Describe the arrays of one quantity, one array per dtype, without rows.

    Args:
        quantity: "grad" or "weight".
        row_widths: elements per row, by dtype.
        shared: whether small rows share chunks.
    """
    documents: dict[str, Document] = {}
    for dtype, width in row_widths.items():
        itemsize = ITEMSIZE[dtype]
        rows = chunk_rows(width, itemsize) if shared else 1
        chunks = (rows, chunk_elements(width, itemsize))
        vector = array_document(DTYPES[dtype], (0, width), chunks, ("row", f"element_{dtype}"))
        vector["attributes"] = {"dtype": dtype}
        documents[f"{quantity}_{dtype}"] = vector
    return documents


def ragged_dtypes(kind: str, table: Sequence[Parameter]) -> dict[str, str]:
    """List the ragged arrays of a stream and their dtypes.

    A parameter with sparse gradients has two, named by its index in the table: the coalesced
    indices, each flattened, and the values. A stream of bytes has one: the bytes.
    """
    if kind in BLOBS:
        return {kind: "uint8"}
    sparse = [(i, p) for i, p in enumerate(table) if p.layout == "sparse" and kind == "full"]
    indices = {f"indices_{place}": "int64" for place, _ in sparse}
    return indices | {f"values_{place}": p.dtype for place, p in sparse}


def ragged_documents(names: Mapping[str, str]) -> dict[str, Document]:
    """Describe arrays whose length differs from row to row.

    They are `NAME_ends` [row] and `NAME_data` [item_NAME].
    """
    documents: dict[str, Document] = {}
    for name, dtype in names.items():
        stored = DTYPES.get(dtype, dtype)
        itemsize = ITEMSIZE.get(dtype, 8 if dtype == "int64" else 1)
        chunks = (RAGGED_CHUNK_BYTES // itemsize,)
        documents[f"{name}_ends"] = array_document("int64", (0,), (COLUMN_CHUNK_ROWS,), ("row",))
        documents[f"{name}_data"] = array_document(stored, (0,), chunks, (f"item_{name}",))
        documents[f"{name}_data"]["attributes"] = {"dtype": dtype}
    return documents


def stream_documents(
    row_widths: Mapping[str, int], parameters: int, ragged: Mapping[str, str], *, shared: bool
) -> dict[str, Document]:
    """Describe the arrays of a stream without rows.

    They are gradients, ragged arrays, `present` and coordinates.
    """
    vectors = vector_documents("grad", row_widths, shared=shared)
    documents = {**vectors, **ragged_documents(ragged)}
    chunks = (min(COLUMN_CHUNK_ROWS, max(1, PRESENT_CHUNK_BYTES // parameters)), parameters)
    documents["present"] = array_document("bool", (0, parameters), chunks, ("row", "parameter"))
    for name, dtype in COORDINATES.items():
        documents[name] = array_document(dtype, (0,), (COLUMN_CHUNK_ROWS,), ("row",))
    codes = {"flag_values": list(range(len(POINTS))), "flag_meanings": " ".join(POINTS)}
    documents["point"]["attributes"] = codes
    return documents


def element_ids_document(dtype: str, count: int, width: int) -> Document:
    """Describe the array of sampled element ids of one dtype.

    The ids are `count` of the `width` elements of a row.
    """
    dims = (f"element_{dtype}",)
    document = array_document("int64", (count,), (chunk_elements(count, 8),), dims)
    document["attributes"] = {"sampling_fraction": count / width if width else 1.0}
    return document


def stream_rows(documents: Mapping[str, Document], prefix: str) -> int:
    """Count the committed rows of the stream whose arrays start with `prefix`."""
    step = documents.get(prefix + "step")
    return int(step["shape"][0]) if step else 0


def chunk_shape(document: Document) -> tuple[int, ...]:
    """Return the shape of every chunk of an array; the last ones have it too."""
    return tuple(document["chunk_grid"]["configuration"]["chunk_shape"])


def has_rows(document: Document) -> bool:
    """Return whether this is an array that grows with its stream."""
    return bool(document["node_type"] == "array" and document["dimension_names"][0] == "row")


def in_stream(key: str, prefix: str) -> bool:
    """Return whether this is the key of an array of the stream that starts with `prefix`."""
    return key.startswith(prefix) and "/" not in key.removeprefix(prefix)


def lengthened(
    documents: Mapping[str, Document], prefix: str, rows: int, items: Mapping[str, int]
) -> dict[str, Document]:
    """Return metadata with a stream's arrays `rows` long, and its ragged ones `items` long."""

    def grown(key: str, document: Document) -> Document:
        if not in_stream(key, prefix):
            return document
        if key.removeprefix(prefix) in items:
            return {**document, "shape": [items[key.removeprefix(prefix)]]}
        if not has_rows(document):
            return document
        return {**document, "shape": [rows, *document["shape"][1:]]}

    return {key: grown(key, document) for key, document in documents.items()}


def check_kind(kind: str) -> None:
    """Check that rows may be of a kind.

    Raises:
        ValueError: they may not.
    """
    if kind not in PREFIXES:
        raise ValueError(f"kind must be one of {', '.join(PREFIXES)}, got {kind!r}")
