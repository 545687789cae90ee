"""Who may import whom, what an import costs, and that public names are what they say."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gradstats

PACKAGE = Path(gradstats.__file__).parent
EVERYTHING = None

# unit -> the units of ours that it may import; a unit is a module or a package right below ours
MAY_IMPORT = {
    "kernels": (),
    "metrics": (),
    "network": (),
    "store": (),
    "extras": (),
    "tensors": ("kernels",),
    "summary": ("kernels", "tensors"),
    "summary_bytes": ("kernels", "summary"),
    "histograms": ("kernels", "summary", "tensors"),
    "families": ("summary",),
    "goodness": ("families", "summary"),
    "thresholds": ("families", "summary"),
    "uncertainty": ("families", "goodness", "summary"),
    "bootstrap": ("families", "goodness", "summary"),
    "stable": ("summary",),
    "ranks": (),
    "series": ("stable",),
    "over_steps": ("grouping", "lowrank", "ranks", "runs", "series", "store"),
    "compressibility": ("summary",),
    "fitting": (
        "bootstrap",
        "compressibility",
        "families",
        "goodness",
        "stable",
        "summary",
        "thresholds",
        "uncertainty",
    ),
    "evolution": ("summary",),
    "compressors": ("families", "kernels", "summary", "thresholds"),
    "frontier": ("compressors", "metrics"),
    "collectives": ("compressors", "kernels"),
    "exchange": ("collectives", "compressors"),
    "memories": ("compressors",),
    "naming": (),
    "buckets": ("naming",),
    "checkpoints": (),
    "hook_state": ("checkpoints", "collectives", "compressors", "exchange", "memories", "naming"),
    "ddp_hooks": ("buckets", "collectives", "compressors", "exchange", "hook_state"),
    "replaying": ("collectives", "compressors", "exchange", "metrics"),
    "contract_laws": ("compressors",),
    "memory_laws": ("compressors", "exchange"),
    "scale_laws": ("compressors", "contract_laws", "exchange"),
    "compressor_laws": (
        "compressors",
        "contract_laws",
        "examples",
        "exchange",
        "memory_laws",
        "scale_laws",
    ),
    "testing": ("compressor_laws", "families"),
    "recording": (
        "compressors",
        "lowrank",
        "patterns",
        "replaying",
        "store",
        "summary",
        "summary_bytes",
    ),
    "integrations": ("recording",),
    "importing": ("store",),
    "narrowing": (),
    "patterns": (),
    "copying": ("narrowing", "store", "summary", "summary_bytes"),
    "reading": ("store", "summary", "summary_bytes"),
    "runs": ("compressors", "patterns", "reading", "store", "summary"),
    "examples": ("runs",),
    "grouping": ("compressors", "replaying", "runs", "store", "summary"),
    "health": ("grouping", "runs"),
    "fits": (
        "bootstrap",
        "compressors",
        "evolution",
        "families",
        "fitting",
        "grouping",
        "over_steps",
        "runs",
        "summary",
    ),
    "lowrank": ("patterns",),
    "factorised": ("lowrank", "runs"),
    "fit_folder": ("evolution", "fits", "over_steps", "reporting", "results", "runs"),
    "jobs": ("compressors", "fitting", "replaying", "runs"),
    "plot": ("compressibility", "evolution", "families", "goodness", "summary"),
    "reporting": ("families", "metrics", "network", "plot", "replaying", "summary"),
    "results": ("runs", "store"),
    "pipeline": (
        "compressors",
        "factorised",
        "fits",
        "fitting",
        "frontier",
        "grouping",
        "jobs",
        "network",
        "over_steps",
        "reporting",
        "results",
        "runs",
        "summary",
    ),
    "demo": ("recording",),
    "options": ("compressors", "fits", "kernels", "runs", "store", "summary"),
    "printing": ("fit_folder", "health", "reporting", "runs", "store"),
    "cli": EVERYTHING,
    "": EVERYTHING,  # gradstats/__init__.py
}
ALLOWED_TO_ALL = {"extras", ""}
HEAVY = ("pandas", "matplotlib", "seaborn", "scipy.stats", "zarr", "typer", "rich", "numba")


def sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).with_suffix("").parts


def imported(path):
    """Every module that a file imports, wherever in the file, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(parts):
    first = parts[0]
    return "" if first == "__init__" else first


def edges():
    units = {unit(parts) for _, parts in sources()}
    for path, parts in sources():
        for name in imported(path):
            if name.split(".")[0] == "gradstats":
                after = name.split(".")[1] if "." in name else ""
                yield unit(parts), after if after in units else ""


def test_the_table_has_every_unit_and_no_other():
    assert {unit(parts) for _, parts in sources()} == set(MAY_IMPORT)


def test_modules_import_only_what_the_table_allows():
    new = {
        f"{source} -> {target or 'gradstats'}"
        for source, target in edges()
        if target not in ALLOWED_TO_ALL | {source}
        if MAY_IMPORT[source] is not EVERYTHING and target not in MAY_IMPORT[source]
    }
    assert not new


def test_the_check_sees_the_edges_there_are():
    seen = set(edges())
    assert {("runs", "store"), ("cli", "pipeline"), ("plot", "extras")} <= seen
    assert ("results", "") in seen  # import gradstats


def test_only_the_store_imports_zarr():
    users = {unit(parts) for path, parts in sources() for n in imported(path) if n[:4] == "zarr"}
    assert users == {"store"}


def test_the_mathematics_sees_no_file_command_line_or_figure():
    pure = ("kernels", "summary", "families", "goodness", "thresholds", "fitting", "compressors")
    banned = {"zarr", "pathlib", "typer", "rich", "matplotlib", "seaborn", "pandas", "jinja2"}
    for path, parts in sources():
        if unit(parts) in pure:
            assert not banned & {name.split(".")[0] for name in imported(path)}, path


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_importing_costs_little_beside_torch_and_pulls_in_no_analysis():
    code = f"""
import sys, time
start = time.process_time()
import torch
middle = time.process_time()
import gradstats
share = (time.process_time() - middle) / (middle - start)
print(share, *(name for name in {HEAVY!r} if name in sys.modules))
"""
    runs = [python(code).split() for _ in range(3)]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(share) for share, *_ in runs) < 0.02  # of torch's own import


@pytest.mark.slow
def test_a_core_installation_can_summarise_and_compress():
    """What analysis brings is not needed: those packages cannot be imported here."""
    absent = ("pandas", "matplotlib", "seaborn", "numba", "jinja2", "pyarrow", "statsmodels")
    code = f"""
import sys
for name in {absent!r}: sys.modules[name] = None
import torch, gradstats
grad = torch.linspace(-1, 1, 1001)
top = gradstats.compressor("ef(topk(0.01))")
payload, _ = top.encode(grad, top.init(grad))
print(payload.count, gradstats.summarize(grad).n, gradstats.sidco_threshold(grad, 0.1).value > 0)
try:
    gradstats.plot.density(gradstats.summarize(grad), {{}})
except ImportError as error:
    print(error)
"""
    numbers, message = python(code).splitlines()
    assert numbers == "10 1001 True"
    assert "pip install 'gradstats[analysis]'" in message


def submodules():
    found = pkgutil.walk_packages([str(PACKAGE)], "gradstats.")
    # a file that runs when it is imported, in a Python that is being recorded
    return [module.name for module in found if not module.name.endswith("recording.startup")]


def test_every_public_name_resolves_and_stays_callable_after_importing_everything():
    verbs = {name: getattr(gradstats, name) for name in gradstats.__all__}
    assert all(callable(verb) for verb in verbs.values())
    for module in submodules():
        importlib.import_module(module)
    for name, verb in verbs.items():
        assert getattr(gradstats, name) is verb
        assert callable(getattr(gradstats, name))


def test_no_public_name_is_a_modules_name():
    modules = {name.split(".")[1] for name in submodules()}
    assert not modules & set(gradstats.__all__)


def test_what_dir_lists_is_there_and_the_rest_is_an_attribute_error():
    for name in dir(gradstats):
        assert getattr(gradstats, name) is not None
    assert set(gradstats.__all__) <= set(dir(gradstats))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        gradstats.fitt  # noqa: B018


def test_the_version_is_that_of_the_package():
    project = PACKAGE.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("not in a source tree")
    assert gradstats.__version__ == tomllib.loads(project.read_text())["project"]["version"]
