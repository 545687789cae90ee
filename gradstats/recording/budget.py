"""How much disk a recording may take: sizes in words, and the rule that keeps it under the cap."""

import math
import re

from gradstats.settings import SettingError

_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}

#: What the store's tables take at most before they hold a row: chunks of many rows, metadata.
TABLE_BYTES = 600_000


def parse_bytes(size: int | str) -> int:
    """Read a size: a number of bytes, or a text with a unit.

    Example:
        >>> parse_bytes("20GB"), parse_bytes("1.5 MiB"), parse_bytes(4096)
        (20000000000, 1572864, 4096)

    Raises:
        SettingError: `size` is not a positive size, or a text without a unit.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = re.fullmatch(r"([0-9.]+)\s*([KMGT]?i?B)?", str(size).strip(), re.IGNORECASE)
    units = {unit.upper(): factor for unit, factor in _UNITS.items()}
    try:
        number, unit = match.groups() if match and isinstance(size, str) else ("", None)
        count = int(float(number) * units[(unit or "B").upper()])
    except (ValueError, KeyError):
        count = 0
    if count < 1:
        raise SettingError("max_bytes", f"must be a positive size such as '20GB', got {size!r}")
    if not unit:
        remedy = f"write {number}GB, {number}MB or {number}B"
        raise SettingError("max_bytes", f"must have a unit, got {size!r}; {remedy}")
    return count


def format_bytes(count: float) -> str:
    """Write a size with three digits.

    Example:
        >>> format_bytes(9_312_000_000), format_bytes(512)
        ('9.31 GB', '512 B')
    """
    power = min(4, max(0, math.floor(math.log(max(count, 1), 1000))))
    scaled = count / 1000**power
    return f"{scaled:.0f} B" if power == 0 else f"{scaled:.3g} {' kMGT'[power]}B"


class Budget:
    """The bytes that may still be written.

    Each time what is left has halved, the interval between full rows doubles, so full rows thin
    out and never reach the cap; tracked rows go on until it is reached.

    The training thread takes, the writer gives back what it could not write: one counter each.

    Attributes:
        available: Bytes to spend.
        doublings: How often the interval has doubled.
    """

    def __init__(self, available: int) -> None:
        self.available = available
        self.doublings = 0
        self._due = 0
        self._taken = 0
        self._returned = 0

    @property
    def remaining(self) -> int:
        """Bytes that are left."""
        return self.available - self._taken + self._returned

    def keeps_full_row(self) -> bool:
        """Decide on the full row that is due now: False when the doubled interval passes it by."""
        while self.remaining < self.available >> (self.doublings + 1):
            self.doublings += 1
            self._due = 0
        self._due += 1
        return self._due % (1 << self.doublings) == 0

    def thin(self) -> None:
        """Let full rows come half as often from now on, whatever is left."""
        self.doublings += 1
        self._due = 0

    def take(self, nbytes: int) -> None:
        """Count `nbytes` as written."""
        self._taken += nbytes

    def give_back(self, nbytes: int) -> None:
        """Return bytes that were taken and not written."""
        self._returned += nbytes
