"""The steps axis: every element's statistics against those of its own series."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import gradstats
from gradstats.fitting import over_steps as module
from gradstats.fitting.over_steps import over_steps
from gradstats.fitting.series import series_columns

RNG = np.random.default_rng(0)


def test_columns_are_those_of_each_series():
    values = RNG.standard_t(3, (300, 7)) + np.arange(7)
    found = series_columns(values, consecutive=True)
    for i, series in enumerate(values.T):
        assert found["mean"][i] == pytest.approx(series.mean())
        assert found["variance"][i] == pytest.approx(series.var(ddof=1))
        assert found["snr"][i] == pytest.approx(abs(series.mean()) / series.std(ddof=1))
        d = series - series.mean()
        assert found["autocorrelation"][i] == pytest.approx((d[1:] * d[:-1]).sum() / (d * d).sum())
    assert (found["n"], found["zeros"]) == (pytest.approx([300] * 7), pytest.approx([0] * 7))


def test_an_autoregression_has_its_coefficient():
    noise = RNG.normal(size=(20_000, 3))
    series = np.zeros_like(noise)
    for t in range(1, len(noise)):
        series[t] = 0.6 * series[t - 1] + noise[t]
    found = series_columns(series, consecutive=True)["autocorrelation"]
    assert found == pytest.approx([0.6] * 3, abs=4 * math.sqrt((1 - 0.36) / 20_000))
    assert np.isnan(series_columns(series, consecutive=False)["autocorrelation"]).all()


def test_the_tail_index_is_that_of_the_law():
    shares = (np.arange(5_001) + 0.5) / 5_001
    values = np.column_stack([5 + stats.norm.ppf(shares), stats.cauchy.ppf(shares) - 3])
    found = series_columns(values, consecutive=False)["tail_index"]
    assert found == pytest.approx([2, 1], abs=0.01)


def test_undefined_values_are_nan_without_a_warning():
    values = np.full((30, 4), 2.0)
    values[:, 1] = np.nan
    values[1:, 2] = np.inf
    values[:, 3] = np.where(np.arange(30) % 3, 0, 1.0)
    found = series_columns(values, consecutive=True)
    assert found["n"].tolist() == [30, 0, 1, 30]
    assert np.isnan(found["mean"]).tolist() == [False, True, False, False]
    assert np.isnan(found["variance"]).tolist() == [False, True, True, False]
    assert found["variance"][0] == 0
    for name in ("snr", "autocorrelation"):
        assert np.isnan(found[name]).tolist() == [True, True, True, False]
    assert np.isnan(found["tail_index"][:3]).all()
    assert found["zeros"][3] == pytest.approx(2 / 3)


@pytest.mark.parametrize("block", [1 << 22, 220 * 300])
@pytest.mark.slow
def test_every_tracked_element_is_a_line_whatever_the_block(
    small_run, gradients_of, monkeypatch, block
):
    monkeypatch.setattr(module, "BLOCK_VALUES", block)
    run = gradstats.open(small_run, parameters="fc.*")
    table = over_steps(run)
    assert set(table["axis"]) == {"steps"}
    assert set(table["parameter"]) == {"fc.weight", "fc.bias"}
    assert len(table) == sum(part.numel for part in run.parts("track"))
    series = {name: [] for name in ("fc.weight", "fc.bias")}
    for step in range(220):
        for name in series:
            series[name].append(gradients_of(step)[name].flatten().double().numpy())
    for line in table.iloc[:: max(1, len(table) // 9)].to_dict("records"):
        own = np.stack(series[line["parameter"]])[:, line["element"]]
        assert line["mean"] == pytest.approx(own.mean())
        assert line["variance"] == pytest.approx(own.var(ddof=1))


def test_steps_without_a_gradient_are_left_out(run_writer, tmp_path):
    grads = {step: {"w": torch.randn(40), "v": torch.randn(30)} for step in range(6)}
    del grads[2]["v"]
    table = over_steps(gradstats.open(run_writer(tmp_path / "s.zarr", grads, tracked=20)))
    counted = table.groupby("parameter")["n"].unique()
    assert counted["w"].tolist() == [6]
    assert counted["v"].tolist() == [5]


def test_two_tracked_rows_are_needed(run_writer, tmp_path):
    run = gradstats.open(run_writer(tmp_path / "f.zarr", {0: {"w": torch.randn(40)}}))
    with pytest.raises(ValueError, match="must have two tracked rows, got 0"):
        over_steps(run)
