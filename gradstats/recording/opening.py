"""The store of a recording: claimed as it begins, and given back if it does not."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gradstats.recording.settings import IfExists
from gradstats.recording.slots import KINDS
from gradstats.store import GradientStore, Parameter, Place, Stream
from gradstats.store.refusals import writing


def created(
    place: Path | Place,
    table: Sequence[Parameter],
    story: Mapping[str, object],
    if_exists: IfExists,
    own: Sequence[Parameter],
) -> tuple[GradientStore, int]:
    """The store, claimed for rank 0, and the segment of it that begins.

    The other ranks hear of it afterwards: none of them writes into what another run writes.
    """
    with writing(place):
        store = GradientStore.create(place, table, provenance=story, if_exists=if_exists)
    try:
        store.check_idle()
        store.claim(0, own)
        return store, store.last_segment() + 1
    except BaseException:
        give_back(store)
        raise


def give_back(store: GradientStore, *, removable: bool = True) -> None:
    """Leave the place as it was before an attach that failed, for the next one."""
    if store.fresh and removable:
        store.remove()
    store.close()


def declare(
    store: GradientStore, worker: int, ids: Mapping[str, np.ndarray], wanted: Mapping[str, bool]
) -> None:
    """Make the streams that are not there from the start."""
    if ids:
        store.set_track(ids, worker)
    for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
        store.add_stream(kind, worker)


def recorded_streams(store: GradientStore) -> Iterator[Stream]:
    """Open what a store holds of a recording: whole rows, tracked rows, both or neither."""
    for kind in KINDS:
        with contextlib.suppress(LookupError):
            yield store.stream(kind=kind)
