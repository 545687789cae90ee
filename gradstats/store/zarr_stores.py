"""Places as Zarr reads them; imported at the first look into a store, as Zarr takes 0.2 s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr
from zarr.core.buffer import Buffer

from gradstats.store.layout import StoreFormatError
from gradstats.store.places import RESTORE, Place, first_line


class Whole(zarr.storage.WrapperStore[Any]):
    """A Zarr store whose chunks are all there: Zarr alone would read a missing one as zeros."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        """Get one value.

        Raises:
            StoreFormatError: it is a chunk, and missing.
            OSError: an object store does not answer.
        """
        try:
            value: Buffer | None = await super().get(key, *args, **kwargs)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"cannot read {key}: {first_line(error)}") from error
        folder, _, name = key.rpartition("/")
        if value is None and name.startswith("c."):
            raise StoreFormatError(f"cannot read {folder}: chunk {name} is missing; {RESTORE}")
        return value


def zarr_store(place: Path | Place) -> Whole:
    """A place as Zarr reads it."""
    if isinstance(place, Place):
        return Whole(place.zarr_store())
    return Whole(zarr.storage.LocalStore(place, read_only=True))
