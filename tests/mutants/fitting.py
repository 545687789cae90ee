"""Mutants of distributions, their estimators and how well they fit."""

from tests.mutants.base import within

FAMILIES = "tests/test_families.py"
GOODNESS = "tests/test_goodness.py"

laplace = within("families/laplace.py", FAMILIES)
dgamma = within("families/dgamma.py", FAMILIES)
dgenpareto = within("families/dgenpareto.py", FAMILIES)
goodness = within("goodness.py", GOODNESS)
bootstrap = within("bootstrap.py", "tests/test_bootstrap.py")
uncertainty = within("uncertainty.py", "tests/test_uncertainty.py")

MUTANTS = (
    laplace("special.xlogy(-self.scale, ratio)", "special.xlogy(-2 * self.scale, ratio)"),
    dgamma("(s - 3) ** 2 + 24 * s", "(s - 3) ** 2 + 12 * s"),
    dgamma("- a * math.log(b) - math.lgamma(a)", "- math.log(b) - math.lgamma(a)"),
    dgamma("i * (i - a) / (z", "i * (i + a) / (z"),
    dgenpareto("(1 - peak) / 2, moments", "(1 + peak) / 2, moments"),
    dgenpareto("moments.mean * (peak + 1) / 2", "moments.mean * (peak - 1) / 2"),
    dgenpareto("-(1 + self.shape) * np.where(inside", "-(1 - self.shape) * np.where(inside"),
    goodness("np.abs(law.kept(magnitudes) - above).max()", "(law.kept(magnitudes) - above).max()"),
    goodness("if law.tail_index <= order:", "if law.tail_index < order:"),
    goodness("ratio * summary.n / summary.nonzero, 1.0", "ratio, 1.0"),
    bootstrap("(1 + farther) / (1 + replicates)", "farther / replicates"),
    bootstrap("farther += again >= distance", "farther += again <= distance"),
    uncertainty("-summary.nonzero * _hessian", "-summary.n * _hessian"),
    uncertainty("/ (4 * one * two)", "/ (2 * one * two)"),
)
