"""One compressor on many workers: simulated in one process, or over a process group."""

from gradstats.exchange.driving import (
    DisagreementError,
    Exchange,
    Rounds,
    drive,
    fused,
    simulate,
)

__all__ = ["DisagreementError", "Exchange", "Rounds", "drive", "fused", "simulate"]
