"""What trainers do beside the plain loop, each with compression on two workers."""

import contextlib
import io
import shutil
from pathlib import Path

import lightning.pytorch as pl
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DDPCommunicationHookType
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradstats.exchange.hook_settings import HookSettings
from gradstats.integrations import (
    LightningCallback,
    LightningCompression,
    TransformersCallback,
    TransformersCompression,
    compress,
)
from gradstats.integrations.compression import Compression
from gradstats.recording import every
from gradstats.store import GradientStore
from tests.exchange.nets import outcome
from tests.integrations.compressed import (
    SETTINGS,
    SPECS,
    STEPS,
    WAYS,
    Lightning,
    Model,
    Sequential,
    as_torchrun,
    batches,
    by_accelerate,
    lightning_trainer,
    loader,
    place,
    resumed,
    sgd,
    transformers_trainer,
    weights,
)

SPEC = SPECS[0]


class Manual(Lightning):
    """Steps the optimizer itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.net(**batch)["loss"])
        optimizer.step()


def fit(folder, worker, module=None, callbacks=(), **settings):
    """One epoch in Lightning: the weights, the callback."""
    module, callback = module or Lightning(), LightningCompression(SPEC, **SETTINGS)
    trainer = lightning_trainer(folder, [callback, *callbacks], epochs=1, **settings)
    trainer.fit(module, loader(worker, 2))
    return weights(module), callback


LIGHTNING = {
    "plain": {},
    # torch itself fails where the first backward pass of a static graph is one of no_sync
    "static graph": {"strategy": DDPStrategy(static_graph=True), "accumulate_grad_batches": 1},
    "unused parameters": {"strategy": "ddp_find_unused_parameters_true"},
    "views": {"strategy": DDPStrategy(gradient_as_bucket_view=True)},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "16-mixed": {"plugins": MixedPrecision("16-mixed", "cpu")},
}


def in_lightning(worker, folder):
    found = {}
    for name, settings in LIGHTNING.items():
        own, callback = fit(folder, worker, **settings)
        found[name] = own, callback.state.step, callback.state.traffic.wire
        found[name, "scaled"] = callback.state.scaler is not None
    own, callback = fit(folder, worker, Manual(), accumulate_grad_batches=1)
    found["manual"] = own, callback.state.step, callback.state.traffic.wire
    compiled = torch.compile(Lightning(), backend="eager")
    callback = LightningCompression(SPEC, **SETTINGS)
    lightning_trainer(folder, [callback], epochs=1).fit(compiled, loader(worker, 2))
    found["compiled"] = weights(compiled), callback.state.step, callback.state.traffic.wire
    return found


def fit_twice(worker, folder):
    """Two epochs in two fits of one Trainer; and what it saved between them by hand."""
    module, callback = Lightning(), LightningCompression(SPEC, **SETTINGS)
    trainer = lightning_trainer(folder, [callback], epochs=1)
    trainer.fit(module, loader(worker, 2))
    before = callback.state.state_dict()["memories"]
    trainer.fit_loop.max_epochs = 2
    carried = {}

    class Look(pl.Callback):
        def on_train_start(self, *_):
            carried.update(callback.state.state_dict()["memories"])

    trainer.callbacks.append(Look())
    trainer.fit(module, loader(worker, 2))
    return before, carried, callback.state.step


def train_twice(worker, folder):
    """Two trainings of one transformers Trainer, in the same wrapper."""
    callback = TransformersCompression(SPEC, **SETTINGS)
    trainer = transformers_trainer(folder, [callback], 2, max_steps=3, save_strategy="no")
    found = []
    for _ in range(2):
        trainer.train()
        found.append((callback.state, callback.state.step, weights(trainer.model)))
    return found[0][0] is not found[1][0], [each[1:] for each in found]


def recorded(worker, folder):
    """Recording and compression in one trainer: local gradients of the first step."""
    found = {}
    recording = {"full": every(1), "track": 0, "at": "local", "quiet": True}
    path = Path(folder, "lightning.zarr")
    own, _ = fit(folder, worker, callbacks=[LightningCallback(path, **recording)])
    found["lightning"] = own, rows(path, worker)
    path = Path(folder, "transformers.zarr")
    callbacks = [
        TransformersCallback(path, **recording),
        TransformersCompression(SPEC, **SETTINGS),
    ]
    trainer = transformers_trainer(folder, callbacks, 2, max_steps=STEPS, save_strategy="no")
    trainer.train()
    found["transformers"] = weights(trainer.model), rows(path, worker)
    found["expected"] = first_gradient(worker)
    return found


def first_gradient(worker):
    """What the first step's local gradient must be."""
    model = Model()
    for batch in batches(worker, 2)[:2]:
        (model(**batch)["loss"] / 2).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


def rows(path, worker):
    """Full rows of this worker."""
    stream = GradientStore.open(path).stream(worker=worker)
    return [stream.read(row) for row in range(len(stream.steps))]


class Around(Sequential):
    """Trains the inner model, not the wrapped one."""

    def compute_loss(self, model, inputs, **_):
        return self.model(**inputs)["loss"]


def around(worker, folder):
    """What is printed where DistributedDataParallel is bypassed."""
    callback = TransformersCompression(SPEC, **SETTINGS)
    settings = {"max_steps": 2, "save_strategy": "no", "kind": Around}
    return said(transformers_trainer(folder, [callback], 2, **settings).train)


def refused(worker, folder):
    """What raises, by what was tried."""
    found = {}
    strategy = DDPStrategy(ddp_comm_hook=fp16_compress_hook)
    found["ddp_comm_hook"] = outcome(lambda: fit(folder, worker, strategy=strategy))
    path = Path(folder, "hook.zarr")
    first = LightningCallback(path, local_by="comm_hook", full=every(1), at="local", quiet=True)
    callback = LightningCompression(SPEC, **SETTINGS)
    trainer = lightning_trainer(folder, [first, callback], epochs=1)
    found["local_by"] = outcome(lambda: trainer.fit(Lightning(), loader(worker, 2)))
    hooks = DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.FP16)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[hooks])
    model = accelerator.prepare(Model())
    found["comm_hook"] = outcome(lambda: compress(accelerator, model, SPEC))
    twice = Accelerator(cpu=True)
    again = twice.prepare(Model())
    compress(twice, again, SPEC)
    found["twice"] = outcome(lambda: compress(twice, again, SPEC))
    both = nn.ModuleList([DistributedDataParallel(Model()), DistributedDataParallel(Model())])
    for name, made in {
        "not wrapped": Model,
        "fully sharded": lambda: fully_shard(Model()),
        "DataParallel": lambda: nn.DataParallel(Model()),
        "several": lambda: both,
    }.items():
        compression = Compression(HookSettings(SPEC))
        found[name] = outcome(lambda c=compression, m=made: c.begin(m()))
    return found


def situations(worker, workers, folder):
    as_torchrun(worker, workers)
    found = {
        "lightning": in_lightning(worker, folder),
        "fit twice": fit_twice(worker, folder),
        "train twice": train_twice(worker, folder),
        "recorded": recorded(worker, folder),
        "refused": refused(worker, folder),
        "around": around(worker, folder),
    }
    for name, options in {
        "unused": {"ddp_find_unused_parameters": True},
        "bf16": {"bf16": True},
    }.items():
        callback = TransformersCompression(SPEC, **SETTINGS)
        settings = {"max_steps": STEPS, "save_strategy": "no", **options}
        trainer = transformers_trainer(folder, [callback], 2, **settings)
        trainer.train()
        found["transformers", name] = weights(trainer.model), callback.state.traffic.wire
    for name, options in {"plain": {}, "compiled": {"dynamo_backend": "eager"}}.items():
        accelerator = Accelerator(cpu=True, **options)
        model = Model()
        model, optimizer = accelerator.prepare(model, sgd(model.parameters()))
        compression = compress(accelerator, model, SPEC, **SETTINGS)
        for batch in batches(worker, 2):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        found["accelerate", name] = weights(model), compression.state.traffic.wire
    return found


def copied(way, folder, where):
    """A copy of a checkpoint that may be spoilt."""
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(place(folder, way, SPEC), where)
    return where


def said(train):
    """What a training raises, and prints."""
    with contextlib.redirect_stderr(io.StringIO()) as text:
        fault = outcome(train)
    ours = [line for line in text.getvalue().splitlines() if line.startswith("gradstats: ")]
    lines = [line for line in ours if not line.startswith("gradstats: compressed: ")]
    return fault, lines


def resumes(worker, workers, folder):
    """The plain resumes, and all others."""
    plain = resumed(worker, workers, folder)
    return plain, other_resumes(worker, workers, folder), of_other_weights(worker, workers, folder)


def other_resumes(worker, workers, folder):
    """Resumes that are refused, or lose memories in so many words."""
    as_torchrun(worker, workers)
    found = {}
    for way, train in WAYS.items():
        at = place(folder, way, SPEC)
        cases = {"another spec": ("ef(topk(0.5))", {}), "fresh": (SPEC, {"restore": False})}
        for name, (spec, options) in cases.items():
            found[way, name] = said(
                lambda t=train, s=spec, o=options, a=at: t(s, worker, workers, a, True, **o)
            )
    lost = f"{folder}/lost"
    for way, train in (("transformers", WAYS["transformers"]), ("accelerate", by_accelerate)):
        for name, pattern in {
            "one lost": "gradstats-rank1.pt",
            "all lost": "gradstats-*.pt",
        }.items():
            if not worker:
                copied(way, folder, lost)
                for file in Path(lost).rglob(pattern):
                    file.unlink()
            torch.distributed.barrier()
            found[way, name] = said(lambda t=train: t(SPEC, worker, workers, lost, True))
            torch.distributed.barrier()
    return found


def of_other_weights(worker, workers, folder):
    """The memories of a checkpoint in the place of another one."""
    as_torchrun(worker, workers)
    at = f"{folder}/other"
    if not worker:
        copied("transformers", folder, at)
        for file in Path(at, f"checkpoint-{2 * STEPS}").glob("gradstats-*.pt"):
            shutil.copy(file, Path(at, f"checkpoint-{STEPS}", file.name))
    torch.distributed.barrier()
    train, here = WAYS["transformers"], Path(at, f"checkpoint-{STEPS}")
    refused_ = said(lambda: train(SPEC, worker, workers, at, True))
    forced = said(lambda: train(SPEC, worker, workers, at, True, checkpoint=here))
    return refused_, forced


def another_number(worker, workers, folder):
    """Checkpoints of two workers on another number of them."""
    as_torchrun(worker, workers)
    found = {}
    for way, train in WAYS.items():
        got = []
        at = copied(way, folder, f"{folder}/{workers} {way} {worker}")
        fault, lines = said(
            lambda t=train, a=at, g=got: g.append(t(SPEC, worker, workers, a, True))
        )
        found[way] = fault, lines, got[0][0] if got else None
    return found
