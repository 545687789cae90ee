"""Families of one's own and references in fits and reports: rows, keys, other processes."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.fitting.ranking import best_by_group, best_distribution, scores, winners
from gradstats.fitting.resumable import fit_into
from gradstats.fitting.settings import FitSettings
from gradstats.settings import in_words

OWN = "tests.testing.own_families:HypSecant"
SOURCE = Path(__file__).parents[1] / "testing" / "own_families.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def my_mod(tmp_path, monkeypatch):
    """A module of one's own in the folder that the command is called in."""
    name = f"secants_{re.sub(r'[^a-z0-9]', '_', tmp_path.name)}"
    (tmp_path / f"{name}.py").write_text(SOURCE.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield name
    sys.modules.pop(name, None)


def test_the_command_fits_a_class_of_the_folder_it_is_called_in(call, small_run, my_mod):
    words = ("fit", small_run, "--families", f"laplace,{my_mod}:HypSecant", "--ratios", "0.1")
    code, shown, err = call(*words, "--out", "results")
    assert (code, err) == (0, "tables: results")
    assert "hypsecant" in shown
    fits = pandas.read_parquet("results/fits.parquet")
    assert set(fits["family"]) == {"laplace", "hypsecant"}
    assert (fits["status"] == "ok").all()
    assert not fits["reference"].any()


@pytest.mark.slow
def test_tasks_in_other_processes_find_the_class_by_import(call, small_run, my_mod, forked_pools):
    names = f"{my_mod}:HypSecant,scipy:hypsecant"
    words = ("fit", small_run, "--families", names, "--ratios", "0.1", "--out")
    assert call(*words, "alone")[0] == 0
    assert call(*words, "results", "--jobs", "2")[0] == 0
    one, two = (pandas.read_parquet(f"{name}/fits.parquet") for name in ("alone", "results"))
    pandas.testing.assert_frame_equal(one, two)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("no_such_mod:X", "cannot import family 'no_such_mod:X': ModuleNotFoundError"),
        (f"{OWN}s", "has no 'HypSecants'; did you mean HypSecant?"),
        ("tests.testing.own_families:likeliest", "must be a subclass of gradstats.families.Fam"),
        ("scipy:hypsecan", "got 'scipy:hypsecan'; did you mean scipy:hypsecant?"),
        (f"{OWN},{OWN[:-9]}ExactHypSecant", "must have different names, got 'hypsecant'"),
    ],
)
def test_the_command_says_why_a_family_is_none(call, small_run, names, message):
    for command in ("fit", "report"):
        code, shown, err = call(command, small_run, "--families", names)
        assert (code, shown) == (2, "")
        assert message in err


def test_an_edited_family_is_fitted_again(small_run, my_mod, tmp_path):
    sys.path.insert(0, str(tmp_path))
    run = gradstats.open(small_run)
    settings = FitSettings(families=f"{my_mod}:HypSecant", ratios=0.1)
    words = in_words(settings.families)
    assert re.fullmatch(rf"hypsecant \({my_mod}, CRC-32 [0-9a-f]{{8}}\)", words[0])
    fitted = fit_into(run, settings, tmp_path / "results")
    path = tmp_path / "results" / "fits.parquet"
    before = path.stat().st_mtime_ns
    fit_into(run, settings, tmp_path / "results")
    assert path.stat().st_mtime_ns == before
    source = tmp_path / f"{my_mod}.py"
    source.write_text(source.read_text() + "\n# another edition\n")
    assert in_words(settings.families) != words
    fit_into(run, settings, tmp_path / "results")
    assert path.stat().st_mtime_ns > before
    assert set(fitted.table("fits")["family"]) == {"hypsecant"}


def test_families_of_the_package_are_named_without_a_checksum():
    assert in_words(FitSettings(families=("laplace", "scipy:norm")).families) == [
        "laplace",
        "scipy:norm",
    ]


@pytest.fixture(scope="module")
def with_references(small_run):
    names = ("laplace", "dgamma", "scipy:norm", "scipy:laplace_asymmetric", OWN)
    return gradstats.fit(gradstats.open(small_run), families=names, ratios=(0.1, 0.01))


def test_references_are_in_the_table_and_never_ranked(with_references):
    table = best_distribution(with_references)
    ranked = table[table["rank"].notna()]
    assert set(ranked["family"]) == {"laplace", "dgamma", "hypsecant"}
    assert list(table["family"])[-2:] == sorted(set(table["family"]) - set(ranked["family"]))
    assert (table.loc[table["rank"].isna(), "wins"] == 0).all()
    assert ranked["wins"].sum() == pytest.approx(1)
    assert table["transfer"].notna().all()
    won = set(winners(with_references)["family"]) | set(best_by_group(with_references)["family"])
    assert not any(name.startswith("scipy:") for name in won)


def test_ranks_are_those_without_the_references(with_references):
    alone = with_references[~with_references["reference"]]
    columns = ["step", "family", "rank", "transfer", "tail"]
    ours = scores(with_references)
    ours = ours[ours["rank"].notna()][columns].reset_index(drop=True)
    pandas.testing.assert_frame_equal(ours, scores(alone)[columns].reset_index(drop=True))


def test_references_alone_have_no_winner(with_references):
    alone = with_references[with_references["reference"]]
    assert best_distribution(alone)["rank"].isna().all()
    assert winners(alone).empty
    assert best_by_group(alone).empty


def test_a_run_of_summaries_is_fitted_from_its_counts(tmp_path):
    rng = np.random.default_rng(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with gradstats.capture(
        layer, optimizer, tmp_path / "s.zarr", summary=True, full=None, track=0
    ):
        for _ in range(2):
            layer.weight.grad = torch.from_numpy(rng.laplace(size=(64, 64)).astype(np.float32))
            optimizer.step()
    run = gradstats.open(tmp_path / "s.zarr")
    table = gradstats.fit(run, families=("scipy:laplace", OWN), ratios=0.1)
    assert (table["status"] == "ok").all()
    assert table["scale"].iloc[0] == pytest.approx(1, rel=0.05)
    assert "4,096 of 4,096 elements" in table["notes"].iloc[0]


@pytest.mark.slow
def test_a_report_has_the_families_that_were_asked_for(small_run, tmp_path, undrawn):
    run = gradstats.open(small_run, steps=(0, 20, 1))
    names = ("laplace", OWN, "scipy:norm")
    path = gradstats.report(
        run, families=names, compressors="topk", ratios=0.1, budget=0, out=tmp_path / "r"
    )
    fits = pandas.read_parquet(tmp_path / "r" / "fits.parquet")
    assert set(fits["family"]) == {"laplace", "hypsecant", "scipy:norm"}
    page = path.read_text()
    assert "hypsecant" in page
    assert "scipy:norm" in page
    assert not re.search(r"scipy:norm describes|next, scipy:norm", page)
