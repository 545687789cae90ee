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

# room -> the rooms that it may import; a room is a module or a package right below gradstats
MAY_IMPORT = {
    "kernels": (),
    "store": (),
    "ratios": (),
    "patterns": (),
    "extras": (),
    "settings": (),
    "metrics": ("kernels",),  # the sums of one pass
    "network": (),
    "lowrank": ("patterns",),
    "rng": ("kernels",),
    "summary": ("kernels", "ratios"),
    "families": ("summary",),
    "payloads": ("kernels", "rng"),
    # compressors for Run.compensated alone, when it is called
    "runs": ("compressors", "patterns", "ratios", "store", "summary"),
    "thresholds": ("families", "ratios", "summary"),
    "compressors": (
        "families",
        "kernels",
        "payloads",
        "ratios",
        "rng",
        "summary",
        "thresholds",
    ),
    "exchange": ("compressors", "kernels", "payloads", "ratios"),  # payloads as messages
    "fitting": (
        "compressors",
        "families",
        "lowrank",  # what a matrix is: the gates of an LSTM, the projections of attention
        "ratios",
        "runs",
        "store",
        "summary",
        "thresholds",
    ),
    "ddp_hooks": ("exchange", "kernels"),  # kernels for the memory that they share
    "replaying": (
        "compressors",
        "exchange",
        "kernels",  # the form in use: timings depend on it
        "lowrank",
        "metrics",
        "network",
        "ratios",
        "runs",
        "store",
    ),
    "plot": ("families", "fitting", "runs", "summary"),
    # kernels for their plain torch form, in which reads from a device are counted
    "testing": ("compressors", "exchange", "families", "kernels", "payloads", "runs"),
    # replaying for `shadow=` alone, when it is asked for
    "recording": ("lowrank", "patterns", "replaying", "store", "summary"),
    "reporting": (
        "compressors",
        "families",
        "fitting",
        "network",
        "plot",
        "ratios",
        "replaying",
        "runs",
        "summary",
    ),
    # a callback that compresses takes the hook's settings, and finds its parameters' digests
    "integrations": ("compressors", "ddp_hooks", "exchange", "recording"),
    "cli": EVERYTHING,
    "": EVERYTHING,  # gradstats/__init__.py
}
ALLOWED_TO_ALL = {"extras", "settings", ""}
RUN_ON_IMPORT = ("recording.script.startup", "__main__")
HEAVY = ("pandas", "matplotlib", "seaborn", "scipy.stats", "zarr", "typer", "rich", "numba")


def sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield (
            path,
            path.relative_to(PACKAGE)
            .with_suffix(
                "",
            )
            .parts,
        )


def imported(path):
    """Every module that a file imports, wherever in the file, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(path, names):
    """The modules of ours that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            wholes = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (whole if whole in names else node.module for whole in wholes)


def room(parts):
    first = parts[0]
    return {"__init__": "", "__main__": "cli"}.get(first, first)  # python -m gradstats


def edges():
    rooms = {room(parts) for _, parts in sources()}
    for path, parts in sources():
        for name in imported(path):
            if name.split(".")[0] == "gradstats":
                after = name.split(".")[1] if "." in name else ""
                yield room(parts), after if after in rooms else ""


def test_the_table_has_every_room_and_no_other():
    assert {room(parts) for _, parts in sources()} == set(MAY_IMPORT)


def test_modules_import_only_what_the_table_allows():
    new = {
        f"{source} -> {target or 'gradstats'}"
        for source, target in edges()
        if target not in ALLOWED_TO_ALL | {source}
        if MAY_IMPORT[source] is not EVERYTHING and target not in MAY_IMPORT[source]
    }
    assert not new


def test_the_table_allows_nothing_that_no_module_uses():
    used = set(edges())
    unused = {
        f"{source} -> {target}"
        for source, targets in MAY_IMPORT.items()
        for target in targets or ()
        if (source, target) not in used
    }
    assert not unused


def test_the_check_sees_the_edges_there_are():
    seen = set(edges())
    assert {("runs", "store"), ("cli", "reporting"), ("plot", "extras")} <= seen
    assert ("runs", "") in seen  # import gradstats


def test_no_room_imports_itself_through_others():
    """One after the other, the rooms that import none of those that are left can be taken away."""
    left = {source: set() for source in MAY_IMPORT if source}
    for source, target in edges():
        if source and target not in ALLOWED_TO_ALL | {source}:
            left[source].add(target)
    while free := [room for room, targets in left.items() if not targets & set(left)]:
        for room in free:
            del left[room]
    assert not left


def test_no_module_imports_itself_through_others():
    """As the rooms, file by file, of what is imported when a module is."""
    paths = {".".join(("gradstats", *p)).removesuffix(".__init__"): path for path, p in sources()}
    left = {name: set(imported_at_once(path, paths)) & set(paths) for name, path in paths.items()}
    while free := [name for name, targets in left.items() if not targets & set(left)]:
        for name in free:
            del left[name]
    assert not left


def test_only_the_store_imports_zarr():
    users = {room(parts) for path, parts in sources() for n in imported(path) if n[:4] == "zarr"}
    assert users == {"store"}


def test_the_mathematics_sees_no_file_command_line_or_figure():
    pure = ("kernels", "summary", "families", "thresholds", "payloads", "compressors", "exchange")
    banned = {"zarr", "pathlib", "typer", "rich", "matplotlib", "seaborn", "pandas", "jinja2"}
    for path, parts in sources():
        if room(parts) in pure:
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
def test_what_a_training_imports_holds_no_compressor_family_or_analysis():
    rooms = ("compressors", "families", "fitting", "replaying", "exchange", "plot", "reporting")
    banned = (*HEAVY, "scipy.optimize", *(f"gradstats.{room}" for room in rooms))
    code = f"""
import sys, gradstats
gradstats.capture, gradstats.every, gradstats.close_all
print(*(name for name in {banned!r} if name in sys.modules))
"""
    assert python(code).split() == []


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
    return [module.name for module in found if not module.name.endswith(RUN_ON_IMPORT)]


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
