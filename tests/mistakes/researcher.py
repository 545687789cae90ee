"""A researcher with a compressor and a distribution of his own."""

from tests.mistakes.mistake import Mistake

DTYPE = "must have a dtype of float32, float64, float16, bfloat16"


def replayed(name: str, spec: str, *answer: str) -> Mistake:
    """The same spec given to `gradstats.replay` and to `--compressors`."""
    return Mistake(
        name,
        f"gradstats.replay('run.zarr', {spec!r})",
        f'replay run.zarr --compressors "{spec}"',
        answer,
        ("compressors",),
        ("--compressors",),
    )


def fitted(name: str, family: str, *answer: str) -> Mistake:
    """The same family given to `gradstats.fit` and to `--families`."""
    return Mistake(
        name,
        f"gradstats.fit('run.zarr', families={family!r})",
        f"fit run.zarr --families {family}",
        answer,
        ("families",),
        ("--families",),
    )


SPECS = [
    replayed("a module that is not there", "mine:Mine", "'mine:Mine'", "No module named 'mine'"),
    replayed("a class that is not there", "math:Mine", "'math:Mine'", "math has no 'Mine'"),
    replayed(
        "a class that is no compressor",
        "collections:OrderedDict",
        "'collections:OrderedDict' must be a subclass of gradstats.compressors.Compressor",
    ),
    replayed("a module that fails", "broken:Mine", "'broken:Mine'", "division by zero"),
    replayed("a compressor misspelt", "topq(0.01)", "got 'topq'", "did you mean topk?"),
    replayed(
        "a setting misspelt",
        "qsgd(bit=4)",
        "settings of qsgd must be one of bits, norm, bucket, steps, got 'bit'",
        "did you mean bits?",
    ),
    replayed("a setting out of range", "qsgd(bits=99)", "bits must be a whole number", "got 99"),
    replayed(
        "a setting too many",
        "topk(0.1, 3)",
        "'topk(0.1, 3)'",
        "settings of topk must be ratio, got too many arguments",
    ),
    replayed("a bracket left open", "topk(0.01", "must close its bracket, got 'topk(0.01'"),
    replayed("a ratio of zero inside", "topk(0)", "'topk(0)'", "must lie in (0, 1]", "got 0"),
    replayed(
        "a memory around nothing", "ef", "settings of ef must be compressor", "missing setting"
    ),
    replayed("a pipe that ends in nothing", "topk(0.01) |", "got 'topk(0.01) |'"),
    fitted("a family's module not there", "mine:Law", "'mine:Law'", "No module named 'mine'"),
    fitted(
        "a family that is another class",
        "collections:OrderedDict",
        "'collections:OrderedDict' must be a subclass of gradstats.families.Family",
    ),
    fitted("a distribution scipy lacks", "scipy.stats:nope", "scipy.stats has no 'nope'"),
    Mistake(
        "no compressor",
        "gradstats.replay('run.zarr', [])",
        "replay run.zarr --compressors ,",
        ("must name at least one, got none",),
        ("compressors",),
        ("--compressors",),
    ),
    Mistake(
        "an object that is no compressor",
        "gradstats.replay('run.zarr', [3])",
        answer=("compressors must be specs such as topk(0.01), or instances, got 3",),
    ),
    Mistake(
        "the class in place of an instance",
        "gradstats.replay('run.zarr', [gradstats.compressors.TopK])",
        answer=("compressors must be specs such as topk(0.01), or instances", "TopK"),
    ),
    Mistake(
        "a ratio in place of a compressor",
        "gradstats.compressor(0.01)",
        answer=("compressor must be a spec such as topk(0.01), or an instance, got 0.01",),
        raises=TypeError,
    ),
    Mistake(
        "a check of what is no compressor",
        "from gradstats.testing import check_compressor\ncheck_compressor(dict)",
        answer=("compressor must be a spec such as topk(0.01), or an instance", "'dict'"),
        raises=TypeError,
    ),
    Mistake(
        "a check of what is no family",
        "from gradstats.testing import check_family\ncheck_family(dict)",
        answer=("distribution must be an instance", "'dict'"),
        raises=TypeError,
    ),
]

TENSORS = [
    Mistake(
        "a fit of nothing",
        "gradstats.families.Laplace.fit(torch.zeros(0))",
        answer=("cannot fit laplace: no finite non-zero magnitude among 0 elements",),
    ),
    Mistake(
        "a fit of zeros",
        "gradstats.families.Laplace.fit(torch.zeros(10))",
        answer=("cannot fit laplace", "10 zeros"),
    ),
    Mistake(
        "a fit of integers",
        "gradstats.families.Laplace.fit(torch.arange(10))",
        answer=(DTYPE, "got int64"),
        raises=TypeError,
    ),
    Mistake(
        "a fit of complex numbers",
        "gradstats.families.Laplace.fit(torch.ones(10, dtype=torch.complex64))",
        answer=(DTYPE, "got complex64"),
        raises=TypeError,
    ),
    Mistake(
        "a fit of a path",
        "gradstats.families.Laplace.fit('run.zarr')",
        answer=(DTYPE,),
        raises=TypeError,
    ),
    Mistake(
        "a summary of words",
        "gradstats.summarize(['a'])",
        answer=(DTYPE,),
        raises=TypeError,
    ),
    Mistake(
        "a negative scale",
        "gradstats.families.Laplace(scale=-1.0)",
        answer=("scale of laplace must be positive and finite, got -1.0",),
    ),
    Mistake(
        "the threshold of a ratio of 2",
        "gradstats.families.Laplace(scale=1.0).threshold(2)",
        answer=("ratio must lie in [0, 1], got 2",),
    ),
    Mistake(
        "a variant of SIDCo that is not one",
        "gradstats.sidco_threshold(grad, 0.01, variant='x')",
        answer=("variant must be one of e, gp, p, got 'x'",),
    ),
    Mistake(
        "SIDCo without stages",
        "gradstats.sidco_threshold(grad, 0.01, stages=0)",
        answer=("stages must be a whole number from 1, got 0",),
    ),
    Mistake(
        "SIDCo with stages in words",
        "gradstats.sidco_threshold(grad, 0.01, stages='two')",
        answer=("stages must be a whole number from 1, got 'two'",),
    ),
    Mistake(
        "SIDCo at a ratio of 0",
        "gradstats.sidco_threshold(grad, 0)",
        answer=("target_ratio must lie in (0, 1], the fraction that is kept, got 0",),
    ),
    Mistake(
        "SIDCo at a ratio in words",
        "gradstats.sidco_threshold(grad, '0,01')",
        answer=("target_ratio must lie in (0, 1], the fraction that is kept, got '0,01'",),
    ),
]

ROWS = [*SPECS, *TENSORS]
