"""Machine code from numba's cache is that of all kernels' sources."""

import importlib
import pkgutil

import pytest

from gradstats import kernels
from gradstats.kernels import forms

pytestmark = pytest.mark.skipif(not forms.HAVE_NUMBA, reason="needs numba")


def loops():
    """Every compiled loop of the package."""
    for module in pkgutil.iter_modules(kernels.__path__):
        if "_cpu" in module.name:
            names = vars(importlib.import_module(f"gradstats.kernels.{module.name}"))
            yield from (each for each in names.values() if hasattr(each, "py_func"))


def test_every_loop_is_compiled_anew_when_any_kernel_has_changed():
    from gradstats.kernels.compiling import KERNELS

    stamps = [loop._cache._cache_file._source_stamp for loop in loops()]
    assert len(stamps) > 50
    assert all(stamp[1] == KERNELS for stamp in stamps)


def test_a_digest_tells_contents_and_names_apart(tmp_path):
    from gradstats.kernels.compiling import sources

    (tmp_path / "a.py").write_text("x = 1\n")
    before = sources(tmp_path)
    assert sources(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")  # as long as it was
    changed = sources(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, changed, sources(tmp_path)}) == 3
