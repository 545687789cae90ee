"""Mutants of distributions, their estimators and how well they fit."""

from tests.mutants.base import within

FAMILIES = "tests/families/test_families.py"
GOODNESS = "tests/fitting/test_goodness.py"

laplace = within("families/laplace.py", FAMILIES)
dgamma = within("families/dgamma.py", FAMILIES)
dgenpareto = within("families/dgenpareto.py", FAMILIES)
normal = within("families/normal.py", FAMILIES)
lognorm = within("families/lognorm.py", FAMILIES)
dweibull = within("families/dweibull.py", FAMILIES)
gennorm = within("families/gennorm.py", FAMILIES)
student = within("families/t.py", FAMILIES)
goodness = within("fitting/goodness.py", GOODNESS)
bootstrap = within("fitting/bootstrap.py", "tests/fitting/test_bootstrap.py")
uncertainty = within("fitting/uncertainty.py", "tests/fitting/test_uncertainty.py")

vuong = within("fitting/vuong.py", "tests/fitting/test_vuong.py")

grid = within("kernels/grid.py", "tests/summary/test_summary.py", "tests/kernels/test_counting.py")

MUTANTS = (
    grid("self._values(low | rest)", "self._values(low)", "tests/summary/test_encoding.py"),
    grid("- 1)) != 0)", "- 1)) == 0)"),
    grid("self.kinds * (INFINITY[self.dtype]", "self.kinds + (INFINITY[self.dtype]"),
    laplace("xlogy(-self.scale, ", "xlogy(-2 * self.scale, "),
    dgamma("(s - 3) ** 2 + 24 * s", "(s - 3) ** 2 + 12 * s"),
    dgamma("- a * math.log(b) - math.lgamma(a)", "- math.log(b) - math.lgamma(a)"),
    dgamma("i * (i - a) / (z", "i * (i + a) / (z"),
    dgenpareto("(1 - peak) / 2, moments", "(1 + peak) / 2, moments"),
    dgenpareto("moments.mean * (peak + 1) / 2", "moments.mean * (peak - 1) / 2"),
    dgenpareto("-(1 + self.shape) * np.where(inside", "-(1 - self.shape) * np.where(inside"),
    normal("moments.mean**2 + var", "moments.mean**2"),
    normal("special.log_ndtr(-z) + math.log(2)", "special.log_ndtr(-z)"),
    lognorm("math.exp(-variance / 2)", "math.exp(variance / 2)"),
    dweibull("moments.mean / math.gamma(1 + 1 / shape)", "moments.mean / math.gamma(1 / shape)"),
    dweibull(
        "(shape - 1) * mean_log - 1",
        "shape * mean_log - 1",
        survives="it adds the mean of ln |g| to the likelihood of every shape alike",
    ),
    gennorm("- math.lgamma(1 / shape) - 1 / shape", "- math.lgamma(1 / shape)"),
    student("(shape - 2) / _mean(shape) ** 2", "(shape - 2) / _mean(shape)"),
    student("(self.shape + 1) / 2 * softplus", "self.shape / 2 * softplus"),
    goodness("np.abs(law.kept(magnitudes) - above).max()", "(law.kept(magnitudes) - above).max()"),
    goodness("if law.tail_index <= order:", "if law.tail_index < order:"),
    goodness("ratio * summary.n / summary.nonzero, 1.0", "ratio, 1.0"),
    bootstrap("(1 + farther) / (1 + fitted)", "farther / fitted"),
    bootstrap("farther += again >= distance", "farther += again <= distance"),
    uncertainty("-summary.nonzero * _hessian", "-summary.n * _hessian"),
    uncertainty("/ (4 * one * two)", "/ (2 * one * two)"),
    vuong("/ n * count / (count - 1)", "/ n"),
    vuong("more * math.log(n) / 2", "more * math.log(n)"),
    vuong("gain = 2 * log_ratio", "gain = log_ratio"),
    vuong("blocks.sizes * mean", "0 * mean"),
)
