"""Which elements of a row are tracked."""

from collections.abc import Mapping, Sequence

import numpy as np

from gradstats.store import Parameter


def row_widths(
    table: Sequence[Parameter], element_ids: Mapping[str, np.ndarray] | None = None
) -> dict[str, int]:
    """Elements of a row by dtype: all of them, or the sampled ones."""
    if element_ids is not None:
        return {dtype: len(ids) for dtype, ids in element_ids.items()}
    widths: dict[str, int] = {}
    for parameter in table:
        dense = parameter.numel if parameter.layout == "dense" else 0
        widths[parameter.dtype] = widths.get(parameter.dtype, 0) + dense
    return widths


def sample_elements(
    table: Sequence[Parameter], count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw ``count`` elements of a row uniformly without replacement; all when there are fewer.

    Returns:
        Sorted int64 positions in the flat vector of each dtype that has any.
    """
    widths = row_widths(table)
    total = sum(widths.values())
    # numpy draws without replacement in memory proportional to count; torch would permute all
    drawn = np.sort(rng.choice(total, min(count, total), replace=False, shuffle=False))
    ids: dict[str, np.ndarray] = {}
    start = 0
    for dtype, width in widths.items():
        first, last = np.searchsorted(drawn, (start, start + width))
        if first < last:
            ids[dtype] = drawn[first:last].astype(np.int64) - start
        start += width
    return ids
