"""The same training in Lightning, transformers, accelerate and by hand, on several workers."""

import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.integrations import LightningCompression, TransformersCompression, compress

STEPS, BATCH, MICROS = 6, 4, 2  # of an epoch; two epochs are a training
SPECS = ("ef(topk(0.25))", "ef(randomk(0.25))")
SETTINGS = {"min_numel": 16, "check_every": 2}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x, labels=None):
        return {"loss": (self.head(self.body(x).tanh()) - labels).square().mean()}


def rows_of(worker, workers):
    """The examples of a worker: its share of an epoch's batches, in turns."""
    x, y = torch.randn(STEPS * MICROS * workers, BATCH, 8).split([6, 2], dim=2)
    return x[worker::workers], y[worker::workers]


def batches(worker, workers):
    torch.manual_seed(7)
    x, y = rows_of(worker, workers)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def examples(workers):
    """All examples, in the order in which a sequential sampler hands batches to workers."""
    everyone = [batches(worker, workers) for worker in range(workers)]
    return [
        {"x": batch["x"][i], "labels": batch["labels"][i]}
        for turn in zip(*everyone, strict=True)
        for batch in turn
        for i in range(BATCH)
    ]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def weights(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def sent(state):
    """Bytes that were sent, and that would have been sent dense."""
    return state.traffic.wire, state.traffic.dense, repr(state)


def by_hand(spec, worker, workers, prefix=""):
    """Two epochs with a hook that is registered by hand; names are as in the trainer."""
    model = DistributedDataParallel(Model())
    names = [(prefix + name, one) for name, one in model.module.named_parameters()]
    state = CompressorState(None, spec, named_parameters=names, **SETTINGS)
    model.register_comm_hook(state, compress_hook)
    optimizer = sgd(model.parameters())
    for _ in range(2):
        for place, batch in enumerate(batches(worker, workers)):
            last = place % MICROS == MICROS - 1
            with nullcontext() if last else model.no_sync():
                (model(**batch)["loss"] / MICROS).backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()
    return weights(model)


class Lightning(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Model()

    def training_step(self, batch, index):
        return self.net(**batch)["loss"]

    def configure_optimizers(self):
        return sgd(self.parameters())


def lightning_trainer(folder, callbacks, epochs=2, **settings):
    given = {
        "strategy": "ddp" if dist.is_initialized() else "auto",
        "devices": dist.get_world_size() if dist.is_initialized() else 1,
        "accumulate_grad_batches": MICROS,
        "enable_checkpointing": False,
        **settings,
    }
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=callbacks,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **given,
    )


def loader(worker, workers):
    return torch.utils.data.DataLoader(batches(worker, workers), batch_size=None)


def by_lightning(spec, worker, workers, folder, resume=False, **options):
    """Two epochs, or the second of them; and the hook's state."""
    module, callback = Lightning(), LightningCompression(spec, **SETTINGS, **options)
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning_trainer(folder, [callback, saving], enable_checkpointing=True)
    path = Path(folder, "epoch=0.ckpt") if resume else None
    trainer.fit(module, loader(worker, workers), ckpt_path=path)
    return weights(module), callback.state


class Sequential(transformers.Trainer):
    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def transformers_trainer(folder, callbacks, workers, kind=Sequential, **settings):
    given = {"max_steps": 2 * STEPS, "save_steps": STEPS, "save_strategy": "steps", **settings}
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=MICROS,
        max_grad_norm=0.0,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        average_tokens_across_devices=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo" if dist.is_initialized() else None,
        **given,
    )
    model = Model()
    return kind(
        model=model,
        args=args,
        train_dataset=examples(workers),
        callbacks=callbacks,
        optimizers=(sgd(model.parameters()), None),
    )


def by_transformers(spec, worker, workers, folder, resume=False, **options):
    callback = TransformersCompression(spec, **SETTINGS, **options)
    trainer = transformers_trainer(folder, [callback], workers)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-{STEPS}" if resume else None)
    return weights(trainer.model), callback.state


def by_accelerate(spec, worker, workers, folder, resume=False, **options):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICROS)
    model = Model()
    model, optimizer = accelerator.prepare(model, sgd(model.parameters()))
    compression = compress(accelerator, model, spec, **SETTINGS, **options)
    if resume:
        accelerator.load_state(folder)
    for epoch in range(1 if resume else 0, 2):
        for batch in batches(worker, workers):
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
        if not epoch:
            accelerator.save_state(folder)
    return weights(model), compression.state


WAYS = {
    "lightning": by_lightning,
    "transformers": by_transformers,
    "accelerate": by_accelerate,
}


def as_torchrun(worker, workers):
    """The environment by which trainers know that they are not alone."""
    warnings.simplefilter("ignore")
    environment = {
        "RANK": worker,
        "LOCAL_RANK": worker,
        "WORLD_SIZE": workers,
        "LOCAL_WORLD_SIZE": workers,
        "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,  # the group is there already
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ.update({name: str(value) for name, value in environment.items()})


def trained(worker, workers, folder):
    """Every training without an interruption."""
    as_torchrun(worker, workers)
    found = {}
    for spec in SPECS:
        for way, train in WAYS.items():
            prefix = "net." if way == "lightning" else ""
            found[way, spec, "by hand"] = by_hand(spec, worker, workers, prefix)
            own, state = train(spec, worker, workers, place(folder, way, spec))
            found[way, spec] = own, sent(state), state.step
    return found


def resumed(worker, workers, folder):
    """The second half of every training, in other processes."""
    as_torchrun(worker, workers)
    found = {}
    for spec in SPECS:
        for way, train in WAYS.items():
            own, state = train(spec, worker, workers, place(folder, way, spec), resume=True)
            found[way, spec] = own, sent(state), state.step
    return found


def place(folder, way, spec):
    return str(Path(folder, way, spec))
