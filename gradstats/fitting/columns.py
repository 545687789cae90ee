"""The rows of a fit: one dataclass per table."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from gradstats.runs.tables import column

ELEMENTS = "elements"  # the axis of sampling: the elements of one step's gradient
EACH = MISSING  # a column that every row has


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What every row says of its sample."""

    axis: str = column("Axis of sampling: the elements of one step's gradient.", default=ELEMENTS)
    n: int = column("Elements of the group.", default=EACH)
    zeros: int = column("Elements that are exactly zero.", default=EACH)
    nonfinite: int = column("Elements that are NaN or infinite.", default=EACH)
    mean: float = column("Mean of the elements.", unit="gradient", default=EACH)
    sign_asymmetry: float = column(
        "(Positive - negative elements) / both, in [-1, 1]; 0 for a symmetric distribution.",
        default=EACH,
    )


@dataclass(frozen=True, kw_only=True)
class Fit(Counted):
    """One family at one target ratio, fitted to one sample."""

    family: str = column("Family that was fitted.", default=EACH)
    method: str = column("How it was fitted: mle or moments.", default=EACH)
    reference: bool = column(
        "Whether it is a distribution of scipy.stats, fitted by scipy to a subsample; not ranked.",
        default=False,
    )
    shape: float = column("Shape parameter, with scipy's sign; NaN for families without one.")
    scale: float = column("Scale parameter.", unit="gradient")
    shape_se: float = column("Standard error of shape, as if elements were independent.")
    scale_se: float = column(
        "Standard error of scale, as if elements were independent.", unit="gradient"
    )
    ks: float = column("Kolmogorov-Smirnov distance of the magnitudes.")
    anderson_darling: float = column(
        "Anderson-Darling statistic A² divided by the number of elements."
    )
    wasserstein_1: float = column(
        "Wasserstein-1 distance of the magnitudes divided by their mean.",
    )
    wasserstein_2: float = column(
        "Wasserstein-2 distance of the magnitudes divided by their mean.",
    )
    log_likelihood: float = column("Mean log-likelihood.", unit="nats per element")
    aic: float = column("Akaike's information criterion.", unit="nats")
    bic: float = column("Bayesian information criterion.", unit="nats")
    next_log_likelihood: float = column(
        "Mean log-likelihood of the next captured row.", unit="nats per element"
    )
    next_log_likelihood_rescaled: float = column(
        "The same with the scale fitted again, the shape kept.", unit="nats per element"
    )
    bootstrap_p: float = column("p-value of the parametric bootstrap.")
    notes: str = column("What a reader must know of the fit.", default="")
    target_ratio: float = column("Fraction of the elements to keep.", default=EACH)
    threshold: float = column("Magnitude that keeps it by the fit.", unit="gradient")
    khat_over_k: float = column(
        "Elements that the threshold keeps over those it should; 1 is right."
    )
    status: str = column("ok, or why there is no fit.", default="ok")


@dataclass(frozen=True, kw_only=True)
class FitRow(Fit):
    """Table `fits`: a row per step, group, family and target ratio."""

    step: int = column("Step of the captured row.", default=EACH)
    group: str = column("Group of parameters; model is all of them.", default=EACH)
    bootstrap_p_corrected: float = column(
        "The p-value by Holm's method over the groups of the step; there with bootstrap=."
    )
    shape_spread: float = column("Standard deviation of shape between steps.")
    scale_spread: float = column("Standard deviation of scale between steps.", unit="gradient")


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """One threshold of SIDCo's on one sample."""

    variant: str = column("SIDCo's variant: e, gp or p.", default=EACH)
    stages: int = column("Number of stages asked for.", default=EACH)
    stages_used: int = column("Number of stages used.", default=EACH)
    target_ratio: float = column("Fraction of the elements to keep.", default=EACH)
    threshold: float = column("Magnitude above which elements are kept.", unit="gradient")
    khat_over_k: float = column("Elements that it keeps over those it should; 1 is right.")
    guards: str = column("Guards that fired.", default="")


@dataclass(frozen=True, kw_only=True)
class ThresholdRow(Threshold):
    """Table `thresholds`: a row per step, group, SIDCo variant, number of stages and ratio."""

    step: int = column("Step of the captured row.", default=EACH)
    group: str = column("Group of parameters; model is all of them.", default=EACH)


@dataclass(frozen=True, kw_only=True)
class Structure(Counted):
    """What is known of one sample without a distribution.

    One more column per target ratio, `best_k_error_RATIO`, is the error of keeping the k largest.
    """

    mean_abs: float = column("Mean magnitude of the non-zero elements.", unit="gradient")
    max_abs: float = column("Largest finite magnitude.", unit="gradient")
    stable_index: float = column(
        "McCulloch's stable index: 2 for a normal middle, 1 for Cauchy's."
    )
    decay_exponent: float = column("p where sorted magnitudes fall as rank^-p.")
    power_law: bool | None = column("Whether they fall as a power law.", default=None)
    decay: str = column("The verdict on the decay in words, or why there is none.", default="")


@dataclass(frozen=True, kw_only=True)
class StructureRow(Structure):
    """Table `structure`: a row per step and group.

    One more column per target ratio, `best_k_error_RATIO`, is the error of keeping the k largest
    elements, ‖g - top k‖/‖g‖.
    """

    step: int = column("Step of the captured row.", default=EACH)
    group: str = column("Group of parameters; model is all of them.", default=EACH)


@dataclass(frozen=True, kw_only=True)
class ReuseRow:
    """Table `reuse`: a row per exact threshold, followed over later steps."""

    group: str = column("Group of parameters.", default=EACH)
    step: int = column("Step at which the threshold keeps k elements.", default=EACH)
    target_ratio: float = column("k over the elements of the group.", default=EACH)
    threshold: float = column("Magnitude.", unit="gradient", default=EACH)
    last_good: int = column("Last step at which k̂/k was within 20 % of 1.", default=EACH)
    ended: int = column("Step at which it no longer was; -1 while it still is.", default=-1)
    khat_over_k: float = column("k̂/k at the last step it was tried on.", default=1.0)
    reusable_steps: int = column("Steps for which the threshold was good.", default=EACH)


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """Table `pairs`: a row per step, group and pair of families, with Vuong's test."""

    step: int = column("Step of the captured row.", default=EACH)
    group: str = column("Group of parameters; model is all of them.", default=EACH)
    first: str = column("First family.", default=EACH)
    second: str = column("Second family.", default=EACH)
    n: int = column("Finite non-zero elements.", default=EACH)
    mean_log_ratio: float = column(
        "Mean of ln(first / second density): the size of the difference; above 0 for the first.",
        unit="nats per element",
    )
    z: float = column("Vuong's statistic with the variance of blocks; above 0 for the first.")
    p: float = column("Two-sided p-value of the test.")
    better: str = column("The better family, or cannot tell (p of 0.05 or more).", default="")
    z_independent: float = column("The statistic as if elements were independent.")
    inflation: float = column("Variance by blocks divided by the variance as if independent.")
    blocks: int = column("Blocks of contiguous elements; 0 if their order is unknown.", default=0)
    block_length: float = column("Elements per block, zeros among them.")
    correction: str = column("For the numbers of parameters: none, aic or bic.", default=EACH)
    method: str = column("How the families were fitted: mle or moments.", default=EACH)
    relation: str = column("non-nested, nested or overlapping.", default="")
    test: str = column("vuong, chi-squared (of nested families) or none.", default="")
    notes: str = column("Why there is no test, or why it cannot tell.", default="")
    status: str = column("ok, or why there is no comparison.", default="ok")


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """Tables `ranks` and `weight_ranks`: a row per captured step and matrix."""

    step: int = column("Step of the captured row.", default=EACH)
    parameter: str = column("Parameter, with the gate in brackets where it has several matrices.")
    module_type: str = column("Class of its module.", default="")
    stable_rank: float = column("‖G‖²_F / ‖G‖²₂, a number of directions.")
    entropy_rank: float = column("exp of the entropy of the singular values.")
    r90: float = column("Least number of directions that hold 90 % of the squares.")
    r99: float = column("Least number of directions that hold 99 % of the squares.")
    full: float = column("min(rows, columns).")
    status: str = column("ok, or why there is no rank.", default="ok")


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """Table `series`: a row per tracked element, over the steps."""

    axis: str = column("Axis of sampling: the steps.", default="steps")
    parameter: str = column("Parameter of the element.", default=EACH)
    module_type: str = column("Class of its module.", default="")
    element: int = column("Index in the flattened parameter.", default=EACH)
    n: float = column("Steps at which it was finite.")
    zeros: float = column("Share of them at which it was zero.")
    mean: float = column("Mean over the steps.", unit="gradient")
    variance: float = column("Variance over the steps.", unit="gradient²")
    snr: float = column("Signal-to-noise ratio, |mean| / standard deviation.")
    tail_index: float = column("McCulloch's stable index of the deviations; NaN below 20 steps.")
    autocorrelation: float = column("At lag 1; NaN unless the steps are consecutive.")
