"""When to switch to low rank, and to which rank."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from gradstats.lowrank import RankTracker, VanillaWarmUp, factorize, stable_rank, warm_start


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


def test_a_layer_of_zeros_has_a_rank_of_its_own():
    """No scale can make it of full rank: its stable ranks are taken as they are."""
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 40))
    nn.init.zeros_(model[1].weight)
    tracker = RankTracker(model)
    assert not tracker.update()
    assert tracker.history["1"] == [0]
    assert tracker.ranks == {"0": 20, "1": 1}
    with torch.no_grad():
        model[1].weight[:5, :5] = torch.eye(5)
    tracker.update()
    assert tracker.history["1"][1] == pytest.approx(5, rel=1e-6)
    assert tracker.ranks["1"] == 5


def test_weights_that_are_not_finite_do_not_stand_still_and_have_no_rank():
    model = model_of(np.ones(8))
    tracker = RankTracker(model, earliest=2)
    with torch.no_grad():
        model[0].weight[2, 3] = torch.nan
    assert [tracker.update() for _ in range(20)] == [False] * 20
    with pytest.raises(ValueError, match="cannot tell the rank of 0: NaN or inf"):
        tracker.ranks  # noqa: B018
    with pytest.raises(ValueError, match="weights must be finite, got NaN or inf in 0"):
        RankTracker(model)


def test_a_tracker_looks_at_the_layers_that_factorize_replaces():
    class Scaled(nn.Linear):
        pass

    model = nn.ModuleDict(
        {"own": Scaled(8, 8), "fc": nn.Linear(8, 8), "table": nn.Embedding(8, 8)}
    )
    tracker = RankTracker(model)
    tracker.update()
    assert list(tracker.ranks) == ["fc"]
    with pytest.raises(ValueError, match="must have layers to replace, got Embedding"):
        RankTracker(model["table"])
    factorize(model, 0.5, ranks={"fc": 2})
    with pytest.raises(ValueError, match="must be of full rank, got low rank in fc"):
        tracker.update()


@pytest.mark.parametrize(
    ("layer", "full"),
    [
        (lambda: nn.Conv2d(16, 16, 3, groups=16), 1),
        (lambda: nn.Conv2d(16, 32, 3, groups=4), 8),
        (lambda: nn.LSTM(40, 16), 16),
        (lambda: nn.LSTM(12, 16, 2), 12),
        (lambda: nn.MultiheadAttention(32, 4, kdim=20), 20),
        (lambda: nn.Linear(40, 1), 1),
        (lambda: nn.Linear(1, 40), 1),
    ],
)
def test_no_rank_is_above_that_of_the_matrices_that_are_replaced(layer, full):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": layer()})
    tracker = RankTracker(model)
    tracker.update()
    assert tracker.ranks == {"layer": full}


def test_the_largest_of_the_matrices_of_a_layer_counts():
    model = nn.ModuleDict({"lstm": nn.LSTM(16, 16)})
    spectra = iter([np.ones(16)] * 8)
    with torch.no_grad():
        for weight in model["lstm"].all_weights[0][:2]:
            weight.copy_(torch.cat([model_of(next(spectra))[0].weight for _ in range(4)]))
        tracker = RankTracker(model)
        for n, weight in enumerate(model["lstm"].all_weights[0][:2]):
            ranks = [[3, 2, 5, 1], [1, 7, 2, 2]][n]
            blocks = [model_of(np.r_[np.ones(r), np.zeros(16 - r)])[0].weight for r in ranks]
            weight.copy_(torch.cat(blocks))
    tracker.update()
    assert tracker.ranks == {"lstm": 7}


@pytest.mark.parametrize("unit", [1e-30, 1e-40, 1e30, 1e-200, 1e200])
def test_a_stable_rank_does_not_depend_on_the_unit(unit):
    dtype = torch.float64 if abs(np.log10(unit)) > 45 else torch.float32
    weight = torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0], dtype=dtype)) * unit
    assert stable_rank(weight) == pytest.approx(25 / 16, rel=1e-3 if unit == 1e-40 else 1e-6)
    assert np.isnan(stable_rank(torch.tensor([[1.0, torch.inf], [0, 1]])))
    assert stable_rank(seven := torch.ones(1, 7)) == pytest.approx(1), seven
    with pytest.raises(ValueError, match=r"must be a matrix or more, got shape \(3,\)"):
        stable_rank(torch.ones(3))


def test_an_optimizer_of_another_model_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    other = torch.optim.SGD(deepcopy(model).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="it holds none of the weights that are replaced"):
        warm_start(model, other)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
