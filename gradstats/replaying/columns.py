"""The rows of a replay: one dataclass per table."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from gradstats.runs.tables import column

EACH = MISSING  # a column that every row has
ROUNDS = "Collectives of which each waits for the one before, on two workers; a ring has n on n."


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What names a compressor in a setting."""

    compressor: str = column("Method without its memory, in the grammar.", default=EACH)
    method: str = column("Name of the method.", default=EACH)
    target_ratio: float | None = column("Fraction to keep; NaN without one.", default=EACH)
    feedback: str = column("none, or the memory, such as ef.", default=EACH)
    granularity: str = column("Compressed as a whole, model, or per parameter.", default=EACH)
    dense: str = column("Which parameters are sent dense; empty for none.", default="")
    rows: str = column("Captured rows that it ran on: full or track.", default=EACH)
    wants_feedback: bool = column(
        "Whether the method needs error feedback to train.", default=EACH
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one step of one compressor gave."""

    n: int = column("Elements of the vector.", default=0)
    k: float = column("Elements that the target ratio keeps.")
    khat_over_k: float = column("Elements sent divided by k, the mean over workers; 1 is right.")
    error: float = column("‖g - ĝ‖/‖g‖ of the update ĝ against the mean gradient g.")
    error_compensated: float = column(
        "‖v - ĝ‖/‖v‖ of the compensated gradient v: gradient + residual before the step, as the "
        "memory holds it back; g without a memory."
    )
    cosine: float = column("Cosine of the update and the mean gradient.")
    nmse: float = column("‖g - ĝ‖²/‖g‖².")
    nmse_workers: float = column("‖g - ĝ‖² divided by the mean of the workers' ‖g_w‖².")
    nbytes: float = column("What a worker hands to collectives.", unit="bytes")
    bits: float = column("The same per element.", unit="bits per element")
    reduced_bits: float = column(
        "What of bits goes to all-reduces, as dense parameters do.", unit="bits per element"
    )
    wire: float = column("What a ring of the workers makes of it, per worker.", unit="bytes")
    sum_bits: float = column("Width of the widest sum of integers; 0 without one.", unit="bits")
    fp16_error: float = column("What float sums over workers would lose in float16.")
    residual_ratio: float = column(
        "‖e‖/‖g‖ of the residual e after the step; NaN where nothing is held back."
    )


@dataclass(frozen=True, kw_only=True)
class ReplayRow(Measured, Labels):
    """Table `replay`: a row per step and compressor."""

    workers: int = column("Workers that exchanged.", default=1)
    step: int = column(
        "Step of the captured row; -1 for a compressor that cannot run.", default=-1
    )
    status: str = column("ok, or why nothing was measured.", default="ok")
    sampling_fraction: float = column("Elements of the vector divided by those of the model.")
    left_out: str = column("Parameters that tracked rows do not hold.", default="")
    whole: bool = column("Whether all rows of the compressor are there.", default=True)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Medians over the steps of one method; with memory, over the last quarter of them."""

    steps: int = column("Steps that were measured.", default=0)
    khat_over_k: float = column("Elements sent divided by those asked for.")
    khat_low: float = column("Its 10th percentile.")
    khat_high: float = column("Its 90th percentile.")
    miss: float = column("Median of |ln((k̂+½)/(k+½))|.")
    error: float = column("‖g - ĝ‖/‖g‖.")
    error_compensated: float = column("‖v - ĝ‖/‖v‖ of the compensated gradient v.")
    cosine: float = column("Cosine of update and gradient.")
    bits: float = column(
        "Handed to collectives, which send more or less of it: see sent_bits.",
        unit="bits per element",
    )
    reduced_bits: float = column("What of bits goes to all-reduces.", unit="bits per element")
    nmse: float = column("‖g - ĝ‖²/‖g‖².")
    nmse_workers: float = column("‖g - ĝ‖² divided by the mean of the workers' ‖g_w‖².")
    wire: float = column("What a ring makes of it, per worker.", unit="bytes")
    wire_bits: float = column("The same per element.", unit="bits per element")
    workers: int = column("Workers that exchanged.", default=1)
    sum_bits: float = column("Width of the widest sum of integers of any step.", unit="bits")
    fp16_error: float = column("Most that float sums would lose in float16.")
    residual_ratio: float = column("‖e‖/‖g‖.")
    settled: bool | None = column(
        "Whether ‖e‖/‖g‖ has become flat; empty without feedback.", default=None
    )
    skipped_rows: int = column("Rows that were not measured.", default=0)
    status: str = column("ok, or why no row was measured.", default="ok")


@dataclass(frozen=True, kw_only=True)
class MethodRow(Line, Labels):
    """Table `methods`: a row per method and setting, with what an exchange would cost."""

    encode_seconds: float = column("To encode the whole gradient.", unit="s")
    decode_seconds: float = column("To decode one message.", unit="s")
    collective: str = column("all_gather, all_reduce, two_shot or ring.", default="")
    rounds: int = column(ROUNDS, default=1)
    numel: int = column("Elements of the gradient that was timed.", default=0)
    sent_bits: float = column(
        "What one worker sends to others in such an exchange, as projected.",
        unit="bits per element",
    )
    exchange_seconds: float = column("Encode + collective + decode, as projected.", unit="s")


@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """Table `timings`: a row per method and memory, timed on the last finite gradient."""

    compressor: str = column("Method without its memory, in the grammar.", default=EACH)
    method: str = column("Name of the method.", default=EACH)
    target_ratio: float | None = column("Fraction to keep; NaN without one.", default=EACH)
    feedback: str = column("none, or the memory, such as ef.", default=EACH)
    collective: str = column("all_gather, all_reduce, two_shot or ring.", default=EACH)
    rounds: int = column(ROUNDS, default=EACH)
    n: int = column("Elements of the gradient.", default=EACH)
    encode_seconds: float = column("Median of several encodings.", unit="s")
    decode_seconds: float = column("Median of several decodings.", unit="s")
    encode_over_topk: float = column("encode_seconds over that of topk at the same ratio.")


@dataclass(frozen=True, kw_only=True)
class EqualBitsRow:
    """Table `equal_bits`: a row per method and setting, against exact Top-k of as many bytes."""

    compressor: str = column("Method, in the grammar.", default=EACH)
    method: str = column("Name of the method.", default=EACH)
    target_ratio: float = column("Fraction to keep; NaN without one.")
    bits: float = column("Measured size of a message.", unit="bits per element")
    error: float = column("‖g - ĝ‖/‖g‖ of one encoding.")
    averaged_error: float = column("The same of the mean of 8 encodings.")
    topk_error: float = column("The same of exact Top-k with as many bytes.")
    over_topk: float = column("error divided by topk_error: below 1 is better than Top-k.")


@dataclass(frozen=True, kw_only=True)
class FactorisedRow:
    """Table `factorised`: a row per step and kind of low rank."""

    method: str = column("lowrank/bound, pufferfish/implied or pufferfish/native.", default=EACH)
    kind: str = column("bound, counterfactual or model-change.", default=EACH)
    step: int = column("Step of the captured row; -1 for a whole run.", default=-1)
    error_on: str = column("What the error is measured on.", default="not applicable")
    floats: float = column("Numbers sent per step.")
    nbytes: float = column("Float32 sent per step.", unit="bytes")
    amortised_nbytes: float = column(
        "The mean over the training, full rank at first.", unit="bytes"
    )
    error: float = column("Relative error; see `gradstats.factorised_rows`.")
    cosine: float = column("Cosine of the implied change and the gradient.")
    captured: float = column("Share of ‖g‖² in directions that low rank can follow.")
    weight_error: float = column("Relative error of the weights, which a warm start loses.")
    encode_seconds: float = column("0: nothing is encoded.", unit="s", default=0.0)
    decode_seconds: float = column("0: nothing is decoded.", unit="s", default=0.0)
    step_seconds: float = column("Median of the captured steps.", unit="s")
    status: str = column("ok, or why there is no measurement.", default="ok")
