"""Cost models of collectives (alpha-beta): seconds of an exchange on a given network."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

from gradstats.settings import SettingError, whole_number


@dataclass(frozen=True)
class Network:
    """A network of equal links, by the alpha-beta model.

    Attributes:
        workers: n, data-parallel workers.
        bandwidth: bandwidth of a link, in bytes per second.
        latency: alpha, seconds per message; may be 0.

    Raises:
        SettingError: a number that is not positive, or no number.
    """

    workers: int = 8
    bandwidth: float = 10e9 / 8
    latency: float = 20e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", whole_number("workers", self.workers, 1))
        given: dict[str, Any] = {"bandwidth": self.bandwidth, "latency": self.latency}
        for name, value in given.items():
            zero = name == "latency" and value == 0
            if not isinstance(value, Real) or not (float(value) > 0 or zero):
                raise SettingError(name, f"must be positive, got {value!r}")

    def all_reduce(self, nbytes: float, rounds: int = 1) -> float:
        """Seconds of ring all-reduces: rounds 2(n-1) alpha + 2 (n-1)/n nbytes / bandwidth.

        Args:
            nbytes: of a worker's tensors, of all rounds together.
            rounds: all-reduces of which each waits for the one before.

        Example:
            >>> Network(workers=2, bandwidth=1e6, latency=0.0).all_reduce(1e6)
            1.0
        """
        hops = self.workers - 1
        return 2 * hops * (rounds * self.latency + nbytes / self.workers / self.bandwidth)

    def all_gather(self, nbytes: float, rounds: int = 1) -> float:
        """Seconds of ring all-gathers: (n-1)(rounds alpha + nbytes / bandwidth).

        Args:
            nbytes: of a worker's messages, of all rounds together.
            rounds: all-gathers of which each waits for the one before.
        """
        return (self.workers - 1) * (rounds * self.latency + nbytes / self.bandwidth)

    def two_shot(self, nbytes: float) -> float:
        """Seconds of an all-to-all and an all-gather: (n-1)(2 alpha + nbytes / n / bandwidth).

        A ring that encodes anew at each of its n-1 hops, and then gathers, sends as much in as
        many messages.

        Args:
            nbytes: of both codes of the whole gradient together, c + c₂.

        Example:
            >>> Network(workers=4, bandwidth=1e6, latency=0.0).two_shot(2e6)
            1.5
        """
        chunks = nbytes / self.workers  # one of each code
        return (self.workers - 1) * (2 * self.latency + chunks / self.bandwidth)

    def __str__(self) -> str:
        return f"{self.workers} workers on {8 * self.bandwidth / 1e9:g} Gbit/s links"


def check_network(given: Any) -> Network:
    """Return the network that is given, or the default one where it is None.

    Raises:
        SettingError: It is no `Network`.
    """
    if given is None:
        return Network()
    if not isinstance(given, Network):
        rule = "must be a gradstats.network.Network"
        raise SettingError("network", f"{rule}, got {given!r}")
    return given
