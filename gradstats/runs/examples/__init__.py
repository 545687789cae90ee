"""Captured runs that come with gradstats, small enough to ship."""

from pathlib import Path

from gradstats.runs.opening import open as open_run
from gradstats.runs.run import Run

_FOLDER = Path(__file__).parent
_ENDING = ".zarr.zip"


def load_example(name: str = "resnet20") -> Run:
    """Open a captured run that comes with gradstats.

    "resnet20" is ResNet-20 on CIFAR-10 in the settled part of its training: two whole gradients,
    and sampled elements of some 300 consecutive steps, rounded to bfloat16.

    Args:
        name: the name of the run.

    Raises:
        ValueError: no example has this name.

    Example:
        >>> load_example("resnet20").consecutive
        'track'
    """
    names = sorted(file.name.removesuffix(_ENDING) for file in _FOLDER.glob(f"*{_ENDING}"))
    if name not in names:
        raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
    return open_run(_FOLDER / f"{name}{_ENDING}")
