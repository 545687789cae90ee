"""A disk that is really full: training goes on, losses are counted, what is stored is exact."""

import numpy as np
import pytest

from gradstats.store import GradientStore
from tests.processes import heard, soaked
from tests.recording import full_disk
from tests.recording.exact import check_exact
from tests.recording.victims import PATIENCE, STRIDE, Launch

pytestmark = pytest.mark.slow


@soaked("times", 5, 25)
def test_a_disk_full_again_and_again(tmp_path, process, times, record_property):
    """Each time it fills up at another place of an append."""
    rng, launch = np.random.default_rng(3), Launch(77, ("local", "reduced"))
    frees = [0, *rng.integers(1, 40, times - 1).tolist()]
    out = tmp_path / "out.zarr"
    child, pipe = process(full_disk.train, tmp_path / "disk", out, launch, frees)
    said = heard(pipe)
    if isinstance(said, str):
        pytest.skip(said)
    child.join(PATIENCE)
    assert child.exitcode == 0
    steps, stats, err = said
    assert steps == 9 * times + 1
    assert err.count("No space left on device") == 1
    rows = {}
    for kind in ("full", "track", "summary", "shadow"):
        stream = GradientStore.open(out).stream(0, kind)
        rows[kind] = len(stream)
        if kind != "shadow":
            check_exact(stream, np.arange(len(stream)), launch, 0)
        with_space = {9 * time + i for time in range(times) for i in range(2)} | {9 * times}
        assert with_space <= set(stream.steps) | {
            s for s in with_space if s % 2 and kind == "full"
        }
    due = 2 * (-(-steps // STRIDE) + 2 * steps)
    stored = rows["full"] + rows["track"] + rows["summary"]
    assert (stats.full_rows, stats.tracked_rows, stats.summary_rows) == tuple(rows.values())[:3]
    assert stats.dropped == due - stored + rows["track"] - rows["shadow"]
    assert stats.dropped > times
    record_property("times the disk was full", times)
    record_property("rows verified", stored)
