"""Recording scripts that do not know of it."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from gradstats.recording import Idle, at_steps, capture, every, log_spaced, window
from gradstats.recording.provenance import VARIABLE
from gradstats.recording.schedules import as_schedule
from gradstats.recording.script.attaching import Session, find_model
from gradstats.recording.script.command import run_command
from gradstats.recording.script.trainings import Trainings, numbered
from gradstats.recording.settings import CaptureSettings
from gradstats.store import GradientStore, StoreFormatError
from tests.processes import soaked
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
    assert run_command(script(), CaptureSettings(full=every(5), track=20), out=path) == 0
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
    assert run_command(script(text), CaptureSettings(), out=path) == 7
    assert len(GradientStore.open(path).stream(kind="track")) == 12


def test_a_command_without_training_costs_nothing_and_says_so(path, script, capfd):
    text = "import sys; sys.exit(0 if 'torch' not in sys.modules else 9)"
    assert run_command(script(text), CaptureSettings(), out=path) == 1
    assert "nothing was recorded" in capfd.readouterr().err
    assert run_command(script("raise SystemExit(5)"), CaptureSettings(), out=path) == 5
    assert not path.exists()


WITHOUT_ROWS = {  # by what the script does: what is printed
    "import json": "no process of the command imported torch.optim; is it a Python training",
    "import torch": "torch was imported, but no torch.optim.Optimizer was made",
    SCRIPT.replace("range(12)", "range(0)"): "an optimizer was made, but it took no step",
}


@pytest.mark.parametrize("text", WITHOUT_ROWS)
def test_why_nothing_was_recorded_is_printed(path, script, capfd, text):
    assert run_command(script(text), CaptureSettings(), out=path) == 1
    assert f"nothing was recorded in {path}: {WITHOUT_ROWS[text]}" in capfd.readouterr().err


def test_a_schedule_that_is_never_due_is_named(path, script, capfd):
    settings = CaptureSettings(full=every(500), track=0, start_step=1)
    assert run_command(script(), settings, out=path) == 1
    line = "no step was due by full=every(500), counted from step 1, and no element is tracked"
    assert line in capfd.readouterr().err


def test_rows_of_another_writer_do_not_count(path, script, capfd):
    """The command adds to a run while something else writes rows there."""
    train_in_this_process(path, full=every(1), track=20)
    capfd.readouterr()
    other = f"""
import torch
from gradstats.store import GradientStore, Row
with GradientStore.open({str(path)!r}, "a") as store:
    grads = {{part.name: torch.zeros(part.shape) for part in store.parameters}}
    store.append(100, grads)
"""
    settings = CaptureSettings(track=20, if_exists="resume")
    assert run_command(script(other), settings, out=path) == 1
    assert "nothing was recorded" in capfd.readouterr().err
    assert GradientStore.open(path).stream().steps.tolist() == [0, 100]


def test_a_command_that_does_not_exist(path, capfd):
    assert run_command(["no-such-command"], CaptureSettings(), out=path) == 127
    assert "cannot run 'no-such-command': No such file" in capfd.readouterr().err


def test_what_keeps_it_from_recording_is_said_and_training_goes_on(path, script, capfd):
    assert run_command(script(), CaptureSettings(parameters="conv*"), out=path) == 1
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
from gradstats.recording.script.command import run_command
from gradstats.recording.settings import CaptureSettings
sys.exit(run_command(sys.argv[2:], CaptureSettings(), out=sys.argv[1]))
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
        run_command(command, CaptureSettings(), out=path)
    with pytest.raises(StoreFormatError):
        run_command(command, CaptureSettings(if_exists="overwrite"), out=tmp_path / "other")
    assert not mark.exists()


class Net(nn.Module):
    """Laid out as the model of `SCRIPT`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 2)


def train_in_this_process(path, **settings):
    """Record one step of the model of `SCRIPT`."""
    model = Net()
    optimizer = sgd(model)
    with capture(model, optimizer, path, **settings):
        model.head(model.body(torch.ones(1, 6))).sum().backward()
        optimizer.step()


def test_a_second_run_resumes_or_replaces(path, script, read):
    train_in_this_process(path, full=every(1), track=0)
    for if_exists, segments in (("resume", [0, 1]), ("overwrite", [0])):
        assert (
            run_command(
                script(), CaptureSettings(track=0, if_exists=if_exists, quiet=True), out=path
            )
            == 0
        )
        assert read(path).coordinates["segment"].tolist() == segments


@pytest.mark.parametrize(
    ("argv", "settings"),
    [([], {}), (["true"], {"track": -1}), (["true"], {"full": [2.5]}),
     (["true"], {"max_bytes": "x"}), (["true"], {"full": None, "track": 0}),
     (["true"], {"if_exists": "maybe"}), (["true"], {"at": "global"}),
     (["true"], {"when_full": "wait"})],
)  # fmt: skip
def test_bad_settings_are_refused_before_the_command_starts(path, argv, settings):
    with pytest.raises((TypeError, ValueError), match="must"):
        run_command(argv, CaptureSettings(**settings), out=path)


def test_two_processes_under_torchrun_make_one_recording(path, script, read, capfd):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    code = run_command(
        [*torchrun, *script(DISTRIBUTED)[1:]],
        CaptureSettings(full=every(2), summary=True),
        out=path,
    )
    err = capfd.readouterr().err
    assert code == 0, err
    assert all(f"rank {rank} of 2 records its own gradients" in err for rank in range(2))
    store = GradientStore.open(path)
    assert store.workers == (0, 1)
    assert [p.name for p in store.parameters] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    for worker in range(2):
        stream = store.stream(worker)
        assert stream.steps.tolist() == [0, 2, 4]
        assert set(stream.coordinates["point"]) == {"local"}
        assert stream.read(0).shape == (47,)
        assert len(store.stream(worker, "summary")) == len(store.stream(worker, "track"))
    assert not torch.equal(store.stream(0).read(0), store.stream(1).read(0))


def test_settings_survive_the_environment():
    settings = CaptureSettings(
        full=None, shadow=["bf16"], parameters=["a*", "b"], if_exists="resume"
    )
    session = Session("/x", settings, "/tmp")
    assert Session.from_json(session.to_json()) == session


@pytest.mark.parametrize(
    "full", [every(7), log_spaced(3), window(2, 40), at_steps([5, 1]), [3, 4]], ids=repr
)
def test_schedules_survive_the_environment(full):
    session = Session.from_json(Session("/x", CaptureSettings(full=full)).to_json())
    as_given, again = as_schedule(full), session.settings.full
    assert [again(step) for step in range(50)] == [as_given(step) for step in range(50)]


def exact(seed, sizes=(6, 5, 2), steps=12):
    """The gradients of `SCRIPT` with another seed, computed without hooks; one row a step."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    body, head = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters)
    rows = []
    for _ in range(steps):
        optimizer.zero_grad()
        head(body(torch.randn(4, sizes[0])).relu()).square().mean().backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in parameters]))
        optimizer.step()
    torch.random.set_rng_state(generator)
    return torch.stack(rows)


def rows_of(path):
    stream = GradientStore.open(path).stream()
    return torch.stack([stream.read(row) for row in range(len(stream))])


@pytest.fixture
def several(tmp_path):
    """A shell command that trains once for each seed, one after the other."""

    def command(*seeds, text=SCRIPT):
        lines = []
        for seed in seeds:
            file = tmp_path / f"train_{seed}.py"
            file.write_text(text.replace("manual_seed(0)", f"manual_seed({seed})"))
            lines.append(f"{sys.executable} {file}")
        return ["sh", "-ec", "\n".join(lines)]

    return command


@pytest.mark.parametrize(
    "if_exists",
    ["overwrite", *(pytest.param(one, marks=pytest.mark.soak) for one in ("error", "resume"))],
)
def test_trainings_of_one_command_get_runs_of_their_own(tmp_path, path, several, capfd, if_exists):
    settings = {"full": every(1), "track": 0, "if_exists": if_exists}
    assert run_command(several(1, 2), CaptureSettings(**settings), out=path) == 0
    paths = [path, tmp_path / "run-2.zarr"]
    for seed, one in enumerate(paths, 1):
        assert torch.equal(rows_of(one), exact(seed))
    listed = ", ".join(f"{one} (12 rows)" for one in paths)
    assert f"recorded 2 trainings: {listed}" in capfd.readouterr().err


@pytest.mark.soak
def test_a_command_that_is_run_again_replaces_or_resumes_its_own_runs(
    tmp_path, path, several, read
):
    settings = {"full": every(1), "track": 0, "quiet": True}
    run_command(several(1, 2), CaptureSettings(**settings), out=path)
    assert (
        run_command(several(3, 4), CaptureSettings(if_exists="overwrite", **settings), out=path)
        == 0
    )
    second = tmp_path / "run-2.zarr"
    assert torch.equal(rows_of(path), exact(3))
    assert torch.equal(rows_of(second), exact(4))
    assert (
        run_command(several(5, 6), CaptureSettings(if_exists="resume", **settings), out=path) == 0
    )
    assert torch.equal(rows_of(path), torch.cat([exact(3), exact(5)]))
    assert torch.equal(rows_of(second), torch.cat([exact(4), exact(6)]))
    assert read(second).coordinates["segment"].tolist() == [0] * 12 + [1] * 12


@pytest.mark.parametrize("if_exists", ["error", "resume", "overwrite"])
@pytest.mark.parametrize("other", ["store", "folder", "own"])
def test_a_run_that_the_user_did_not_name_is_left_alone(
    tmp_path, path, monkeypatch, if_exists, other
):
    second = tmp_path / "run-2.zarr"
    model = nn.Linear(3, 2)
    if other == "own":  # of an earlier command with the same --out
        monkeypatch.setenv(VARIABLE, Session(str(path)).to_json())
        capture(model, sgd(model), second).close()
    elif other == "store":
        capture(model, sgd(model), second).close()
    else:
        second.mkdir()
        (second / "file").write_text("precious")
    session = tmp_path / "session"
    session.mkdir()
    trainings = Trainings(session)
    paths = []
    for _ in range(2):
        with trainings.claim(str(path), if_exists) as (claimed, how):
            paths.append(claimed)
        assert how == if_exists
    taken = 2 if other == "own" and if_exists != "error" else 3
    assert paths == [str(path), str(tmp_path / f"run-{taken}.zarr")]


FORKS = """
import os
from multiprocessing import get_context

def train(text):
    exec(compile(text, "train", "exec"), {})

if __name__ == "__main__":
    import torch._dynamo, zarr  # once for all of them
    for text in TEXTS:
        child = get_context(METHOD).Process(target=train, args=(text,))
        child.start()
        child.join()
"""


def forking(*texts, method="fork"):
    """A script that starts a training for each text, in a process of its own."""
    end = "import gradstats\ngradstats.close_all()\n"  # such processes end by os._exit
    texts = [f"import torch\ntorch.set_num_threads(1)\n{text}{end}" for text in texts]
    return f"METHOD, TEXTS = {method!r}, {texts!r}\n{FORKS}"


def seeded(seed, text=SCRIPT):
    return text.replace("manual_seed(0)", f"manual_seed({seed})")


@soaked("method", "fork", "spawn")
def test_processes_that_one_python_starts_are_trainings_too(tmp_path, path, script, method):
    whole = forking(seeded(1), seeded(2), method=method)
    assert run_command(script(whole), CaptureSettings(full=every(1), track=0), out=path) == 0
    for seed, one in enumerate((path, tmp_path / "run-2.zarr"), 1):
        assert torch.allclose(rows_of(one), exact(seed))


def test_a_training_that_cannot_be_recorded_takes_no_number(tmp_path, path, script, capfd):
    text = forking(seeded(1, SCRIPT.replace("self.head", "self.tail")), seeded(2))
    settings = CaptureSettings(parameters="head*", full=every(1), track=0)
    assert run_command(script(text), settings, out=path) == 0
    assert torch.equal(rows_of(path), exact(2)[:, 35:])
    assert not (tmp_path / "run-2.zarr").exists()
    assert "not recorded: ValueError: parameters must match" in capfd.readouterr().err


TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"


@pytest.mark.soak
def test_two_groups_of_workers_are_two_trainings(tmp_path, path, script):
    _, file = script(DISTRIBUTED)
    command = ["sh", "-ec", f"{TORCHRUN} {file}\n{TORCHRUN} {file}"]
    assert run_command(command, CaptureSettings(full=every(2), track=0), out=path) == 0
    for one in (path, tmp_path / "run-2.zarr"):
        store = GradientStore.open(one)
        assert store.workers == (0, 1)
        for worker in range(2):
            stream = store.stream(worker)
            assert stream.steps.tolist() == [0, 2, 4]
            assert set(stream.coordinates["segment"]) == {0}


@pytest.mark.soak
@pytest.mark.parametrize("shell", ["{}; exit $?", "exec {}"])
def test_a_restart_by_torchrun_finds_the_run_of_its_training(tmp_path, path, script, shell):
    """The second of two torchruns restarts; each has its run, the second in two segments."""
    fails = DISTRIBUTED.replace(
        'dist.init_process_group("gloo")',
        "import os, gradstats\n"
        "attempt = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "own = dict(rank=int(os.environ['RANK']), world_size=2)\n"
        f"meeting = f'file://{tmp_path}/{{os.environ[\"NUMBER\"]}}-{{attempt}}'\n"
        "dist.init_process_group('gloo', init_method=meeting, **own)",
    ).replace(
        "dist.destroy_process_group()",
        "gradstats.close_all(); dist.barrier()\n"
        "assert attempt != '0' or os.environ['NUMBER'] == '1'\n"
        "dist.destroy_process_group()",
    )
    _, file = script(fails)
    worker = f"--no-python sh -c '{shell.format(f'{sys.executable} {file}')}'"
    lines = [f"NUMBER={n} {TORCHRUN} --max-restarts {n - 1} {worker}" for n in (1, 2)]
    assert (
        run_command(
            ["sh", "-ec", "\n".join(lines)], CaptureSettings(full=every(2), track=0), out=path
        )
        == 0
    )
    for one, segments in ((path, [0, 0, 0]), (tmp_path / "run-2.zarr", [0, 0, 0, 1, 1, 1])):
        for worker in range(2):
            stream = GradientStore.open(one).stream(worker)
            assert stream.coordinates["segment"].tolist() == segments
    assert not (tmp_path / "run-3.zarr").exists()


def test_paths_of_trainings():
    assert numbered("a/run.zarr", 1) == "a/run.zarr"
    assert numbered("/a.b/run", 2) == "/a.b/run-2"
    assert numbered("s3://bucket/run.zarr", 10) == "s3://bucket/run-10.zarr"
    assert numbered(".zarr", 2) == ".zarr-2"


def test_numbers_are_given_out_once(tmp_path):
    trainings, out = Trainings(tmp_path), str(tmp_path / "run.zarr")
    with trainings.claim(out, "error") as (first, _), trainings.claim(out, "error") as (second, _):
        pass
    assert [first, second] == [numbered(out, 1), numbered(out, 2)]
    with pytest.raises(ArithmeticError), trainings.claim(out, "error"):
        raise ArithmeticError
    with trainings.claim(out, "error") as (third, _):
        pass
    assert [entry.path for entry in trainings.entries] == [first, second, third]
    assert third == numbered(out, 3)


@pytest.mark.parametrize("at", ["auto", "clipped"])
def test_a_rank_left_in_the_environment_is_said(path, monkeypatch, capsys, at):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = nn.Linear(3, 2)
    assert isinstance(capture(model, sgd(model), path, at=at, quiet=True), Idle)
    err = capsys.readouterr().err
    assert "RANK and WORLD_SIZE say that this is rank 1 of 2" in err
    assert "unset RANK" in err


def test_a_rank_0_left_in_the_environment_is_said(path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = nn.Linear(3, 2)
    capture(model, sgd(model), path).close()
    assert "by RANK and WORLD_SIZE: no process group" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "world"), [("1", None), ("1", "1"), ("3", "2"), ("-1", "2"), ("one", "2")]
)
def test_a_rank_that_cannot_be_is_none(path, monkeypatch, read, rank, world):
    monkeypatch.setenv("RANK", rank)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    model = nn.Linear(3, 2)
    optimizer = sgd(model)
    with capture(model, optimizer, path, full=every(1), track=0):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(read(path).read(0), torch.ones(8))
    assert read(path).coordinates["world_size"].tolist() == [1]


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


class Choosy(nn.Module):
    """As a GAN's: its parameters() wants to know of which part."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def parameters(self, part):
        return getattr(self, part).parameters()


class Choosier(Choosy):
    """A wrapper by the name of its only child, with methods of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.module = self.net
        del self.net

    def named_parameters(self, part):
        return getattr(self, part).named_parameters()


class Unready(nn.Module):
    """Its constructor has not called that of Module."""

    def __init__(self) -> None:
        pass


class Hostile(Unready):
    def named_modules(self, *_, **__):
        raise ArithmeticError

    def modules(self):
        raise ArithmeticError


@pytest.mark.parametrize("kind", [Choosy, Choosier, Unready, Hostile])
def test_a_module_that_does_not_list_its_parameters_hides_no_other(kind):
    bystander, model = kind(), nn.Linear(3, 2)
    assert find_model(sgd(model)) is model
    del bystander


@pytest.mark.parametrize(("kind", "part"), [(Choosy, "net"), (Choosier, "module")])
def test_a_model_whose_parameters_need_an_argument_is_recorded(path, read, kind, part):
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(part), lr=0.1)
    assert find_model(optimizer) is model
    with capture(model, optimizer, path, full=every(1), track=0):
        getattr(model, part)(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    names = ["net.weight", "net.bias"] if part == "net" else ["weight", "bias"]  # a wrapper's go
    assert [p.name for p in read(path).parameters] == names
    assert torch.equal(read(path).read(0), torch.ones(8))


def test_an_optimizer_of_bare_tensors_has_no_model():
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=r"no torch.nn.Module owns a parameter of this SGD"):
        find_model(optimizer)
