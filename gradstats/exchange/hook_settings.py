"""Settings of a communication hook: the keywords of its state and of the trainers' callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

from gradstats.compressors import Compressor
from gradstats.exchange.joining import checked, chosen_rule
from gradstats.ratios import MIN_DIMS, MIN_NUMEL, DenseRule
from gradstats.settings import check_fields, setting

By = Literal["bucket", "parameter"]
DEFAULT = "ef(exact-threshold(0.01))"


@dataclass(frozen=True)
class HookSettings:
    """How gradients are compressed; checked, and with the rule of `per-parameter(…)` applied.

    The arguments of `CompressorState` say more of each.

    Raises:
        ValueError: A setting is out of range, or the compressor needs the loss.
    """

    compressor: str | Compressor = setting(DEFAULT, "A spec, or an instance.")
    by: By = setting("bucket", "What is one vector.", choices=get_args(By))
    min_numel: int = setting(MIN_NUMEL, "Parameters of fewer elements are sent dense.")
    min_dims: int = setting(MIN_DIMS, "Parameters of fewer dimensions are sent dense.")
    start_step: int = setting(0, "Everything is sent dense in the steps before this one.", least=0)
    seed: int = setting(
        0, "Whole number from which random methods derive their random numbers.", least=0
    )
    check_every: int = setting(
        100, "Steps after which the workers compare what they wrote; 0: never.", least=0
    )

    def __post_init__(self) -> None:
        check_fields(self)
        method, written = checked(self.compressor)
        rule = chosen_rule(DenseRule(self.min_numel, self.min_dims), written)
        alone = written is not None or "matrix" in method.contract.needs
        by: By = "parameter" if alone else self.by
        vars(self).update(
            compressor=method, by=by, min_numel=rule.min_numel, min_dims=rule.min_dims
        )

    @property
    def method(self) -> Compressor:
        """The compressor, as an instance."""
        return cast("Compressor", self.compressor)

    @property
    def dense_rule(self) -> DenseRule:
        """Which parameters are sent dense."""
        return DenseRule(self.min_numel, self.min_dims)
