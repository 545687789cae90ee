"""A desk with what users have lying about: runs, results, files, a module of their own."""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import zarr
from torch import nn

import gradstats
from gradstats.store import GradientStore, parameter_table
from tests.conftest import write_run

OWN = """
from dataclasses import dataclass

from gradstats.compressors import Contract, Stateless
from gradstats.payloads import Dense


@dataclass(frozen=True)
class Mine(Stateless):
    name = "mine"
    contract = Contract("all_reduce")

    def message(self, flat, rng=None):
        return Dense(flat.clone())


class Halving:
    pass


@dataclass(frozen=True)
class Bare(Stateless):
    name = "bare"
    contract = Contract("all_reduce")


@dataclass(frozen=True)
class Lawless(Stateless):
    name = "lawless"

    def message(self, flat, rng=None):
        return Dense(flat.clone())


@dataclass(frozen=True)
class Listing(Mine):
    name = "listing"

    def message(self, flat, rng=None):
        return flat.tolist()


@dataclass(frozen=True)
class Short(Mine):
    name = "short"

    def message(self, flat, rng=None):
        return Dense(flat[:-1].clone())


@dataclass(frozen=True)
class Changing(Mine):
    name = "changing"

    def message(self, flat, rng=None):
        flat.mul_(0.5)
        return Dense(flat.clone())


@dataclass(frozen=True)
class Failing(Mine):
    name = "failing"

    def message(self, flat, rng=None):
        raise IndexError("own mistake")


class Plain(Stateless):
    name = "plain"
    contract = Contract("all_reduce")

    def message(self, flat, rng=None):
        return Dense(flat.clone())


number = 3
"""


def lay_out(desk: Path) -> None:
    """Write all that the table names."""
    desk.mkdir()
    rng = np.random.default_rng(0)

    def grads() -> dict[str, torch.Tensor]:
        draws = {"fc.weight": (40, 30), "fc.bias": (40,)}
        return {
            name: torch.from_numpy(rng.laplace(size=shape).astype(np.float32))
            for name, shape in draws.items()
        }

    write_run(desk / "run.zarr", {step: grads() for step in range(4)}, tracked=200)
    write_run(desk / "gaps.zarr", {step: grads() for step in (0, 100)})
    write_run(desk / "reduced.zarr", {step: grads() for step in range(4)}, point="reduced")
    GradientStore.create(
        desk / "empty.zarr", parameter_table([("w", (5,), torch.float32)]), provenance={}
    ).close()
    zarr.open_group(desk / "other.zarr", mode="w").create_array("x", data=np.ones(3))
    gradstats.fit(gradstats.open(desk / "run.zarr"), families=("laplace",), ratios=(0.1,))
    (desk / "notes.txt").write_text("not a run")
    (desk / "folder").mkdir()
    (desk / "mine.py").write_text(OWN)
    (desk / "faulty.py").write_text("import no_such_library\n")
    np.save(desk / "step1.npy", rng.normal(size=(5, 4)).astype(np.float32))
    np.save(desk / "step2.npy", rng.normal(size=(5, 3)).astype(np.float32))
    np.save(desk / "ints.npy", np.arange(5))
    np.save(desk / "complex.npy", np.ones(5, np.complex64))
    np.savez(desk / "two.npz", a=np.ones(3, np.float32), b=np.ones(3, np.float32))
    (desk / "text.npy").write_text("not an array")
    (desk / "table.csv").write_text("1,2\n")
    torch.save({"lr": 0.1}, desk / "state.pt")


@pytest.fixture(scope="session")
def desk(made_once) -> Path:
    return made_once("desk", lay_out)


@pytest.fixture
def at_desk(desk, monkeypatch):
    """In the folder of the desk; its own modules are those of no other test."""
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    yield desk
    for name in ("mine", "faulty"):
        sys.modules.pop(name, None)


@contextmanager
def alone():
    """A process group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def names(at_desk, tmp_path):
    """What a user has at hand in Python."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    run = gradstats.open("run.zarr")
    yield {
        "gradstats": gradstats,
        "torch": torch,
        "np": np,
        "nn": nn,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "run": run,
        "grad": torch.linspace(-1, 2, 500),
        "tmp": tmp_path,
        "alone": alone,
    }
    run.store.close()
    gradstats.close_all()
