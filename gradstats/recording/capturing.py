"""Capture: record the gradients of a training run while it runs."""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from gradstats.recording.admission import Plan
from gradstats.recording.budget import Budget
from gradstats.recording.comm_hook import check_comm_hook, register_comm_hook
from gradstats.recording.handle import Capture
from gradstats.recording.idle import Idle
from gradstats.recording.introduction import (
    idle_by_environment,
    introduction,
    recorder,
    size_of,
    surprises,
)
from gradstats.recording.messages import Reports, write_line
from gradstats.recording.notes import note
from gradstats.recording.opening import created, declare, give_back
from gradstats.recording.processes import (
    another_model,
    distribution,
    group_is_missing,
    shared_store,
)
from gradstats.recording.provenance import provenance
from gradstats.recording.pseudo import names_of
from gradstats.recording.reduce_scatter import check_reduce_scatter, record_reduce_scatters
from gradstats.recording.registry import make_way, register
from gradstats.recording.schedules import as_schedule
from gradstats.recording.selection import (
    Optimizers,
    check_model,
    select,
    unwrap_model,
    unwrap_optimizers,
)
from gradstats.recording.settings import CaptureSettings
from gradstats.recording.sharding import backward_counter, tables
from gradstats.recording.slots import Point
from gradstats.recording.sources import check_weights, checked_limit, sources_of, tracked
from gradstats.recording.writer import OnSummary, Shadowing, Writer
from gradstats.settings import takes_settings
from gradstats.store import Place, as_place
from gradstats.store.refusals import fact_of
from gradstats.summary import Summary


@takes_settings(CaptureSettings)
def capture(
    model: nn.Module,
    optimizer: Optimizers,
    path: str | os.PathLike[str],
    settings: CaptureSettings,
) -> Capture | Idle:
    """Record the gradients of a training, from now until `close()`.

    The gradients themselves are never touched, and nothing is raised into the training: rows that
    cannot be stored are counted and logged once.

    Args:
        model: The module whose parameter names the rows go by; wrapped ones are unwrapped.
        optimizer: A torch optimizer, or a wrapper with one in `.optimizer`; a list of them where
            each updates some of the parameters (an optimizer in backward): a step is then over
            when one of them is called again.
        path: The store to write, by custom `NAME.zarr`: a folder, or a URL such as
            `s3://bucket/run.zarr`, to which rows are sent in the background.
        settings: Keywords, one per field of `CaptureSettings`, as follows.
        full: Which steps get a whole row: `every(n)`, `log_spaced(n)`, `window(a, b)`, a
            list of steps, any callable step -> bool, or None.
        track: How many elements to keep at every step, the same random ones; 0 or None for none.
        summary: Keep a Summary of each parameter at every step, made on its device: for models too
            big to store. Distributions can be fitted to them; a replay needs gradients.
        on_summary: Called with (step, {name: Summary}) at every step, in a thread of its own;
            implies `summary`.
        shadow: Compressors, such as `"ef(topk(0.01))"`, that get the tracked elements of every
            step beside the training and keep their memories; what each did is stored.
        weights: Keep the parameters' values with every full row, as they are just before the
            optimizer changes them.
        at: Where in the step: "local" (this process's gradient, before reduction and clipping, on
            every process), "reduced" (as the optimizer is about to get it, before
            `clip_grad_norm_`), "clipped" (after), "outer" (pseudo-gradients that `record` is
            given, on every process), or several. "auto" is "local" under
            DistributedDataParallel and else "reduced". Reduced and clipped gradients are recorded
            by rank 0, sharded ones (FSDP2) by every process; who has none gets an `Idle` handle.
        parameters: Globs over parameter names.
        max_bytes: The most that may lie at `path`, such as `"20GB"`.
        if_exists: What to do with a store at `path`: "error", "resume" (adds a segment) or
            "overwrite".
        when_full: What to do when the writer is behind: "block" (the training waits), "drop" (the
            row is not taken, and counted), "thin" (the same, and full rows come half as often).
        local_by: How local gradients are seen: by "hooks" on the parameters, or by a "comm_hook",
            which must be the only one of the DistributedDataParallel model and reduces alike.
        start_step: Number of the first optimizer step.
        seed: Seed of the choice of tracked elements.
        quiet: Print nothing on stderr but errors and warnings.

    Returns:
        The handle: `log(loss=...)`, `record(...)`, `step`, `stats`, `close()`; a context
        manager.

    Raises:
        ValueError: A setting out of range, nothing to record, or a point that cannot be seen.
        TypeError: Something is not a model, an optimizer or a schedule.
        FileExistsError: There is something at `path`.
        OSError: The object store of a URL does not answer.
        StoreFormatError: What is at `path` is not a store that can be added to or replaced.
        BlockingIOError: Another process writes to `path`, or another recording of this one whose
            optimizer is alive; `close_all` closes that.
        RuntimeError: The processes of a training do not agree on the store.
    """
    return capture_by(model, optimizer, path, settings)


def capture_by(
    model: nn.Module,
    optimizer: Optimizers,
    path: str | os.PathLike[str],
    settings: CaptureSettings,
) -> Capture | Idle:
    """Record as `capture` does, by settings that are one value already."""
    check_model(model)
    inner = unwrap_optimizers(optimizer)
    chosen = select(model, inner, settings.parameters)
    tensors = [one.tensor for one in chosen]
    spread = distribution(model, chosen)
    points = spread.points(settings.at)
    by_comm_hook = settings.local_by == "comm_hook" and "local" in points
    if by_comm_hook:
        check_comm_hook(spread.ddp)
    reports, place = Reports(quiet=settings.quiet), as_place(path)
    whole, own = tables(model, chosen)
    if not points:
        if group_is_missing():
            write_line(idle_by_environment(spread))
        if not another_model(spread, place, own):
            return Idle(settings.start_step)
        spread = replace(spread, first=True)
        points = spread.points(settings.at)
    scattered = False
    if spread.fully and "local" in points:  # whole gradients, not shards
        scattered, spread = check_reduce_scatter(model, chosen), replace(spread, sharded=False)
        if settings.weights:
            raise ValueError(f"weights must be off: {spread.by} leaves shards of them here")
    schedule = as_schedule(settings.full)
    shadows = _shadows(settings.shadow, points, settings.seed)
    if settings.weights:
        check_weights(chosen, own)
    own = own if spread.sharded else whole
    ids = tracked(own, settings, share=size_of(own) / max(1, size_of(whole)), spread=spread)
    sources = sources_of(own, tensors, points, settings, ids)
    limit = checked_limit(settings.max_bytes, sources)
    story = provenance(unwrap_model(model), inner[0], settings.plain, command=sys.argv)

    make_way(place)
    create = partial(created, place, whole, story, settings.if_exists, own)
    with contextlib.ExitStack() as undo:
        store, segment = shared_store(spread, place, create)
        # with several processes, others may write there from now on
        undo.callback(give_back, store, removable=spread.world_size == 1)
        if spread.rank:
            store.claim(spread.rank, own)
        declare(store, spread.rank, ids, {"summary": settings.summaries, "shadow": bool(shadows)})
        alone = {"local", "outer"}.isdisjoint(points) and spread.one_model
        budget = Budget(max(0, (limit - store.nbytes) // (1 if alone else spread.world_size)))
        for line in surprises(model, inner, chosen):
            reports.news(line)
        for line in introduction(store, own, sources, schedule, limit):
            reports.news(line)
        if spread.world_size > 1:
            source = ", by RANK and WORLD_SIZE: no process group" if group_is_missing() else ""
            reports.news(recorder(spread, points) + source)
        plan = Plan(
            schedule,
            settings.start_step,
            budget,
            thin=settings.when_full == "thin",
            world_size=spread.world_size,
            by_comm_hook=by_comm_hook or scattered,
            count_backwards=backward_counter(model) if spread.by else None,
            names=names_of(model, chosen) if "outer" in points else {},
        )
        lost = partial(_lost, budget, reports, place)
        callback = settings.on_summary and _guarded(settings.on_summary, reports)
        writer = Writer(store, spread.rank, segment, lost, reports.once, callback, shadows)
        undo.callback(_ended, writer)
        handle = Capture(
            unwrap_model(model), inner, tensors, sources, writer, plan, reports, callback
        )
        undo.callback(handle.detach)
        if by_comm_hook:
            register_comm_hook(spread.ddp, handle)
        if scattered:
            record_reduce_scatters(model, handle, reports)
        register(handle, writer)
        where = place.absolute() if isinstance(place, Path) else place
        note("recording", path=str(where), segment=segment)
        undo.pop_all()
    return handle


def _shadows(specs: Sequence[str], points: Sequence[Point], seed: int) -> dict[str, Shadowing]:
    """Compressors that run beside the training, by point; nobody else pays for their import."""
    if not specs:
        return {}
    from gradstats.replaying.shadow import Shadow

    return {point: Shadow(specs, seed) for point in points}


def _ended(writer: Writer) -> None:
    """End the thread of a recording that never began."""
    writer.end()
    writer.join()


def _lost(
    budget: Budget, reports: Reports, place: Path | Place, step: int, nbytes: int, error: Exception
) -> None:
    """Say that rows could not be written, and have their bytes back."""
    budget.give_back(nbytes)
    text = f"cannot write step {step} to {place}: {fact_of(place, error)}"
    reports.once("writing", f"{text}; such rows are dropped, training goes on")


def _guarded(on_summary: OnSummary, reports: Reports) -> OnSummary:
    """The same, but its faults are said once."""

    def told(step: int, summaries: dict[str, Summary]) -> None:
        try:
            on_summary(step, summaries)
        except Exception as error:
            text = f"on_summary failed at step {step}: {type(error).__name__}: {error}"
            reports.once("on_summary", f"{text}; training goes on")

    return told
