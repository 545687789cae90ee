"""The callback in the real Trainer, against gradients that the module itself was shown."""

import pytest
import torch
from torch import nn

pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")

from gradstats.integrations import LightningCallback  # noqa: E402
from gradstats.recording import every  # noqa: E402
from gradstats.store import GradientStore  # noqa: E402


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seen, self.losses = [], []

    def training_step(self, batch, index):
        loss = self.net(batch).square().mean()
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer):
        """Lightning shows gradients before clipping."""
        self.seen.append(torch.cat([p.grad.reshape(-1) for p in self.parameters()]).clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, callbacks, *, ckpt_path=None, **settings):
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.randn(48, 4), batch_size=4)
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        accumulate_grad_batches=2,
        gradient_clip_val=0.05,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **{"max_steps": 6, "enable_checkpointing": False, **settings},
    )
    module = Module()
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


@pytest.mark.parametrize("interval", [1, 2])
def test_the_trainers_gradients_are_recorded(tmp_path, interval):
    path = tmp_path / "run.zarr"
    at = ["local", "reduced", "clipped"]
    callback = LightningCallback(path, full=every(interval), track=None, at=at)
    _, module = fit(tmp_path, [callback])
    stream = GradientStore.open(path).stream()
    facts = stream.coordinates
    steps = list(range(0, 6, interval))
    assert facts["step"].tolist() == [step for step in steps for _ in at]
    assert facts["point"].tolist() == at * len(steps)
    assert (facts["clip_coefficient"] < 1).all()
    assert set(facts["micro_step"]) == {1}
    for row, (step, point) in enumerate(zip(facts["step"], facts["point"], strict=True)):
        factor = facts["clip_coefficient"][row] if point == "clipped" else 1
        exact = module.seen[step] * factor
        assert torch.allclose(stream.read(row), exact, atol=1e-8)
        assert facts["loss"][row] == pytest.approx(module.losses[2 * step + 1], rel=1e-6)


def test_a_fit_from_a_checkpoint_adds_a_segment(tmp_path):
    path = tmp_path / "run.zarr"
    trainer, _ = fit(tmp_path, [LightningCallback(path, full=every(1), track=0)], max_steps=3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = LightningCallback(path, full=every(1), track=0)
    fit(tmp_path, [again], ckpt_path=tmp_path / "last.ckpt")
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


@pytest.mark.parametrize("if_exists", ["error", "resume", "overwrite"])
def test_a_second_fit_is_a_segment_of_its_own(tmp_path, if_exists):
    path = tmp_path / "run.zarr"
    callback = LightningCallback(path, full=every(1), track=0, if_exists=if_exists)
    modules = [fit(tmp_path, [callback], max_steps=steps)[1] for steps in (3, 2)]
    rows = rows_of(path)
    assert [sorted(rows[segment]) for segment in rows] == [[0, 1, 2], [0, 1]]
    for segment, module in enumerate(modules):
        for step, row in rows[segment].items():
            assert torch.allclose(row, module.seen[step], atol=1e-8)


def test_a_fit_that_goes_on_in_the_same_trainer_counts_on(tmp_path):
    path = tmp_path / "run.zarr"
    callback = LightningCallback(path, full=every(1), track=0)
    trainer, module = fit(tmp_path, [callback], max_steps=-1, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(48, 4), batch_size=4))
    rows = rows_of(path)
    assert [sorted(rows[segment]) for segment in rows] == [[*range(6)], [*range(6, 12)]]
    every_row = {step: row for segment in rows.values() for step, row in segment.items()}
    assert all(
        torch.allclose(row, module.seen[step], atol=1e-8) for step, row in every_row.items()
    )


def test_a_fit_that_raises_leaves_the_path_to_the_next(tmp_path):
    path = tmp_path / "run.zarr"
    callback = LightningCallback(path, full=every(1), track=0)

    class Failing(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fit(tmp_path, [callback, Failing()])
    fit(tmp_path, [callback], max_steps=4)
    rows = rows_of(path)
    assert [sorted(rows[segment]) for segment in rows] == [[0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "not recorded: FileExistsError: cannot create"),
        ({"if_exists": "overwrite"}, "not recorded: StoreFormatError"),
        ({"optimizer": 1}, "not recorded: IndexError"),
        ({"parameters": "conv*"}, "not recorded: ValueError: parameters must match"),
    ],
)
def test_what_fails_is_printed_and_the_fit_goes_on(tmp_path, capsys, settings, said):
    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / "file").write_text("precious")
    trainer, _ = fit(tmp_path, [LightningCallback(path, **settings)], max_steps=2)
    assert trainer.global_step == 2
    assert capsys.readouterr().err.count(said) == 1
    assert [file.name for file in path.iterdir()] == ["file"]
