"""What a communication hook keeps: its settings, the workers it met, memories and checkpoints."""

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from gradstats.compressors import Compressor, Rng
from gradstats.compressors import compressor as from_spec
from gradstats.compressors.wrappers.per_parameter import without_parts
from gradstats.exchange.checkpoints import check_checkpoints
from gradstats.exchange.collectives import CollectiveError, Group, Seconds, Traffic, digest
from gradstats.exchange.driving import drive, fused
from gradstats.exchange.parameter_names import IncompatibleKeys, Names
from gradstats.exchange.parameter_states import Memories, resharded
from gradstats.ratios import MIN_DIMS, MIN_NUMEL, DenseRule

By = Literal["bucket", "parameter"]
TRIAL = (64, 48)  # of a matrix that is exchanged before the training


class HookState:
    """What a hook keeps beside the bucket at hand, as `CompressorState` says."""

    def __init__(
        self,
        process_group: Any = None,
        compressor: str | Compressor = "ef(exact-threshold(0.01))",
        by: By = "bucket",
        min_numel: int = MIN_NUMEL,
        start_step: int = 0,
        *,
        min_dims: int = MIN_DIMS,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        seed: int = 0,
        scaler: torch.amp.GradScaler | None = None,
        check_every: int = 100,
    ) -> None:
        self.compressor, written = _checked(compressor)
        self.dense_rule = _rule(DenseRule(min_numel, min_dims), written)
        if by not in get_args(By):
            raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
        for name, number in (("start_step", start_step), ("check_every", check_every)):
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"{name} must be a whole number from 0, got {number!r}")
        alone = written is not None or "matrix" in self.compressor.contract.needs
        self.by: By = "parameter" if alone else by
        self.start_step, self.check_every = start_step, check_every
        self.seed, self.scaler = seed, scaler
        self._process_group = process_group
        self._names = Names(named_parameters)
        self._begin()
        if dist.is_available() and dist.is_initialized():
            self._join()

    def _begin(self) -> None:
        """The first step, before any worker is met."""
        self.traffic, self.seconds = Traffic(), Seconds()
        self.step = self.nonfinite = 0
        self.khat_over_k = math.nan
        self._scaled: tuple[float, int] | tuple[()] = ()  # the scaler, in the last backward pass
        self._lost: tuple[str, ...] = ()  # what pickling left behind
        self._memories = Memories(self.compressor, reversible=self.scaler is not None)
        self._joined: Group | None = None
        self._met: weakref.ref[Any] | None = None

    @property
    def min_numel(self) -> int:
        """Number of elements from which a parameter is compressed."""
        return self.dense_rule.min_numel

    @property
    def min_dims(self) -> int:
        """Number of dimensions from which a parameter is compressed."""
        return self.dense_rule.min_dims

    # --- the workers ---

    def _join(self) -> Group:
        """Meet the other workers; refuses what cannot work."""
        group = Group(self._process_group)
        group.device = _device(self._process_group)
        self._met = weakref.ref(self._current())
        self._agree_on_settings(group)
        self._try(group)
        group.traffic, group.seconds = self.traffic, self.seconds
        self._joined = group
        return group

    def _group(self) -> Group:
        """The workers, after a look whether they are still those that were met.

        Raises:
            RuntimeError: they are not.
        """
        if self._lost:
            rule = "a state that was pickled must be given what was left behind"
            raise RuntimeError(f"{rule}: rebind() its {', '.join(self._lost)}")
        # trainers that set up torch.distributed themselves are handed a state before they do
        group = self._joined or self._join()
        met = self._met() if self._met else None
        if met is None or met is not self._current() or self._rank() != group.rank:
            rule = f"the process group must be the one in which this was worker {group.rank}"
            remedy = "make a new CompressorState there, and load the worker's state_dict() into it"
            raise RuntimeError(f"{rule} of {group.workers}, got another one: {remedy}")
        return group

    def _current(self) -> Any:
        return self._process_group or (dist.group.WORLD if dist.is_initialized() else None)

    def _rank(self) -> int:
        """This worker's, now; -1 in a group that is no more."""
        try:
            return dist.get_rank(self._process_group)
        except (RuntimeError, ValueError):
            return -1

    def _agree_on_settings(self, group: Group) -> None:
        settings = {**self.settings, "check_every": self.check_every}
        own = digest(f"{settings} {self._names.order}")
        others = [worker for worker, (told,) in enumerate(group.tell(own)) if told != own]
        if others:
            names = f" and {len(self._names.order)} names" if self._names.named else ""
            fact = f"got {settings}{names} on worker {group.rank}, others on {others}"
            raise ValueError(f"settings must be the same on all workers, {fact}")

    def _try(self, group: Group) -> None:
        """Exchange a matrix and a vector; what a backend lacks it says now."""
        numbers = torch.arange(1.0, math.prod(TRIAL) + 1, device=group.device)
        rng = Rng(self.seed, 0, "trial", group.rank, group.workers)
        exchanges = [
            self.compressor.exchange(grad, self.compressor.init(grad), rng)
            for grad in (numbers.view(TRIAL), numbers)
        ]
        try:
            drive(fused(exchanges), group)
        except CollectiveError as error:
            backend = dist.get_backend(group.group)
            raise RuntimeError(
                f"cannot exchange {self.compressor} over the backend {backend}: {error}"
            ) from error

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same on all workers."""
        return {
            "compressor": str(self.compressor),
            "by": self.by,
            "min_numel": self.min_numel,
            "min_dims": self.min_dims,
            "start_step": self.start_step,
            "seed": self.seed,
            "workers": self._place()[1],
        }

    def _place(self) -> tuple[int | None, int | None]:
        """Rank and number of workers; None while there is no process group."""
        if self._joined:
            return self._joined.rank, self._joined.workers
        if not (dist.is_available() and dist.is_initialized()):
            return None, None
        return dist.get_rank(self._process_group), dist.get_world_size(self._process_group)

    def _was_skipped(self) -> bool:
        """Whether the scaler has skipped the last step: its scale is the next smaller one then."""
        if not (self.scaler and self._scaled):
            return False
        scale = torch.tensor(self._scaled[0]) * self.scaler.get_backoff_factor()
        return self._scaler_now() != self._scaled and self.scaler.get_scale() == float(scale)

    def _scaler_now(self) -> tuple[float, int] | tuple[()]:
        """The scale, and for how many steps: one of them changes with every `update()`."""
        state = self.scaler.state_dict() if self.scaler else {}
        return (state["scale"], state["_growth_tracker"]) if state else ()

    def _settle(self) -> None:
        """Begin a backward pass, of another step of the optimizer or of the same one."""
        now = self._scaler_now()
        if not now or now != self._scaled:
            self._memories.settle(skipped=self._was_skipped())
        self._scaled = now

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of this worker holds; each worker has memories of its own.

        Dicts, lists, tuples, numbers and tensors on the CPU. Parameters go by their names, or by
        their numbers from the last of the model to the first, so that the buckets may differ where
        it is loaded.
        """
        if self._was_skipped():
            self._settle()
        return {
            "settings": self.settings,
            "worker": self._place()[0],
            "step": self.step,
            "parameters": [
                [key, list(shape), dtype] for key, shape, dtype in self._names.described()
            ],
            "memories": self._memories.saved(),
        }

    def load_state_dict(
        self,
        saved: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        strict: bool = True,
        *,
        reshard: bool = False,
    ) -> IncompatibleKeys:
        """Go on from a checkpoint of this worker; before the first backward pass.

        Args:
            saved: what `state_dict` gave on this worker; with `reshard` a list of what it gave on
                all workers, in order.
            strict: refuse a checkpoint of other parameters; without it the part that fits is
                loaded, which takes names.
            reshard: the number of workers has changed. What they had not sent is added up, so that
                nothing is lost; refused where a memory does not allow it.

        Returns:
            Names of parameters that the checkpoint lacks, and of those that it has too many.

        Raises:
            ValueError: of other settings, of another worker, of other parameters, or too late.
        """
        if self._names.seen:
            rule = "load_state_dict must be called before the first backward pass"
            raise ValueError(f"{rule}, got it at step {self.step}")
        if self._place()[0] is None:
            raise RuntimeError(
                "torch.distributed must be initialized before a checkpoint is loaded"
            )
        parts = [saved] if isinstance(saved, Mapping) else list(saved)
        check_checkpoints(parts, {**self.settings, "worker": self._place()[0]}, reshard)
        remembered = {key for part in parts for key in part["memories"]}
        keys, unfit = self._names.match(parts[0]["parameters"], remembered, strict=strict)
        memories = [
            {keys[key]: memory for key, memory in part["memories"].items() if key in keys}
            for part in parts
        ]
        worker, workers = self._place()
        if reshard:
            memories = [resharded(self.compressor, memories, worker or 0, workers or 1)]
        self._memories.load(memories[0])
        self.step = parts[0]["step"]
        if not self._names.named:
            self._names.recall(parts[0]["parameters"])
        return unfit

    def rebind(
        self,
        *,
        process_group: Any = None,
        scaler: torch.amp.GradScaler | None = None,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        """Give a state that was pickled what does not travel.

        Args:
            process_group: where it had one of its own.
            scaler: where it had one.
            named_parameters: where it had names.
        """
        given = {
            "process_group": process_group,
            "scaler": scaler,
            "named_parameters": named_parameters,
        }
        needless = [name for name in given if given[name] is not None and name not in self._lost]
        if needless:
            rule = "rebind must be given what a state that was pickled has left behind"
            raise ValueError(f"{rule}, {', '.join(self._lost) or 'nothing'}, got {needless[0]}")
        if named_parameters is not None:
            names, memories = Names(named_parameters), self._memories.saved()
            keys, _ = names.match(self._names.described(), memories, strict=True)
            self._memories.load({keys[key]: memory for key, memory in memories.items()})
            self._names = names
        self._process_group = process_group or self._process_group
        self.scaler = scaler or self.scaler
        self._memories.reversible = self.scaler is not None
        self._lost = tuple(name for name in self._lost if given[name] is None)

    def __getstate__(self) -> dict[str, Any]:
        """Settings and memories; neither process groups nor the model can be pickled."""
        has = {
            "process_group": self._process_group is not None,
            "scaler": self.scaler is not None,
            "named_parameters": self._names.named,
        }
        kept = ("compressor", "by", "dense_rule", "start_step", "check_every", "seed", "nonfinite")
        lost = tuple(dict.fromkeys([*self._lost, *(name for name, had in has.items() if had)]))
        return {
            **{name: getattr(self, name) for name in kept},
            "saved": self.state_dict(),
            "lost": lost,
        }

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        saved, lost = pickled.pop("saved"), pickled.pop("lost")
        nonfinite = pickled.pop("nonfinite")
        vars(self).update(pickled, scaler=None, _process_group=None, _names=Names())
        self._begin()
        self._lost, self.nonfinite = lost, nonfinite
        self.step = saved["step"]
        self._memories.load(saved["memories"])
        self._names.recall(saved["parameters"])
        try:
            Names().match(saved["parameters"], saved["memories"], strict=True)
        except ValueError:  # they have names, or there is a doubt without
            self._lost = tuple(dict.fromkeys((*lost, "named_parameters")))


def _checked(compressor: str | Compressor) -> tuple[Compressor, DenseRule | None]:
    """The compressor, and the rule it was written with in `per-parameter(…)`."""
    method, rule = without_parts(from_spec(compressor))
    if "loss" in method.contract.needs:
        raise ValueError(f"compressor must not need the loss, which no hook gets, got {method}")
    return method, rule


def _rule(arguments: DenseRule, written: DenseRule | None) -> DenseRule:
    """The rule of the compressor, else the rule of the arguments.

    Raises:
        ValueError: Both were given, and differ.
    """
    if written and arguments not in (DenseRule(), written):
        rule = "min_numel and min_dims must stand in per-parameter(…) or in the arguments"
        raise ValueError(f"{rule}, got {written} there and {arguments} as arguments")
    return written or arguments


def _device(process_group: Any) -> torch.device:
    if "nccl" in dist.get_backend(process_group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
