"""Mutants of thresholds: SIDCo's stages, guards and adaptation, k, zeros."""

from tests.mutants.base import within

thresholds = within("thresholds.py", "tests/test_thresholds.py", "tests/test_thresholds_guards.py")
ratios = within("ratios.py", "tests/summary/test_summary.py", "tests/test_thresholds_guards.py")
metrics = within("metrics.py", "tests/test_metrics.py", "tests/replaying/test_folding.py")

MUTANTS = (
    thresholds("value += float(fitted.threshold", "value = float(fitted.threshold"),
    thresholds("summary.excess(value, ", "summary.excess(0.0, "),
    thresholds("ratio = target_ratio * summary.n / summary.nonzero", "ratio = target_ratio"),
    thresholds("    if ratio >= 1:\n", "    if ratio > 1:\n"),
    thresholds("if used and excess.n < 2:", "if used and excess.n < 1:"),
    thresholds("if used and excess.n < 2:", "if excess.n < 2:"),
    thresholds("(1 / (stages - 1))", "(1 / stages)"),
    thresholds("if stages == 1 or ratio >= first_ratio:", "if stages == 1:"),
    thresholds('"gp": (DGamma, DGenPareto)', '"gp": (DGamma, DGamma)'),
    thresholds("fitted.shape <= -0.5", "fitted.shape <= -0.6"),
    thresholds("self.previous < 1 - TOLERANCE", "self.previous <= 1 - TOLERANCE"),
    thresholds("self.previous > 1 + TOLERANCE", "self.previous >= 1 + TOLERANCE"),
    thresholds("rose = mean > self.previous", "rose = mean >= self.previous"),
    thresholds("fell = mean < self.previous", "fell = mean <= self.previous"),
    thresholds("if mean > 1 + TOLERANCE else", "if mean >= 1 + TOLERANCE else"),
    thresholds("if mean < 1 - TOLERANCE else", "if mean <= 1 - TOLERANCE else"),
    thresholds("abs(mean - 1) > abs(self.previous - 1)", "mean > self.previous"),
    thresholds(
        "Stages(count, self.rule, direction, (), mean)", "Stages(count, self.rule, 1, (), mean)"
    ),
    thresholds(
        "math.ceil(math.log2(1 / target_ratio))", "math.floor(math.log2(1 / target_ratio))"
    ),
    thresholds("WINDOW = 5", "WINDOW = 4"),
    ratios("max(1, round(ratio * numel))", "max(1, int(ratio * numel))"),
    ratios("min(numel, max(1, round", "min(numel, max(0, round"),
    metrics("_ratio(lost, sums.grad)", "_ratio(sums.missed, sums.grad)"),
    metrics("reshape(-1) + residual", "reshape(-1) - residual"),
    metrics("sums.residual / sums.grad", "sums.residual / sums.update"),
)
