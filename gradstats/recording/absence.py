"""Parameters that have had no gradient for long."""

from collections.abc import Sequence

import numpy as np

#: Recorded steps without a gradient after which a parameter is pointed out.
LONG = 100


class Absence:
    """Counts recorded steps in which a parameter had no gradient.

    Args:
        names: Of the parameters.
        here: Whether this process holds a part of each.
    """

    def __init__(self, names: Sequence[str], here: Sequence[bool]) -> None:
        self._names = names
        self._here = np.array(here)
        self._absent = np.zeros(len(names), dtype=np.int64)
        self._all_here = True  # none was absent in the last step

    def long_gone(self, present: np.ndarray) -> list[str]:
        """Count a step in; name the parameters that have had no gradient for so long just now."""
        before, self._all_here = self._all_here, np.count_nonzero(present) == len(present)
        if before and self._all_here:  # nothing to count: most steps of most trainings
            return []
        self._absent += 1
        self._absent[present] = 0
        if self._absent.max() < LONG:
            return []
        now = (self._absent == LONG) & self._here
        return [name for name, gone in zip(self._names, now, strict=True) if gone]
