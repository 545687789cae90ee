"""What stands at the top of the page: the run, its caveats, the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradstats.fitting import ranking as law_tables
from gradstats.network import Network
from gradstats.replaying import ranking
from gradstats.replaying.planning import UNDER_A_SCALE
from gradstats.reporting.advice import advice, law_sentence
from gradstats.reporting.page import Page, Section, Table

Row = dict[str, Any]


def front_page(content: Row, tables: Mapping[str, Table], drawn: list[Section]) -> Page:
    """The page of a run.

    Args:
        content: what the report keeps beside its tables: facts, settings, what was skipped.
        tables: by name.
        drawn: the sections, their figures drawn.
    """
    settings, network = content["settings"], Network(**content["settings"]["network"])
    fits, thresholds, methods = (tables[name] for name in ("fits", "thresholds", "methods"))
    ranked = ranking.ranking(methods)
    return Page(
        title=f"gradstats report: {settings['run']}",
        facts=[(name, value) for name, value in content["facts"]["lines"]],
        advice=advice(ranked, network),
        law=law_sentence(law_tables.best_distribution(fits), thresholds, min(settings["ratios"])),
        ranking=ranked,
        ranking_note=(
            f"At ratio {ranking.headline_ratio(methods):g}, one threshold for the whole model, "
            "nothing sent dense. "
            "error: relative, of what was waiting to be sent; ‖e‖/‖g‖: what error feedback holds "
            "back. bits sent: by one worker to others, 2 (n-1)/n times the bits of an all-reduce, "
            "n-1 times those of a gathered message, (n-1)/n times both codes of a two-shot "
            f"exchange. exchange: encode + decode + collective. Both on {network}; methods are "
            "ranked by the time, those that hold back over 1.5 times as much as Top-k (italic) "
            "last. Grey: error feedback has not settled, so not ranked."
        ),
        caveats=_caveats(content["facts"], settings["device"], methods),
        sections=drawn,
        skipped=content["skipped"],
        settings=settings,
    )


def _caveats(facts: Row, device: str, methods: Table) -> list[str]:
    points = facts["points"]
    sentences = [
        "Open loop: these gradients come from training without compression, which would have "
        "changed them.",
        "Neither loss nor convergence was measured: methods are compared by the time of an "
        "exchange and by what they hold back.",
        f"Timings are of {device}; on another device the ranking may differ. "
        "No overlap with the backward pass is assumed; dense buckets overlap it best.",
    ]
    if points != ["local"]:
        sentences.append(
            f"The gradients were taken at the point “{', '.join(points)}”; a DDP "
            "communication hook sees local gradients, before the reduction."
        )
    sentences += [f"{text[:1].upper()}{text[1:]}." for text in facts["remarks"]]
    if facts["multiplied"] and points == ["local"]:
        sentences.append(UNDER_A_SCALE)
    return [*sentences, *_of_methods(methods, facts["tracked_share"])]


def _of_methods(methods: Table, tracked_share: float | None) -> list[str]:
    """What a reader must know of the replay."""
    sentences = []
    feedback = methods[(methods["feedback"] == "ef") & (methods["status"] == "ok")]
    if len(feedback):
        unsettled = int((feedback["settled"] != True).sum())  # noqa: E712
        sentences.append(
            f"{unsettled} of {len(feedback)} rows with feedback have not settled "
            f"(‖e‖/‖g‖ still moves, or fewer than 200 or 1/ratio steps); they are not ranked."
        )
    if (feedback["rows"] == "track").any() and tracked_share is not None:
        sentences.append(
            "Feedback is replayed on the tracked elements, a random sample of the model "
            f"({tracked_share:.1%})."
        )
    alone = methods[(methods["workers"] == 1) & (methods["status"] == "ok")]
    if alone["collective"].isin(("two_shot", "ring")).any():
        sentences.append(
            "Two-shot exchanges and rings were replayed with one worker, where encoding the sum "
            "may lose nothing; with n workers their squared error is about 2 and (n+1)/2 times "
            "a gather's: see gradstats replay --workers."
        )
    failed = methods[methods["status"] != "ok"]["status"].value_counts()
    sentences += [
        f"{count} {'row' if count == 1 else 'rows'} of methods, {reason}."
        for reason, count in failed.items()
    ]
    broken = int(methods["skipped_rows"].max()) if len(methods) else 0
    if broken:
        sentences.append(f"Up to {broken} rows were skipped for NaN or inf elements.")
    return sentences
