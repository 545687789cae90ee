"""The callback in the real Trainer, against gradients that the Trainer itself was given."""

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
