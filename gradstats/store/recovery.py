"""Recovery: a new writer brings the files of a worker back to its last commit."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradstats.store.files import replace_file
from gradstats.store.layout import (
    BLOBS,
    COORDINATES,
    DTYPES,
    GROUP_ATTRIBUTES,
    PREFIXES,
    QUANTITIES,
    Document,
    StoreFormatError,
    chunk_shape,
    encode,
    group_document,
    has_rows,
)

NAMES = frozenset({"present", *COORDINATES}) | frozenset(
    f"{kind}_{dtype}" for kind in (*QUANTITIES, "element_ids") for dtype in DTYPES
)
NAMES |= frozenset(f"{kind}_{part}" for kind in BLOBS for part in ("ends", "data"))


def copy_metadata(path: Path, documents: Mapping[str, Document], keys: Sequence[str]) -> None:
    """Copy the documents in `keys` to where readers of a single array or stream look."""
    for prefix in filter(None, PREFIXES.values()):
        if any(f"{key}/".startswith(prefix) for key in keys):
            members = {
                key.removeprefix(prefix): document
                for key, document in documents.items()
                if key.startswith(prefix)
            }
            group = group_document(GROUP_ATTRIBUTES, members)
            replace_file(path / prefix / "zarr.json", encode(group))
    for key in keys:
        if documents[key]["node_type"] == "array":
            replace_file(path / key / "zarr.json", encode(documents[key]))


def sweep(path: Path, documents: Mapping[str, Document]) -> None:
    """Remove the leftovers of a killed writer: partial files, chunks and arrays beyond the commit.

    Arrays that version 1 does not name are kept.
    """
    for partial in path.rglob("*.partial"):
        partial.unlink()
    for prefix in PREFIXES.values():
        for folder in (path / prefix).glob("*/"):
            document = documents.get(prefix + folder.name)
            if folder.name in NAMES and document is None:
                shutil.rmtree(folder)
            elif document and (has_rows(document) or folder.name.endswith("_data")):
                _sweep_array(folder, document)
    arrays = {key: d for key, d in documents.items() if d["node_type"] == "array"}
    stale = [key for key, d in arrays.items() if not _is_copied(path / key, d)]
    copy_metadata(path, documents, stale + [key for key in documents if key not in arrays])


def _sweep_array(folder: Path, document: Document) -> None:
    rows = chunk_shape(document)[0]
    for chunk in folder.glob("c.*"):
        if int(chunk.name.split(".")[1]) * rows >= document["shape"][0]:
            chunk.unlink()


def _is_copied(folder: Path, document: Document) -> bool:
    if not folder.is_dir():
        raise StoreFormatError(f"cannot append: {folder} is missing; restore it from a copy")
    try:
        return bool(json.loads((folder / "zarr.json").read_bytes()) == document)
    except (FileNotFoundError, ValueError):
        return False
