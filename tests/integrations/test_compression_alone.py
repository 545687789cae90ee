"""Compression callbacks in one process, their signatures and their names."""

import copy
import inspect
import pickle
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

from accelerate import Accelerator  # noqa: E402

from gradstats.exchange.hook_settings import HookSettings  # noqa: E402
from gradstats.integrations import (  # noqa: E402
    CompressionCallback,
    LightningCallback,
    LightningCompression,
    TransformersCallback,
    TransformersCompression,
    compress,
)
from gradstats.integrations.compression import Compression  # noqa: E402
from gradstats.recording.settings import CaptureSettings  # noqa: E402
from tests.integrations.compressed import (  # noqa: E402
    Lightning,
    Model,
    lightning_trainer,
    loader,
    transformers_trainer,
    weights,
)

ALONE = "gradstats: one process trains the model, so that nothing is exchanged"
DROPPED = "gradstats: the memories of 2 workers in the checkpoint are dropped"
SPEC = "ef(topk(0.25))"
CALLBACKS = [LightningCompression, TransformersCompression]


def test_one_process_of_lightning_trains_as_without(tmp_path, capsys):
    trained = []
    for callbacks in ([LightningCompression(SPEC)], []):
        module = Lightning()
        lightning_trainer(tmp_path, callbacks, epochs=1).fit(module, loader(0, 1))
        trained.append(weights(module))
    assert torch.equal(*trained)
    assert capsys.readouterr().err.count(ALONE) == 1


def test_one_process_of_transformers_trains_as_without(tmp_path, capsys):
    trained = []
    for callbacks in ([TransformersCompression(SPEC)], []):
        trainer = transformers_trainer(tmp_path, callbacks, 1, max_steps=2, save_steps=1)
        trainer.train()
        trained.append(weights(trainer.model))
    assert torch.equal(*trained)
    assert capsys.readouterr().err.count(ALONE) == 1
    assert not list(tmp_path.rglob("gradstats-*"))


def test_one_process_of_accelerate_says_what_it_drops(tmp_path, capsys):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(Model())
    compression = compress(accelerator, model, SPEC)
    assert compression.state is None
    assert capsys.readouterr().err.count(ALONE) == 1
    accelerator.save_state(str(tmp_path))
    assert not list(tmp_path.rglob("gradstats-*"))
    for worker in range(2):
        saved = {"settings": {"workers": 2}, "worker": worker}
        torch.save({"state": saved, "weights": 0}, tmp_path / f"gradstats-rank{worker}.pt")
    accelerator.load_state(str(tmp_path))
    assert capsys.readouterr().err.splitlines() == [DROPPED]


def test_data_parallel_is_refused_with_the_remedy():
    compression = Compression(HookSettings(SPEC))
    with pytest.raises(TypeError, match=r"trained by DataParallel, .* start one per device by"):
        compression.begin(nn.DataParallel(Model()))


@pytest.mark.parametrize("make", [*CALLBACKS, CompressionCallback])
@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"compressor": "topk(2)"}, ValueError, "ratio must lie in"),
        ({"compressor": SPEC, "by": "layer"}, ValueError, "by must be one of bucket, parameter"),
        ({"compressor": SPEC, "min_nunel": 3}, TypeError, "did you mean min_numel?"),
        ({"compressor": SPEC, "start_step": -1}, ValueError, "start_step must be a whole number"),
    ],
)
def test_a_wrong_setting_fails_when_the_callback_is_made(make, settings, error, text, monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers.trainer_callback")
    with pytest.raises(error, match=text):
        make(**settings)


@pytest.mark.parametrize("function", [*CALLBACKS, CompressionCallback, compress])
def test_the_options_of_the_hook_are_in_the_signature(function):
    names = inspect.signature(function).parameters
    assert {"compressor", "by", "min_numel", "min_dims", "start_step", "seed"} <= names.keys()
    assert "settings" not in names


@pytest.mark.parametrize("callback", [LightningCallback, TransformersCallback])
def test_the_options_of_a_recording_are_in_the_signature(callback):
    names = inspect.signature(callback).parameters
    assert inspect.signature(CaptureSettings).parameters.keys() <= names.keys()
    assert "settings" not in names


def test_one_name_stands_for_the_callback_of_the_imported_trainer(monkeypatch):
    with pytest.raises(
        ImportError, match=r"both of Lightning and .* write LightningCompression or"
    ):
        CompressionCallback(SPEC)
    modules = ("lightning.pytorch", "pytorch_lightning", "transformers.trainer_callback")
    kept = {name: sys.modules.get(name) for name in modules}
    for used, kind in zip((modules[0], modules[2]), CALLBACKS, strict=True):
        for name in modules:
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, used, kept[used])
        assert type(CompressionCallback(SPEC)) is kind
    monkeypatch.delitem(sys.modules, used)
    with pytest.raises(ImportError, match="neither of Lightning"):
        CompressionCallback(SPEC)


@pytest.mark.parametrize("kind", CALLBACKS)
def test_a_callback_is_copied_and_prints_its_compressor(kind):
    text = f"{kind.__name__}('{SPEC}', not compressing in this process)"
    for callback in (
        kind(SPEC),
        copy.deepcopy(kind(SPEC)),
        pickle.loads(pickle.dumps(kind(SPEC))),
    ):
        assert repr(callback) == text
        assert callback.state is None
