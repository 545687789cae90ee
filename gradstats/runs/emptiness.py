"""Runs in which there is no gradient to read, and the reason."""

from __future__ import annotations

from contextlib import suppress

from gradstats.store import GradientStore


class NoGradientsError(ValueError):
    """A run holds nothing that a command could read; the message names the reason."""


def check_rows(store: GradientStore) -> None:
    """Check that a store has a row of some kind.

    Raises:
        NoGradientsError: it has none.
    """
    if not any(_rows(store, kind) for kind in ("full", "track", "summary", "shadow")):
        raise NoGradientsError(
            f"{store.path} has no row: the training took no step that was recorded{_asked(store)}"
        )


def check_gradients(store: GradientStore) -> None:
    """Check that a store has a row that describes gradients.

    Raises:
        NoGradientsError: it has none.
    """
    check_rows(store)
    if not any(_rows(store, kind) for kind in ("full", "track", "summary")):
        remedy = "run.shadow_rows() reads them; capture with full= or track= for gradients"
        raise NoGradientsError(
            f"{store.path} has shadow rows only, which are results of compressors: {remedy}"
        )


def _rows(store: GradientStore, kind: str) -> int:
    total = 0
    for worker in store.workers:
        with suppress(LookupError):  # nothing is tracked
            total += len(store.stream(worker, kind))
    return total


def _asked(store: GradientStore) -> str:
    """What was to be recorded, if that was not every step."""
    settings = store.provenance.get("settings") or {}
    every_step = settings.get("track", True) or settings.get("summary")
    return "" if every_step else f"; only steps of full={settings.get('full')} were asked for"
