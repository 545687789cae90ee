"""Local gradients under FSDP2: a reduce-scatter that records its input and passes it on.

`fully_shard` reduces the gradients of a module in one reduce-scatter. Its input, a flat vector in
`reduce_dtype`, is the gradient that this process computed. `FSDPModule.set_custom_reduce_scatter`
replaces the communication, in this module by one that hands the input to the recording and then
calls the communication that it replaced.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradstats.recording.handle import Capture
from gradstats.recording.messages import Reports
from gradstats.recording.selection import Selected, clean_name
from gradstats.recording.unsharding import (
    Accumulation,
    Fired,
    divided_before,
    members_of,
    whole_gradients,
)

#: FSDP divides gradients of other dtypes before the reduction, so that their sum cannot overflow.
_UNDIVIDED = (torch.float32, torch.bfloat16)


def check_reduce_scatter(model: nn.Module, chosen: Sequence[Selected]) -> bool:
    """Check that the local gradients of a sharded model can be seen.

    Args:
        model: With modules under `fully_shard`.
        chosen: The parameters to record.

    Returns:
        True where reduce-scatters show them; False on one process, where gradients are not reduced
        and the parameters' hooks show them.

    Raises:
        ValueError: They are reduced elsewhere, or the reduce-scatter cannot be replaced.
    """
    if not hasattr(_fsdp_module_type(), "set_custom_reduce_scatter"):
        fact = f"torch {torch.__version__} has no FSDPModule.set_custom_reduce_scatter"
        raise _refused(f"{fact}; use at='reduced' or a newer torch")
    held: dict[int, Any] = {}
    for name, module in _fsdp_modules(model):
        groups = _groups(module)
        if len(groups) > 1:
            fact = f"{name or 'the model'!r} has {len(groups)} parameter groups, and torch takes"
            raise _refused(f"{fact} no custom reduce-scatter there; use at='reduced'")
        held |= {id(one.sharded_param): one for group in groups for one in group.fsdp_params}
    return any([_is_scattered(one, held.get(id(one.tensor))) for one in chosen])


def _is_scattered(one: Selected, sharded: Any) -> bool:
    """Whether a reduce-scatter shows the gradient of a parameter."""
    if sharded is None:
        fact = f"no module under fully_shard holds {one.name!r}"
        raise _refused(f"{fact}; pass the whole model, or select with parameters=")
    tensor: Any = one.tensor
    mesh, placements = tensor.device_mesh, tensor.placements
    if tuple(sharded._orig_size) != tuple(tensor.shape):
        fact = f"{one.name!r} is split by tensor parallelism as well"
        raise _refused(f"{fact}; use at='reduced'")
    shards: int = math.prod(mesh.size(d) for d, p in enumerate(placements) if not p.is_replicate())
    if shards == 1 and mesh.size() > 1:
        fact = f"{one.name!r} is replicated and not sharded, so that no reduce-scatter sees it"
        raise _refused(f"{fact}; use at='reduced', or DistributedDataParallel")
    return shards > 1


def _refused(fact: str) -> ValueError:
    return ValueError(f"at must not be 'local' under fully_shard here: {fact}")


def record_reduce_scatters(model: nn.Module, handle: Capture, reports: Reports) -> None:
    """Put a recording reduce-scatter in front of that of every module under `fully_shard`.

    The user's own communication is called by it, and is back when the recording is closed.
    """
    accumulation = Accumulation([p for p in model.parameters() if hasattr(p, "to_local")])
    for name, module in _fsdp_modules(model):
        for group in _groups(module):
            if not isinstance(group._reduce_scatter_comm, RecordingReduceScatter) or (
                group._reduce_scatter_comm.handle() is not handle
            ):
                comm = RecordingReduceScatter(module, group, handle, accumulation)
                handle.remove_at_close(_Placed(comm, clean_name(name), reports))


class RecordingReduceScatter:
    """The communication of one module: records its input, then does what was done before.

    Args:
        module: Under `fully_shard`.
        group: Its parameters, as FSDP keeps them.
        handle: Of the recording; held weakly, since the module holds this.
        accumulation: Of the model.

    Attributes:
        handle: Returns the recording, or None when it is gone.
        inner: The communication that was there before.
    """

    def __init__(
        self, module: Any, group: Any, handle: Capture, accumulation: Accumulation
    ) -> None:
        self.handle = weakref.ref(handle)
        self.inner: Any = group._reduce_scatter_comm
        self.module, self.group = module, group
        self._accumulation = accumulation
        self._fired = Fired(module, group.fsdp_params)
        module.set_custom_reduce_scatter(self)

    @property
    def __class__(self) -> type:
        """The class of `inner`: some settings of torch raise where it is not torch's own."""
        kind: type = self.inner.__class__
        return kind

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("cannot set the class of a communication")

    def allocate(self, *args: Any, **kwargs: Any) -> Any:
        """Allocate the input or the output, as before."""
        return self.inner.allocate(*args, **kwargs)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, **kwargs: Any
    ) -> Any:
        """Record the input of the reduction and reduce it."""
        handle = self.handle()
        if handle is not None:
            fired = self._fired.taken()
            sharded = [one.sharded_param for one in self.group.fsdp_params]
            gradients = partial(self._gradients, input_tensor, group.size(), fired)
            handle.put_locals(sharded, gradients)
        return self.inner(
            output_tensor=output_tensor, input_tensor=input_tensor, group=group, op=op, **kwargs
        )

    def _gradients(
        self, flat: Tensor, world: int, fired: Sequence[Any] | None
    ) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Each parameter, its whole gradient in its own dtype, and whether it adds to others."""
        add = self._accumulation.goes_on()
        members = members_of(self.group.fsdp_params, fired, flat.numel(), world)
        factor = 1 if flat.dtype in _UNDIVIDED else self._divided_by(world)
        layouts = [(tuple(m._orig_size), m.fsdp_placement.dim) for m in members]
        for member, grad in zip(members, whole_gradients(flat, world, layouts), strict=True):
            grad = grad.to(member.sharded_param.dtype)
            yield member.sharded_param, grad * factor if factor != 1 else grad, add

    def _divided_by(self, world: int) -> int:
        """What FSDP has divided the input by.

        Multiplying by it is exact but for what had become subnormal or zero.
        """
        mesh = getattr(self.group.mesh_info, "mesh", None)
        factor = getattr(self.group, "gradient_divide_factor", None)
        return divided_before(factor or float(mesh.size() if mesh is not None else world))

    def leave(self) -> bool:
        """Put the communication back that was there; False if another has replaced this one."""
        self._fired.remove()
        above, comm = None, self.group._reduce_scatter_comm
        while comm is not self and type(comm) is RecordingReduceScatter:
            above, comm = comm, comm.inner
        if comm is not self:
            return False
        if above is None:
            self.module.set_custom_reduce_scatter(self.inner)
        else:
            above.inner = self.inner
        return True


class _Placed:
    """What to remove when the recording is closed."""

    def __init__(self, comm: RecordingReduceScatter, name: str, reports: Reports) -> None:
        self._comm, self._name, self._reports = comm, name, reports

    def remove(self) -> None:
        """Give the module its communication back."""
        if not self._comm.leave():
            text = f"another custom reduce-scatter has replaced that of {self._name!r}"
            self._reports.once("replaced", f"{text}: rows from there on lack its parameters")


def _fsdp_module_type() -> type:
    """The class that `fully_shard` mixes into modules."""
    fsdp = getattr(torch.distributed, "fsdp", None)
    kind: type = getattr(fsdp, "FSDPModule", type(None))
    return kind


def _fsdp_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = _fsdp_module_type()
    return ((name, one) for name, one in model.named_modules() if isinstance(one, kind))


def _groups(module: Any) -> list[Any]:
    """The parameter groups of a module; older versions of torch have at most one."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [state._fsdp_param_group]
    return [group for group in groups if group is not None]
