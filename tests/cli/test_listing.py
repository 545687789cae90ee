"""`gradstats compressors` and `gradstats families`: what there is, and everything about each."""

import inspect
import json
from dataclasses import dataclass

import pytest

from gradstats.cli.catalogue import compressor_document, compressor_rows, family_document
from gradstats.compressors import (
    COLLECTIVES,
    COMPRESSORS,
    REFERENCE,
    Contract,
    Stateless,
    compressor,
    factory,
)
from gradstats.families import FAMILIES

ROWS = {row["name"]: row for row in compressor_rows()}


@dataclass(frozen=True)
class Mine(Stateless):
    """Nothing at all.

    Args:
        loud: Whether it says so.

    References:
        Nobody, 2026.
    """

    loud: bool = True
    name = "mine"
    contract = Contract("all_gather")

    def message(self, flat, rng=None):
        return compressor("bf16").message(flat, rng)


def test_every_compressor_has_a_row_with_its_contract():
    assert set(COMPRESSORS) <= set(ROWS)
    for name in COMPRESSORS:
        made = ROWS[name]
        assert made["status"] == ("reference" if name in REFERENCE else "supported")
        assert made["kind"] in ("sparsifier", "quantiser", "low rank")
        assert made["summary"].endswith((".", ":")), name
    assert ROWS["topk"]["kind"] == "sparsifier"
    assert ROWS["qsgd"]["promise"].startswith("unbiased, ω <= min(")
    assert (ROWS["ef"]["status"], ROWS["ef"]["memory"]) == ("memory", True)
    assert ROWS["powersgd"]["kind"] == "low rank"
    for name in COLLECTIVES:
        assert ROWS[name]["status"] == ROWS[name]["kind"] == "exchange"


@pytest.mark.parametrize("name", ROWS)
def test_every_example_is_a_spec_and_every_setting_is_explained(name):
    document = compressor_document(name)
    assert str(compressor(document["example"]))
    fixed = {"sidco-e": 1, "sidco-gp": 1, "sidco-p": 1, "mxfp8": 1, "mxfp4": 1}
    settings = {each["name"]: each for each in document["settings"]}
    assert len(settings) == len(inspect.signature(factory(name)).parameters) - fixed.get(name, 0)
    for each in settings.values():
        assert each["meaning"], (name, each)


def test_the_settings_of_one_compressor(call):
    code, shown, err = call("compressors", "qsgd")
    assert (code, err) == (0, "")
    for word in ("bits", "512", "Alistarh", "unbiased", "--compressors", "collective"):
        assert word in shown


def test_the_table_is_json_too(call):
    code, shown, _ = call("compressors", "--json")
    assert code == 0
    assert [each["name"] for each in json.loads(shown)] == list(ROWS)
    code, shown, _ = call("compressors", "ef(topk)", "--json")
    assert code == 2
    document = json.loads(call("compressors", "ef", "--json")[1])
    assert document["settings"][0]["name"] == "compressor"


def test_a_compressor_of_ones_own_is_described(call):
    code, shown, err = call("compressors", "tests.cli.test_listing:Mine")
    assert (code, err) == (0, "")
    for word in ("your own", "loud", "Whether it says so.", "Nobody, 2026."):
        assert word in shown


def test_families(call):
    code, shown, err = call("families")
    assert (code, err) == (0, "")
    assert all(each.name in shown for each in FAMILIES)
    code, shown, err = call("families", "dgamma")
    assert code == 0
    for word in ("shape", "a > 0", "Minka", "--families dgamma", "moments, mle"):
        assert word in shown


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_family_is_explained(family):
    document = family_document(family.name)
    assert document["summary"]
    assert all(each["meaning"] for each in document["parameters"])
