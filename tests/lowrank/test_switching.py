"""When to switch to low rank, and to which rank."""

import numpy as np
import pytest
import torch
from torch import nn

from gradstats.lowrank import RankTracker, VanillaWarmUp, stable_rank


def model_of(spectrum):
    """One layer with these singular values."""
    generator = torch.Generator().manual_seed(0)
    n = len(spectrum)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=generator)).Q for _ in range(2))
    model = nn.Sequential(nn.Linear(n, n, bias=False))
    with torch.no_grad():
        model[0].weight.copy_((u * torch.as_tensor(spectrum).float()) @ v.T)
    return model


def test_a_warm_up_switches_once():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    optimizer = torch.optim.Adam(model.parameters())
    warm_up = VanillaWarmUp(model, optimizer, epochs=2, rank_ratio=0.5, keep=["1"])
    seen = [warm_up(epoch) for epoch in range(4)]
    assert [found[1] is optimizer for found in seen] == [True, True, False, False]
    assert seen[2][1] is seen[3][1]
    assert warm_up.found.changes[0].rank == 16 or warm_up.found.changes[0].kept
    weight = model[0].weight if isinstance(model[0], nn.Linear) else None
    assert (weight is None) == (warm_up.found.changes[0].rank > 0)


def test_a_warm_up_keeps_what_was_learnt():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(32, 4) @ torch.randn(4, 32))
    weight = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, _ = VanillaWarmUp(model, optimizer, epochs=0)(0)
    torch.testing.assert_close(model[0].weight, weight, rtol=0, atol=1e-4)


def test_no_warm_up_of_less_than_nothing():
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="epochs must be a whole number"):
        VanillaWarmUp(model, torch.optim.SGD(model.parameters(), lr=0.1), epochs=-1)


def test_ranks_are_scaled_stable_ranks():
    """A flat spectrum at first, ξ = 1; then 5 of 40 values alike and the rest nothing."""
    model = model_of(np.ones(40))
    tracker = RankTracker(model)
    with torch.no_grad():
        model[0].weight.copy_(model_of(np.r_[np.ones(5), np.zeros(35)])[0].weight)
    assert not tracker.update()
    assert tracker.history["0"] == [pytest.approx(5, rel=1e-4)]
    assert tracker.ranks["0"] in (5, 6)  # 5 up to rounding, from above


def test_ranks_at_initialization_are_full():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv2d(4, 8, 3))
    tracker = RankTracker(model)
    tracker.update()
    assert tracker.ranks == {"0": 20, "1": 8}
    assert stable_rank(model[0].weight) < 20


@pytest.mark.parametrize(("earliest", "expected"), [(15, 15), (20, 20)])
def test_the_switch_is_when_ranks_stand_still_and_not_before_its_time(earliest, expected):
    model = model_of(np.ones(40))
    tracker = RankTracker(model, earliest=earliest)
    told = [tracker.update() for _ in range(25)]
    assert told.index(True) + 1 == expected
    assert all(told[expected - 1 :])


def test_no_switch_while_a_rank_falls():
    """A rank lost an epoch for 20 epochs, then none: the mean slope has to forget."""
    model = model_of(np.ones(40))
    tracker = RankTracker(model)
    told = []
    for epoch in range(60):
        alike = max(20, 40 - epoch)
        spectrum = np.r_[np.ones(alike), np.zeros(40 - alike)]
        with torch.no_grad():
            model[0].weight.copy_(model_of(spectrum)[0].weight)
        told.append(tracker.update())
    first = told.index(True)
    assert 30 < first < 50
    assert not any(told[:first])
    assert tracker.ranks["0"] in (20, 21)


def test_a_rank_that_swings_does_not_stand_still():
    """A rank more and a rank less by turns of three epochs: slopes of either sign add up to 0."""
    tracker = RankTracker(model_of(np.ones(40)))
    told = []
    for epoch in range(48):
        alike = (30, 36, 40, 34)[epoch // 3 % 4]
        with torch.no_grad():
            flat = np.r_[np.ones(alike), np.zeros(40 - alike)]
            tracker._model[0].weight.copy_(model_of(flat)[0].weight)
        told.append(tracker.update())
    assert not any(told)


@pytest.mark.parametrize("settings", [{"still": 0.0}, {"earliest": 1}, {"earliest": 2.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="still must be positive and earliest at least 2"):
        RankTracker(model_of(np.ones(4)), **settings)
