"""Counting what makes a host wait for its device, without a device: tensors on a CPU play it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

Call = Mapping[str, Any]
PACKAGE = Path(__file__).parents[1]
READING = {  # operators that wait for the device wherever they run: their host code needs a number
    "_local_scalar_dense",
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "_unique",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "masked_select",
    "multinomial",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
MASKS = (torch.bool, torch.uint8)
TO_HOST = {"numpy", "tolist", "__array__", "cpu"}
FROM_NUMBERS = {"tensor", "as_tensor", "asarray", "new_tensor"}
COPYING = {"to", "cuda", *FROM_NUMBERS}
DEVICE_OF = Tensor.device.__get__
HOST, PLAYED = torch.device("cpu"), torch.device("cpu", 0)
_uploaded = WeakIdKeyDictionary()  # tensors copied to the device in any block: tables are cached


@dataclass
class HostReads:
    """What a block of code did that makes the host wait for the device.

    Attributes:
        reads: how often the host read from the device.
        uploads: how often a tensor of the host was copied to the device.
        sites: file, line and operation of each.
    """

    reads: int = 0
    uploads: int = 0
    sites: list[str] = field(default_factory=list)


@contextmanager
def counting_host_reads(*on_device: Tensor, refuse: bool = False) -> Iterator[HostReads]:
    """Count how often the block would wait for a device that holds some tensors.

    The tensors are on the CPU. These play the device: `on_device`, whatever is computed from them,
    and tensors of the block made for their device, as in `torch.zeros(3, device=grad.device)`, or
    for another one than the CPU. All others belong to the host: reading them costs nothing, and an
    operator that gets tensors of both raises, as on a CUDA device; single numbers and indices of
    the host may go with the device's. Run the kernels in plain torch, under
    `gradstats.kernels.use("eager")`: other forms are not seen.

    Args:
        on_device: The tensors that are on the device before the block starts.
        refuse: Whether the first read or upload raises.

    Yields:
        The counts, which grow while the block runs.

    Raises:
        RuntimeError: An operator got tensors of both, or, under `refuse`, the host read or copied;
            what the block did and where.

    Example:
        >>> grad = torch.tensor([3.0, 0.0, -4.0])
        >>> with counting_host_reads(grad) as counted:
        ...     largest = float(grad.abs().max())
        >>> counted.reads, counted.uploads
        (1, 0)
    """
    device = _Device(refuse)
    for tensor in on_device:
        device.take(tensor)
    with _Operators(device), _Functions(device):
        yield device.counted


class _Device:
    """Memory that plays a device's: which storages are there, and what waited for them."""

    def __init__(self, refuse: bool) -> None:
        self.counted = HostReads()
        self._refuse = refuse
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is reused
        self.calling = False  # whether a function of torch runs that was given its tensors
        self.take(list(_uploaded))

    def take(self, value: Any) -> None:
        """Count the tensors of a tree among the device's."""
        for leaf in _tensors(value):
            storage = leaf.untyped_storage()
            self._storages[storage._cdata] = storage

    def holds(self, value: Any) -> bool:
        """Whether a tensor of a tree is on the device."""
        return any(leaf.untyped_storage()._cdata in self._storages for leaf in _tensors(value))

    def release(self, value: Any) -> None:
        """Count the tensors of a tree among the host's."""
        for leaf in _tensors(value):
            self._storages.pop(leaf.untyped_storage()._cdata, None)

    def read(self, what: str) -> None:
        """Count a read."""
        self.counted.reads += 1
        self._note(what)

    def upload(self, what: str) -> None:
        """Count a copy to the device."""
        self.counted.uploads += 1
        self._note(what)

    def _note(self, what: str) -> None:
        site = f"{what} in {_site(sys._getframe(2))}"
        self.counted.sites.append(site)
        if self._refuse:
            raise RuntimeError(f"cannot wait for the device: {site}")

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy that belongs to the host."""
        copied = tensor.detach().clone()
        self.release(copied)
        return copied


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _site(frame: FrameType | None) -> str:
    """The innermost line of this package, or of a file outside torch."""
    outside = ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path.name != Path(__file__).name:
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        if not outside and "torch" not in path.parts and path.name != Path(__file__).name:
            outside = f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return outside


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what runs, also inside of functions of torch."""

    def __init__(self, device: _Device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Call | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = func.overloadpacket.__name__
        tensors = list(_tensors((args, given)))
        if name == "copy_":
            self._copy(*args[:2])
            tensors = tensors[:1]
        on_device = self._device.holds(tensors)
        if on_device:
            self._meet(name, args, tensors)
        if on_device and self._reads(name, func, args, given):
            self._device.read(name)
        result = func(*args, **given)
        if on_device or (self._device.calling and not tensors):
            self._device.take(result)
        return result

    def _meet(self, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        """Check that what belongs to the host may meet what is on the device."""
        least = 0 if name == "stack" else 1  # a single number travels with other kernels
        hosts = [t for t in tensors if t.dim() >= least and not self._device.holds(t)]
        if not hosts:
            return
        indices = set(map(id, _tensors(args[1]))) if name in INDEXING else set()
        if not indices.issuperset(map(id, hosts)):
            rule = "cannot combine tensors of the host and the device"
            raise RuntimeError(f"{rule}: {name} in {_site(sys._getframe(1))}")
        self._device.upload(name)

    def _copy(self, target: Tensor, source: Tensor) -> None:
        to, of = self._device.holds(target), self._device.holds(source)
        if of and not to:
            self._device.read("copy_")
        if to and not of and source.dim():  # a single number travels with the kernel
            self._device.upload("copy_")

    def _reads(self, name: str, func: Any, args: tuple[Any, ...], given: Call) -> bool:
        if name in INDEXING:
            masks = [index for index in _tensors(args[1]) if index.dtype in MASKS]
            return self._device.holds(masks)
        if name == "repeat_interleave":
            return func._overloadname == "Tensor" and given.get("output_size") is None
        return name in READING


class _Functions(TorchFunctionMode):
    """Sees what no operator does on a CPU: copies between devices, and views by numpy."""

    def __init__(self, device: _Device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Call | None = None
    ) -> Any:
        given: Call = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__deepcopy__":  # which copies memory unseen
            return args[1].setdefault(id(args[0]), args[0].detach().clone())
        if func == DEVICE_OF and self._device.holds(args):
            return PLAYED
        place = self._destination(name, args, given)
        if name == "cuda":
            func, args, given = Tensor.to, (args[0], HOST), {}
        args, given = _on_cpu(name, args, given)
        if name in TO_HOST or (place == HOST and name in COPYING):
            return self._to_host(name, func, args, given)
        result = self._called(func, args, given)
        if place == HOST:
            self._device.release(result)
        if place is None and name == "new_tensor" and self._device.holds(args[:1]):
            place = PLAYED
        return self._there(name, args, result) if place == PLAYED else result

    def _called(self, func: Callable[..., Any], args: tuple[Any, ...], given: Call) -> Any:
        """What a function returns; given tensors of the device, it makes others there."""
        before = self._device.calling
        self._device.calling = self._device.holds((args, given))
        try:
            return func(*args, **given)
        finally:
            self._device.calling = before

    def _to_host(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], given: Call
    ) -> Any:
        if not self._device.holds(args[:1]):
            return func(*args, **given)
        self._device.read(name)
        return func(self._device.to_host(args[0]), *args[1:], **given)

    def _there(self, name: str, args: tuple[Any, ...], result: Any) -> Any:
        """The result of a call that names a device, counted as an upload if it was one."""
        if self._device.holds(result):
            return result
        if name in COPYING:
            self._device.upload(name)
            result = result.clone() if args and result is args[0] else result
            _uploaded[result] = True
        self._device.take(result)
        return result

    def _destination(self, name: str, args: tuple[Any, ...], given: Call) -> torch.device | None:
        """Where a call puts its result, None if it names no device."""
        if name == "cuda":
            return PLAYED
        named = [*(args[1:2] if name == "to" else ()), given.get("device"), given.get("other")]
        for each in named:
            if name == "to" and isinstance(each, Tensor):
                return PLAYED if self._device.holds(each) else HOST
            if isinstance(each, torch.device | str):
                return HOST if torch.device(each) == HOST else PLAYED
        return None


def _on_cpu(name: str, args: tuple[Any, ...], given: Call) -> tuple[tuple[Any, ...], Call]:
    """The arguments of a call, with the CPU for any device that they name."""
    if isinstance(given.get("device"), torch.device | str):
        given = {**given, "device": HOST}
    if name == "to" and isinstance(args[1:2] and args[1], torch.device | str):
        args = (args[0], HOST, *args[2:])
    return args, given
