"""The state of a communication hook: settings, process group, memories and checkpoints."""

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradstats.compressors import Compressor
from gradstats.exchange.checkpoints import check_checkpoints
from gradstats.exchange.collectives import Group
from gradstats.exchange.counts import Seconds, Traffic
from gradstats.exchange.describing import describe_state
from gradstats.exchange.hook_settings import DEFAULT, By, HookSettings
from gradstats.exchange.joining import agree_on, device_of, try_exchange
from gradstats.exchange.parameter_names import IncompatibleKeys, Names
from gradstats.exchange.parameter_states import Memories, resharded
from gradstats.ratios import MIN_DIMS, MIN_NUMEL


class HookState:
    """Settings, memories and checkpoints of `CompressorState`, without the exchange."""

    def __init__(
        self,
        process_group: Any = None,
        compressor: str | Compressor = DEFAULT,
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
        given = HookSettings(compressor, by, min_numel, min_dims, start_step, seed, check_every)
        self.compressor, self.by, self.dense_rule = given.method, given.by, given.dense_rule
        self.start_step, self.check_every = start_step, check_every
        self.seed, self.scaler = seed, scaler
        self._process_group = process_group
        self._names = Names(named_parameters)
        self._begin()
        if dist.is_available() and dist.is_initialized():
            self._join()

    def _begin(self) -> None:
        """Set the state before the first step."""
        self.traffic, self.seconds = Traffic(), Seconds()
        self.step = self.nonfinite = self._counted_from = 0
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

    def __repr__(self) -> str:
        steps = (self.step, self._counted_from)
        return describe_state(str(self.compressor), self._place()[1], steps, self.traffic)

    # --- the workers ---

    def _join(self) -> Group:
        """Compare settings with the other workers, and try an exchange."""
        group = Group(self._process_group)
        group.device = device_of(self._process_group)
        self._met = weakref.ref(self._current())
        agree_on({**self.settings, "check_every": self.check_every}, self._names, group)
        try_exchange(self.compressor, self.seed, group)
        group.traffic, group.seconds = self.traffic, self.seconds
        self._joined = group
        return group

    def _group(self) -> Group:
        """The process group, checked to be the one that was joined.

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
        """The current rank of this worker; -1 if its group was destroyed."""
        try:
            return dist.get_rank(self._process_group)
        except (RuntimeError, ValueError):
            return -1

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must be the same on all workers."""
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
        """The checkpoint of this worker; each worker has memories of its own.

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
        """Load a checkpoint of this worker, before the first backward pass.

        Args:
            saved: The `state_dict()` of this worker; with `reshard` a list of those of all
                workers, in order.
            strict: Refuse a checkpoint of other parameters; without it the part that fits is
                loaded, which takes names.
            reshard: Set this if the number of workers has changed. What they had not sent is
                added up, so that nothing is lost; some memories refuse this.

        Returns:
            Names of the parameters that the checkpoint lacks, and of those it has in excess.

        Raises:
            ValueError: The checkpoint has other settings, is of another worker or of other
                parameters, or a backward pass has run already.
        """
        if self._names.seen:
            rule = "load_state_dict must be called before the first backward pass"
            raise ValueError(f"{rule}, got it at step {self.step}")
        if self._place()[0] is None:
            raise RuntimeError(
                "torch.distributed must be initialized before a checkpoint is loaded"
            )
        if not isinstance(saved, Mapping | Sequence):
            raise TypeError(f"a checkpoint must be what state_dict() gives, got {saved!r}")
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
        self.step = self._counted_from = parts[0]["step"]
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
        """Give an unpickled state what a pickle cannot hold.

        Args:
            process_group: The group, if the state was not in the default one.
            scaler: The GradScaler, if the state had one.
            named_parameters: The names, if the state had names.
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
        self.step = self._counted_from = saved["step"]
        self._memories.load(saved["memories"])
        self._names.recall(saved["parameters"])
        try:
            Names().match(saved["parameters"], saved["memories"], strict=True)
        except ValueError:  # they have names, or there is a doubt without
            self._lost = tuple(dict.fromkeys((*lost, "named_parameters")))
