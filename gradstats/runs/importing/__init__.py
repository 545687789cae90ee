"""Import saved gradients into a store: one file per step and worker."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gradstats.runs.importing.entries import ALL
from gradstats.runs.importing.formats import Content, load
from gradstats.runs.importing.layouts import Layouts, rows_of
from gradstats.runs.importing.order import ORDERS
from gradstats.runs.importing.sources import Found, Source, find_sources
from gradstats.store import GradientStore
from gradstats.store.addresses import as_place
from gradstats.store.whole import check_place, whole

__all__ = ["ALL", "ORDERS", "import_gradients"]


def import_gradients(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    workers: int = 1,
    order: str = "natural",
    step_from: str = "",
    rows: bool = False,
    key: str = "",
    if_exists: str = "error",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> GradientStore:
    """Write gradients from files into a new store, one row per file.

    A row is one step of one worker. Rows are in the order of the numbers in the files' paths.
    All files are read before `out` is created, and `out` appears when it is complete, or not at
    all. Entries that are not floating point are skipped, and their names are reported. A parameter
    that a file lacks, or has as None, has no gradient in that row.

    Args:
        files: files, folders or patterns: .npy (one array, named "gradient"), .npz, .pt, .pth,
            .bin, .ckpt (a tensor or tensors by name, loaded without running code), .safetensors,
            .h5, .hdf5. Shards such as model-00001-of-00002 are one row together. A file whose name
            holds the number of a worker, such as step0_rank1, is a row of that worker.
        out: path or URL of the store to write.
        workers: number of consecutive files that belong to one step, one per worker, such as the
            micro-batches of one batch. With more than 1, steps are 0, 1, 2, …
        order: "natural" (default): files are sorted by all numbers in their paths. The step number
            is the last number in the path that differs between files and increases in file order;
            if there is none, steps are 0, 1, 2, … "given": files keep the order of `files`, and
            steps are 0, 1, 2, …
        step_from: regular expression that is searched for in each path; its group is the number to
            sort by, and the step number if all are whole. Default "": see `order`.
        rows: whether the first axis of every array counts steps, so that one file holds many
            rows. Default False: one file is one step.
        key: name of the entry that holds the gradients in each file, such as "state_dict". "*":
            all entries. Default "": the only entry that can hold them.
        if_exists: "error" (default) or "overwrite": what happens if something exists at `out`.
        progress: function that is called with (files done, files in all); the shards of one row
            count as one file.
        say: function that is called with each line of text about the order and the entries that
            are skipped; default: the lines are printed to stderr.

    Returns:
        The store, open for appending.

    Raises:
        ValueError: no files, a suffix or content that cannot be read, names that give no order,
            layouts that differ, or a number of files that is not a multiple of the workers.
        ImportError: reading .safetensors or .h5 needs a package that is missing.
        FileExistsError: something exists at `out`, and `if_exists` is "error".
        OSError: a file cannot be read, or the object store of a URL does not answer.
    """
    place = as_place(out)
    check_place(place, if_exists)
    paths = [Path(file) for file in files]
    listing = find_sources(paths, workers=workers, order=order, step_from=step_from)
    layouts = Layouts(rows)
    counts = [layouts.add(source.name, _content(source, key)) for source in listing.sources]
    for line in (*_order_lines(listing, counts, rows), *layouts.lines()):
        (say or _to_stderr)(line)
    about = {
        "source": "import",
        "files": sum(len(source.files) for source in listing.sources),
        "first": listing.sources[0].files[0].name,
        "order": listing.remark,
    }
    with whole(place, layouts.table(), provenance=about, if_exists=if_exists) as store:
        numbers = dict.fromkeys(range(listing.workers), 0)
        for done, source in enumerate(listing.sources, 1):
            for grads in rows_of(_content(source, key).arrays, rows):
                step = numbers[source.worker] if rows else source.step
                store.append(step, grads, source.worker)
                numbers[source.worker] += 1
            if progress:
                progress(done, len(listing.sources))
    if store.fault:
        raise OSError(f"cannot import all into {place}: {store.fault}")
    return GradientStore.open(place, "a")


def _content(source: Source, key: str) -> Content:
    """What the files of one row hold together."""
    contents = [load(file, key) for file in source.files]
    arrays = {name: array for each in contents for name, array in each.arrays.items()}
    if sum(len(each.arrays) for each in contents) > len(arrays):
        twice = [name for name in arrays if sum(name in each.arrays for each in contents) > 1]
        remedy = r"if each file is a row, choose the step with --step-from '(\d+)-of-'"
        fact = f"{twice[0]!r} is in several of its shards"
        raise ValueError(f"cannot import {source.name}: {fact}; {remedy}")
    left_out = {name: kind for each in contents for name, kind in each.left_out.items()}
    return Content(arrays, left_out, tuple(text for each in contents for text in each.remarks))


def _order_lines(listing: Found, counts: Sequence[int], rows: bool) -> Iterator[str]:
    """The first, second and last file, each with its step, so that a wrong order is seen."""
    each = f" for each of {listing.workers} workers" if listing.workers > 1 else ""
    total = sum(counts) // listing.workers
    counting = "; steps count 0, 1, 2, … over the rows of all files" if rows else ""
    remark = listing.remark.partition(";")[0] if rows else listing.remark
    if len(listing.sources) == 1:
        remark = "of one file"
    yield f"{total} {'row' if total == 1 else 'rows'}{each}, {remark}{counting}"
    firsts = [source for source in listing.sources if source.worker == 0]
    places = {"first": 0, "second": 1, "last": len(firsts) - 1}
    for word, place in list(places.items())[: len(firsts)]:
        step = "" if rows else f"step {firsts[place].step}, "
        yield f"  {word}: {step}{firsts[place].name}"
    for source in listing.sources[1 : listing.workers]:
        yield f"  worker {source.worker}: {source.name}"
    if listing.aside:
        yield f"left out, files without gradients: {', '.join(listing.aside)}"
    if total == 1 and not rows:
        yield "  one file is one step; --rows takes the first axis of its arrays as steps"


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"gradstats: {line}\n")
