"""Parameters of which every process holds a part: FSDP2's DTensors, FSDP1's flat parameters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradstats.recording.hooks import hook_first
from gradstats.recording.selection import Selected, gradient_dtype
from gradstats.store import Parameter, parameter_table


def tables(
    model: nn.Module, chosen: Sequence[Selected]
) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...]]:
    """The table of whole parameters, and that of this process's part of them."""

    def laid_out(shapes: Sequence[Sequence[int]]) -> tuple[Parameter, ...]:
        return parameter_table(
            [
                (one.name, shape, gradient_dtype(one.tensor))
                for one, shape in zip(chosen, shapes, strict=True)
            ],
            module_types={one.name: one.module_type for one in chosen},
            aliases={one.name: one.aliases for one in chosen},
            sparse=[one.name for one in chosen if one.sparse],
            matrices={one.name: one.matrices for one in chosen if one.matrices is not None},
        )

    flat = _flat_shards(model)
    shards = [flat.get(id(one.tensor)) or _shard(one.tensor) for one in chosen]
    whole = laid_out([shard.get("global_shape", shard["shape"]) for shard in shards])
    own = laid_out([shard["shape"] for shard in shards])
    return whole, tuple(
        replace(parameter, **{key: value for key, value in shard.items() if key != "shape"})
        for parameter, shard in zip(own, shards, strict=True)
    )


def _shard(tensor: Tensor) -> dict[str, Any]:
    """The part of a parameter on this process: all of it, or the local shard of a DTensor."""
    if not hasattr(tensor, "to_local"):
        return {"shape": tensor.shape}
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return {
        "shape": tuple(shape),
        "placement": ", ".join(
            f"Shard({p.dim})" if p.is_shard() else type(p).__name__ for p in placements
        ),
        "global_shape": tuple(tensor.shape),
        "shard_offset": tuple(offset),
    }


def fsdp1_modules(model: nn.Module) -> list[Any]:
    """The FullyShardedDataParallel modules in a model."""
    fsdp = getattr(torch.distributed, "fsdp", None)
    kind = getattr(fsdp, "FullyShardedDataParallel", ())
    return [module for module in model.modules() if isinstance(module, kind)]


def _flat_shards(model: nn.Module) -> dict[int, dict[str, Any]]:
    """The parts of parameters under FSDP1 on this process, by the parameter's identity.

    FSDP1 lays the parameters of a module end to end, pads them, and gives each process a piece: of
    every parameter some elements in a row, as use_orig_params=True shows them, or of the whole.
    """
    shards: dict[int, dict[str, Any]] = {}
    handles = (module._handle for module in fsdp1_modules(model))
    for handle in (handle for handle in handles if handle is not None):
        flat = handle.flat_param
        whole = (flat.numel() * (handle.world_size if handle.uses_sharded_strategy else 1),)
        shards[id(flat)] = _flat_shard(flat, whole, handle.rank * flat.numel())
        infos = getattr(flat, "_shard_param_infos", None) or [None] * len(flat._shapes)
        for tensor, shape, info in zip(flat._params or (), flat._shapes, infos, strict=False):
            begin = getattr(info, "intra_param_start_idx", None) or 0
            shards[id(tensor)] = _flat_shard(tensor, tuple(shape), begin)
    return shards


def _flat_shard(tensor: Tensor, whole: tuple[int, ...], begin: int) -> dict[str, Any]:
    if tuple(tensor.shape) == whole:
        return {"shape": whole}
    shape = (tensor.numel(),)
    return {
        "shape": shape,
        "placement": "FlatShard",
        "global_shape": whole,
        "shard_offset": (begin,),
    }


def backward_counter(model: nn.Module) -> Callable[[Callable[[], None]], Iterable[Any]]:
    """What calls its argument at every backward pass, and yields handles to remove.

    Hooks on parameters do not: under FSDP1 with its original parameters they never run, under
    FSDP2 only where gradients are reduced.
    """

    def attach(count: Callable[[], None]) -> Iterator[Any]:
        handles = [m._handle for m in fsdp1_modules(model) if m._handle is not None]
        if handles:
            yield hook_first(handles[-1].flat_param, lambda _: count())
            return
        last = -1

        def backward(_: Tensor) -> None:
            nonlocal last
            task = torch._C._current_graph_task_id()  # one number per backward pass
            if task != last:
                last = task
                count()

        def forward(_: nn.Module, __: Any, output: Any) -> None:
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(backward)  # type: ignore[no-untyped-call]

        yield model.register_forward_hook(forward)

    return attach
