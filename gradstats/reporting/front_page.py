"""What stands at the top of the page: the run, its caveats, the answers."""

from __future__ import annotations

from dataclasses import asdict

from gradstats.fitting import ranking as law_tables
from gradstats.network import Network
from gradstats.replaying import ranking as tables
from gradstats.replaying.planning import UNDER_A_SCALE
from gradstats.reporting.advice import advice, law_sentence
from gradstats.reporting.page import Page, Section, Table
from gradstats.runs.results import Results
from gradstats.runs.run import FITTED, Run


def front_page(
    run: Run,
    results: Results,
    network: Network,
    drawn: list[Section],
) -> Page:
    """The page of a run: what stands at its top, and the sections that were drawn."""
    ratios = results.settings["ratios"]
    fits, thresholds, methods = (results.table(name) for name in ("fits", "thresholds", "methods"))
    ranked = tables.ranking(methods)
    laws = law_tables.best_law(fits)
    return Page(
        title=f"gradstats report: {results.settings['run']}",
        facts=_facts(run, results),
        advice=advice(ranked, network),
        law=law_sentence(laws, thresholds, min(ratios)),
        ranking=ranked,
        ranking_note=(
            f"At ratio {tables.headline_ratio(methods):g}, one threshold for the whole model, "
            "nothing sent dense. "
            "error: relative, of what was waiting to be sent; ‖e‖/‖g‖: what error feedback holds "
            f"back. exchange: encode + decode + collective, projected on {network}; methods are "
            "ranked by it, those that hold back over 1.5 times as much as Top-k (italic) last. "
            "Grey: error feedback has not settled, so not ranked."
        ),
        caveats=_caveats(run, results, methods),
        sections=drawn,
        skipped=results.skipped,
        settings={**results.settings, "network": asdict(network)},
    )


def _facts(run: Run, results: Results) -> list[tuple[str, str]]:
    made = run.store.provenance
    rows = {kind: run.rows(kind) for kind in FITTED}
    steps = [int(run.stream(kind).steps[row]) for kind, found in rows.items() for row in found]
    elements = sum(part.numel for part in run.parts("full"))
    tracked = (
        f"{len(rows['track'])} of {sum(part.numel for part in run.parts('track')):,} elements"
    )
    return [
        ("model", str(made.get("model", "unknown"))),
        ("parameters", f"{elements:,} elements in {len(run.names)} tensors"),
        ("observation point", ", ".join(_points(run))),
        ("steps", f"{min(steps)}–{max(steps)}"),
        ("full rows", str(len(rows["full"]))),
        ("tracked rows", tracked if rows["track"] else "none"),
        *([("rows of Summaries", str(len(rows["summary"])))] if rows["summary"] else []),
        ("captured on", str(made.get("device", "unknown"))),
        ("timed on", results.settings["device"]),
    ]


def _points(run: Run) -> list[str]:
    kind = run.fitted_kind
    points = run.stream(kind).coordinates["point"][run.rows(kind)]
    return sorted({str(point) for point in points})


def _caveats(run: Run, results: Results, methods: Table) -> list[str]:
    points = _points(run)
    sentences = [
        "Open loop: these gradients come from training without compression, which would have "
        "changed them.",
        "Neither loss nor convergence was measured: methods are compared by the time of an "
        "exchange and by what they hold back.",
        f"Timings are of {results.settings['device']}; on another device the ranking may differ. "
        "No overlap with the backward pass is assumed; dense buckets overlap it best.",
    ]
    if points != ["local"]:
        sentences.append(
            f"The gradients were taken at the point “{', '.join(points)}”; a DDP "
            "communication hook sees local gradients, before the reduction."
        )
    sentences += [f"{text[:1].upper()}{text[1:]}." for text in run.remarks]
    if run.multiplied and points == ["local"]:
        sentences.append(UNDER_A_SCALE)
    feedback = methods[(methods["feedback"] == "ef") & (methods["status"] == "ok")]
    if len(feedback):
        unsettled = int((feedback["settled"] != True).sum())  # noqa: E712
        sentences.append(
            f"{unsettled} of {len(feedback)} feedback lines have not settled "
            f"(‖e‖/‖g‖ still moves, or fewer than 200 or 1/ratio steps); they are not ranked."
        )
    if (feedback["rows"] == "track").any():
        sentences.append(
            "Feedback is replayed on the tracked elements, a random sample of the model "
            f"({_tracked_share(run):.1%})."
        )
    failed = methods[methods["status"] != "ok"]["status"].value_counts()
    sentences += [f"{count} lines of methods, {reason}." for reason, count in failed.items()]
    broken = int(methods["skipped_rows"].max()) if len(methods) else 0
    if broken:
        sentences.append(f"Up to {broken} rows were skipped for NaN or inf elements.")
    return sentences


def _tracked_share(run: Run) -> float:
    """Tracked elements over all elements of the model, those with sparse gradients included."""
    ids = run.stream("track").element_ids or {}
    return sum(map(len, ids.values())) / max(1, sum(part.numel for part in run.table))
