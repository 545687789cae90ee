"""Recording scripts that do not know of it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from gradstats.recording import capture, every
from gradstats.recording.attaching import Settings, find_model
from gradstats.recording.command import run_command
from gradstats.store import GradientStore, StoreFormatError
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
import torch
from torch import nn

torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.body(x).relu())

model = Net()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(12):
    optimizer.zero_grad()
    model(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
print(sum(p.double().sum().item() for p in model.parameters()).hex())
"""

DISTRIBUTED = """
import torch
import torch.distributed as dist
from torch import nn

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(dist.get_rank())
for _ in range(6):
    optimizer.zero_grad()
    model(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
dist.destroy_process_group()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


@pytest.fixture
def script(tmp_path):
    def written(text: str = SCRIPT) -> list[str]:
        file = tmp_path / "train.py"
        file.write_text(text)
        return [sys.executable, str(file)]

    return written


def test_a_script_is_recorded_unchanged(path, script, read, capfd):
    subprocess.run(script(), check=True)
    alone = capfd.readouterr().out
    assert run_command(script(), out=path, full_every=5, track=20) == 0
    out, err = capfd.readouterr()
    assert out == alone
    assert "3 full rows + 12 tracked steps" in err
    stream = read(path)
    assert [(p.name, p.module_type) for p in stream.parameters] == [
        (f"{part}.{kind}", "Linear") for part in ("body", "head") for kind in ("weight", "bias")
    ]
    assert stream.steps.tolist() == [0, 5, 10]
    assert read(path, "track").steps.tolist() == list(range(12))
    story = GradientStore.open(path).provenance
    assert (story["model"], story["optimizer"]) == ("Net", "Adam")
    assert story["command"][0].endswith("train.py")


def test_the_exit_code_and_the_users_own_start_up_file_stay(path, script, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import os; os.environ['OWN_RAN'] = 'yes'")
    monkeypatch.setenv("PYTHONPATH", str(own))
    text = SCRIPT + "assert '' not in sys.path\nsys.exit(7 if os.environ.get('OWN_RAN') else 8)"
    assert run_command(script(text), out=path) == 7
    assert len(GradientStore.open(path).stream(kind="track")) == 12


def test_a_command_without_training_costs_nothing_and_says_so(path, script, capfd):
    text = "import sys; sys.exit(0 if 'torch' not in sys.modules else 9)"
    assert run_command(script(text), out=path) == 1
    assert "nothing was recorded" in capfd.readouterr().err
    assert run_command(script("raise SystemExit(5)"), out=path) == 5
    assert not path.exists()


def test_a_command_that_does_not_exist(path, capfd):
    assert run_command(["no-such-command"], out=path) == 127
    assert "cannot run 'no-such-command': No such file" in capfd.readouterr().err


def test_what_keeps_it_from_recording_is_said_and_training_goes_on(path, script, capfd):
    assert run_command(script(), out=path, parameters="conv*") == 1
    out, err = capfd.readouterr()
    assert out.startswith(("0x", "-0x"))
    assert "not recorded: ValueError: parameters must match a name of the model" in err


WAITS = """
import os, signal, sys, time
sys.stdout.write("ready\\n"); sys.stdout.flush()
time.sleep(PATIENCE)
""".replace("PATIENCE", str(PATIENCE))

RUNNER = """
import sys
from gradstats.recording.command import run_command
sys.exit(run_command(sys.argv[2:], out=sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_signals_reach_the_command(path, script, number, whole_group):
    command = [sys.executable, "-c", RUNNER, str(path), *script(WAITS)]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, **settings) as process:
        assert process.stdout.readline() == b"ready\n"
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number  # 0, had it slept to the end
    assert (b"KeyboardInterrupt" in err) == (number == signal.SIGINT)


def test_an_existing_store_is_refused_before_the_command_starts(path, script, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("precious")
    GradientStore.create(path).close()
    mark = tmp_path / "ran"
    command = script(f"open({str(mark)!r}, 'w')")
    with pytest.raises(FileExistsError, match=r"run\.zarr.*resume.*overwrite"):
        run_command(command, out=path)
    with pytest.raises(StoreFormatError):
        run_command(command, out=tmp_path / "other", if_exists="overwrite")
    assert not mark.exists()


class Net(nn.Module):
    """Laid out as the model of `SCRIPT`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 2)


def test_a_second_run_resumes_or_replaces(path, script, read):
    model = Net()
    optimizer = sgd(model)
    with capture(model, optimizer, path, full=every(1), track=0):
        model.head(model.body(torch.ones(1, 6))).sum().backward()
        optimizer.step()
    for if_exists, segments in (("resume", [0, 1]), ("overwrite", [0])):
        assert run_command(script(), out=path, track=0, if_exists=if_exists, quiet=True) == 0
        assert read(path).coordinates["segment"].tolist() == segments


@pytest.mark.parametrize(
    ("argv", "settings"),
    [([], {}), (["true"], {"track": -1}), (["true"], {"full_every": -2}),
     (["true"], {"max_bytes": "x"}), (["true"], {"full_every": 0, "track": 0}),
     (["true"], {"if_exists": "maybe"}), (["true"], {"at": "global"}),
     (["true"], {"when_full": "wait"})],
)  # fmt: skip
def test_bad_settings_are_refused_before_the_command_starts(path, argv, settings):
    with pytest.raises(ValueError, match="must"):
        run_command(argv, out=path, **settings)


def test_two_processes_under_torchrun_make_one_recording(path, script, read, capfd):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    code = run_command([*torchrun, *script(DISTRIBUTED)[1:]], out=path, full_every=2, summary=True)
    err = capfd.readouterr().err
    assert code == 0, err
    assert all(f"rank {rank} of 2 records its own gradients" in err for rank in range(2))
    store = GradientStore.open(path)
    assert store.workers == (0, 1)
    assert [p.name for p in store.parameters] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    for worker in range(2):  # attached at the first step, whose local gradients had gone by
        stream = store.stream(worker)
        assert stream.steps.tolist() == [2, 4]
        assert set(stream.coordinates["point"]) == {"local"}
        assert stream.read(0).shape == (47,)
        assert len(store.stream(worker, "summary")) == len(store.stream(worker, "track"))
    assert not torch.equal(store.stream(0).read(0), store.stream(1).read(0))


def test_settings_survive_the_environment():
    settings = Settings(
        "/x", full_every=None, shadow=["bf16"], parameters=["a*", "b"], if_exists="resume"
    )
    assert Settings(**json.loads(settings.to_json())) == settings


class Outer(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        self.extra = nn.Linear(1, 1)


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.1)


def test_the_model_is_the_outermost_module_that_owns_most():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    outer = Outer(inner)
    bystander = nn.Linear(2, 2)
    assert find_model(sgd(inner)) is outer
    assert find_model(sgd(outer)) is outer
    assert find_model(sgd(bystander)) is bystander


def test_modules_trained_together_stand_together():
    modules = [nn.Linear(3, 3), nn.Linear(2, 2), nn.Embedding(2, 2)]
    found = dict(find_model(sgd(*modules)).named_parameters())
    assert sorted(found) == [
        "Embedding.weight", "Linear.bias", "Linear.weight", "Linear_2.bias", "Linear_2.weight",
    ]  # fmt: skip


def test_an_optimizer_of_bare_tensors_has_no_model():
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=r"no torch.nn.Module owns a parameter of this SGD"):
        find_model(optimizer)
