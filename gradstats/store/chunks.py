"""Chunks of a worker's arrays that are sent to an object store, by key, and their bytes."""

import json
from collections.abc import Iterator, Mapping
from hashlib import shake_128
from itertools import product

from gradstats.store.layout import Document, chunk_shape, encode, has_rows, lengthened

_STAMP = 32  # bytes beyond the rows


def documents_of(group: bytes) -> Mapping[str, Document]:
    """Read the metadata of a worker's arrays from its zarr.json."""
    documents: Mapping[str, Document] = json.loads(group)["consolidated_metadata"]["metadata"]
    return documents


def without_rows(group: bytes) -> bytes:
    """Return the zarr.json as it was before the first row."""
    document = json.loads(group)
    inline = document["consolidated_metadata"]
    own = {key: each for key, each in inline["metadata"].items() if "/" not in key}
    arrays = {key: each for key, each in own.items() if each["node_type"] == "array"}
    ragged = {key: 0 for key, each in arrays.items() if _has_items(each)}
    return encode(
        {
            **document,
            "consolidated_metadata": {**inline, "metadata": lengthened(arrays, "", 0, ragged)},
        }
    )


def grown_chunks(documents: Mapping[str, Document], lengths: Mapping[str, int]) -> Iterator[str]:
    """List by key the chunks of arrays that have grown from these lengths."""
    for key, document in documents.items():
        first = lengths.get(key, 0)
        if document["node_type"] != "array" or first >= document["shape"][0]:
            continue
        rows, *others = zip(document["shape"], chunk_shape(document), strict=True)
        leading = range(first // rows[1], -(-rows[0] // rows[1]))
        for index in product(leading, *(range(-(-length // size)) for length, size in others)):
            yield f"{key}/{'.'.join(['c', *map(str, index)])}"


def is_a_row(document: Document) -> bool:
    """Return whether a chunk of this array belongs to one row, so that it never grows."""
    return has_rows(document) and chunk_shape(document)[0] == 1


def is_finished(chunk: str, document: Document) -> bool:
    """Return whether no row will be added to a chunk, which appending does not read either."""
    rows = chunk_shape(document)[0]
    if rows == 1 or not document["dimension_names"][-1].startswith("element_"):
        return is_a_row(document)
    place = int(chunk.rpartition("/")[2].split(".")[1])
    return has_rows(document) and (place + 1) * rows <= int(document["shape"][0])


def start_of_last(document: Document) -> int:
    """Return the first row of the last chunk; beyond the end if every chunk belongs to one row."""
    length, size = document["shape"][0], chunk_shape(document)[0]
    if not has_rows(document) and not _has_items(document):
        return 0
    return int(length if size == 1 else max(0, length - 1) // size * size)


def stamped(chunk: str, data: bytes, document: Document, mark: str) -> bytes:
    """Return the bytes of a chunk, marked so that only this writer would send them.

    The tags of an object store may depend on the content alone, and a writer that has stalled
    trusts the tag: rows of zeros would leave the content of a chunk, and so its tag, unchanged.
    The bytes beyond the rows, which are never read, therefore begin with bytes of this writer;
    none of them is a possible value of a flag.

    Args:
        chunk: the key of the chunk.
        data: the bytes in the local folder.
        document: the metadata of its array.
        mark: the mark of the writer.
    """
    if is_a_row(document) or not (has_rows(document) or _has_items(document)):
        return data
    size = chunk_shape(document)[0]
    place = int(chunk.rpartition("/")[2].split(".")[1])
    used = min(size, document["shape"][0] - place * size) * (len(data) // size)
    stamp = bytes(0x80 + each % 127 for each in shake_128(mark.encode()).digest(_STAMP))
    return (data[:used] + stamp).ljust(len(data), b"\0")[: len(data)]


def _has_items(document: Document) -> bool:
    return bool(document["dimension_names"][0].startswith("item_"))
