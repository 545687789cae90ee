"""Starts a recording in a Python process below ``gradstats capture``.

A copy of this file, named sitecustomize.py, is first on the command's PYTHONPATH, so Python runs
it at start-up. It must cost nothing in processes that never train: it imports torch in none.
"""

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


def _watch(optimizers: ModuleType) -> None:
    """Attach at the first optimizer step of this process."""
    started = 0  # in this process; one that was forked from it and trains is another training

    def before_step(optimizer: Any, *_: Any) -> None:
        nonlocal started
        if started != os.getpid():
            started = os.getpid()
            _attach(optimizer)

    optimizers.register_optimizer_step_pre_hook(before_step)


def _attach(optimizer: Any) -> None:
    try:
        from gradstats.recording.attaching import attach
    except Exception as error:
        remedy = f"install gradstats for {sys.executable}"
        sys.stderr.write(f"gradstats: not recorded: {type(error).__name__}: {error}; {remedy}\n")
    else:
        attach(optimizer)


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _AfterTorchOptimizer())
    _run_users_own()
