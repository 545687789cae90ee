"""The callback in the real Trainer, against gradients that the Trainer itself was given."""

import copy

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

from gradstats.integrations import TransformersCallback  # noqa: E402
from gradstats.recording import every  # noqa: E402
from gradstats.store import GradientStore  # noqa: E402


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x, labels):
        loss = (self.head(self.body(x).tanh())[:, 0] - labels).square().mean()
        return {"loss": loss}


class Spy(transformers.TrainerCallback):
    """What the Trainer shows before the optimizer's step: gradients after clipping."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.seen.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone())


def trainer(folder, callbacks, **settings):
    torch.manual_seed(1)
    data = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(48)]
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.05,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{"max_steps": 6, "save_strategy": "no", **settings},
    )
    return transformers.Trainer(model=Model(), args=args, train_dataset=data, callbacks=callbacks)


def test_the_trainers_gradients_are_recorded(tmp_path):
    spy, path = Spy(), tmp_path / "run.zarr"
    callback = TransformersCallback(path, full=every(2), track=10, at=["reduced", "clipped"])
    one = trainer(tmp_path / "out", [spy, callback])
    one.train()
    stream = GradientStore.open(path).stream()
    rows = {point: stream.coordinates["point"] == point for point in ("reduced", "clipped")}
    assert stream.steps[rows["clipped"]].tolist() == [0, 2, 4]
    for row, step in zip(rows["clipped"].nonzero()[0], (0, 2, 4), strict=True):
        assert torch.equal(stream.read(int(row)), spy.seen[step])
    facts = stream.coordinates
    assert (facts["clip_coefficient"] < 1).all()
    assert set(facts["micro_step"]) == {1}
    for row in rows["reduced"].nonzero()[0]:
        clipped = stream.read(int(row)) * facts["clip_coefficient"][row]
        assert torch.allclose(clipped, spy.seen[facts["step"][row]], atol=1e-8)
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert facts["loss"][rows["clipped"]].tolist() == [losses[0], losses[2], losses[4]]


def test_a_training_from_a_checkpoint_adds_a_segment(tmp_path):
    path, out = tmp_path / "run.zarr", tmp_path / "out"
    callback = TransformersCallback(path, full=every(1), track=0)
    trainer(out, [callback], max_steps=3, save_strategy="steps", save_steps=3).train()
    again = trainer(out, [TransformersCallback(path, full=every(1), track=0)])
    again.train(resume_from_checkpoint=str(out / "checkpoint-3"))
    facts = GradientStore.open(path).stream().coordinates
    assert facts["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert facts["segment"].tolist() == [0, 0, 0, 1, 1, 1]


def rows_of(path):
    """By segment: the full rows of a run, with their steps."""
    stream = GradientStore.open(path).stream()
    found = {}
    pairs = zip(stream.coordinates["segment"], stream.steps, strict=True)
    for row, (segment, step) in enumerate(pairs):
        found.setdefault(int(segment), {})[int(step)] = stream.read(row)
    return found


def assert_recorded(rows, seen):
    assert rows.keys() == set(range(len(seen)))
    assert all(torch.equal(rows[step], exact) for step, exact in enumerate(seen))


def test_a_second_train_is_a_segment_of_its_own(tmp_path):
    spy, path = Spy(), tmp_path / "run.zarr"
    callback = TransformersCallback(path, full=every(1), track=0, at="clipped")
    one = trainer(tmp_path / "out", [spy, callback], max_steps=3)
    for _ in range(2):
        one.train()
    rows = rows_of(path)
    assert rows.keys() == {0, 1}
    assert_recorded(rows[0], spy.seen[:3])
    assert_recorded(rows[1], spy.seen[3:])
    assert callback.capture.stats.full_rows == 3


@pytest.mark.parametrize("if_exists", ["error", "resume", "overwrite"])
def test_a_batch_that_does_not_fit_starts_again(tmp_path, monkeypatch, if_exists):
    """auto_find_batch_size: the first start fails at its third backward, and never ends."""
    spy, path, calls = Spy(), tmp_path / "run.zarr", []
    forward = Model.forward

    def full(self, x, labels):
        calls.append(len(x))
        if calls.count(4) > 4 and len(x) == 4:
            raise RuntimeError("CUDA out of memory.")
        return forward(self, x, labels)

    monkeypatch.setattr(Model, "forward", full)
    callback = TransformersCallback(path, full=every(1), track=0, at="clipped",
                                    if_exists=if_exists)  # fmt: skip
    one = trainer(tmp_path / "out", [spy, callback], max_steps=3, auto_find_batch_size=True)
    one.train()
    assert max(calls) == 4
    assert min(calls) < 4
    rows = rows_of(path)
    assert rows.keys() == {0, 1}
    assert_recorded(rows[0], spy.seen[:2])
    assert_recorded(rows[1], spy.seen[2:])


class Wide(Model):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 9), nn.Linear(9, 1)


def test_a_trial_with_another_model_trains_on_unrecorded(tmp_path, capsys):
    path = tmp_path / "run.zarr"
    callback = TransformersCallback(path, full=every(1), track=0)
    trainer(tmp_path / "out", [callback], max_steps=3).train()
    other = trainer(tmp_path / "out", [callback], max_steps=3)
    other.model = Wide()
    assert other.train().global_step == 3
    assert "not recorded: ValueError: cannot resume" in capsys.readouterr().err
    assert callback.capture is None
    assert rows_of(path).keys() == {0}
    trainer(tmp_path / "out", [callback], max_steps=2).train()
    assert rows_of(path).keys() == {0, 1}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "not recorded: FileExistsError: cannot create"),
        ({"if_exists": "overwrite"}, "not recorded: StoreFormatError"),
        ({"track": -1}, "not recorded: SettingError: track must be"),
        ({"nonsense": 1}, "not recorded: TypeError"),
    ],
)
def test_what_fails_is_printed_and_training_goes_on(tmp_path, capsys, settings, said):
    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / "file").write_text("precious")
    callback = TransformersCallback(path, **settings)
    one = trainer(tmp_path / "out", [callback], max_steps=2)
    assert one.train().global_step == 2
    assert capsys.readouterr().err.count(said) == 1
    assert [file.name for file in path.iterdir()] == ["file"]


def test_a_callback_is_copied_without_its_recording(tmp_path):
    callback = TransformersCallback(tmp_path / "run.zarr", full=every(1))
    trainer(tmp_path / "out", [callback], max_steps=2).train()
    assert copy.deepcopy(callback).capture is None
