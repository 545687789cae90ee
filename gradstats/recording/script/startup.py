"""Starts a recording in a Python process below `gradstats capture`.

A copy of this file, named sitecustomize.py, is first on the command's PYTHONPATH, so Python runs
it at start-up. It must cost nothing in processes that never train: it imports torch in none.
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))


def _run_users_own() -> None:
    """Run the sitecustomize that this one hides, if there is one."""
    others = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


class _AfterTorchOptimizer:
    """An import hook that acts once, when the process itself imports torch's optimizers."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch.optim.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            original = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                original(module)
                _watch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _note_torch() -> None:
    """Report to the command that a process has imported torch's optimizers."""
    try:
        with open(os.path.join(_HERE, f"torch.{os.getpid()}.note"), "w") as file:
            file.write("{}")
    except OSError:
        pass  # the command has ended


def _watch(optimizers: ModuleType) -> None:
    """Take notice of every optimizer that this process makes, and of one that steps at last."""
    _note_torch()
    make = optimizers.Optimizer.__init__

    @functools.wraps(make)
    def making(optimizer: Any, *args: Any, **kwargs: Any) -> None:
        make(optimizer, *args, **kwargs)
        _tell("note", optimizer)

    optimizers.Optimizer.__init__ = making
    optimizers.register_optimizer_step_pre_hook(lambda one, *_: _tell("stepping", one))


_broken = False


def _tell(what: str, optimizer: Any) -> None:
    global _broken
    if _broken:
        return
    try:
        from gradstats.recording.script import prelude

        getattr(prelude, what)(optimizer)
    except Exception as error:
        _broken = True
        remedy = f"install gradstats for {sys.executable}"
        sys.stderr.write(f"gradstats: not recorded: {type(error).__name__}: {error}; {remedy}\n")


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _AfterTorchOptimizer())
    _run_users_own()
