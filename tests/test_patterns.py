"""Parameters whose names hold letters of patterns: brackets, stars, dollars."""

import pytest
import torch
from torch import nn

import gradstats
from gradstats.patterns import matching
from gradstats.recording.selection import select
from gradstats.runs.groups import group_of
from gradstats.store import GradientStore, parameter_table

NAMES = (
    "layers[0].w",
    "layers[1].w",
    "layers[10].w",
    "layers0.w",
    "['params']['dense']['kernel']",
    "['params']['dense']['bias']",
    "a*b",
    "ab",
    "x?",
    "w[bold]",
    "[a",
    "plain.weight",
)
SELECTED = {
    "*": NAMES,
    "layers[0].w": ("layers[0].w",),
    "layers[0].*": ("layers[0].w",),
    "layers[*].w": ("layers[0].w", "layers[1].w", "layers[10].w"),
    "layers[1*": ("layers[1].w", "layers[10].w"),
    "layers[0-9].w": ("layers0.w",),
    "layers[[]0].w": ("layers[0].w",),
    "['params']*['kernel']": ("['params']['dense']['kernel']",),
    "*['bias']": ("['params']['dense']['bias']",),
    "a*b": ("a*b",),
    "a?b": ("a*b",),
    "x?": ("x?",),
    "w[bold]": ("w[bold]",),
    "[a": ("[a",),
    "[!a-z[]*": (),
    "*.weight": ("plain.weight",),
}


@pytest.mark.parametrize(("pattern", "names"), SELECTED.items())
def test_a_name_is_itself_and_brackets_of_names_are_brackets(pattern, names):
    assert matching(NAMES, pattern) == set(names)


@pytest.fixture(scope="module")
def bracketed(tmp_path_factory, run_writer):
    rng = torch.Generator().manual_seed(0)
    grads = {s: {n: torch.randn(200, generator=rng) for n in NAMES} for s in (0, 1)}
    return run_writer(tmp_path_factory.mktemp("bracketed") / "run.zarr", grads)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_run_can_be_selected_by_its_name(bracketed, name):
    run = gradstats.open(bracketed, parameters=name)
    assert run.names == (name,)
    assert torch.equal(run.gradient(0)[1], run.read(0, name))


def test_several_patterns_select_what_any_of_them_does(bracketed):
    one, two, *_ = gradstats.open(bracketed).names
    for several in ([one, two], (two, one), iter([one, two, one])):
        assert set(gradstats.open(bracketed, parameters=several).names) == {one, two}
    with pytest.raises(ValueError, match=r"parameters must match one of .*, got \('none',\)"):
        gradstats.open(bracketed, parameters=["none"])


def test_an_alias_selects_a_tied_parameter(tmp_path):
    table = parameter_table([("a[0]", (3,), "float32")], aliases={"a[0]": ["b[0]"]})
    with GradientStore.create(tmp_path / "run.zarr", table) as store:
        store.append(0, {"a[0]": torch.ones(3)})
    assert gradstats.open(tmp_path / "run.zarr", parameters="b[0]").names == ("a[0]",)


def test_capture_selects_by_the_same_rule():
    model = nn.ModuleDict({"layers[0]": nn.Linear(2, 2), "layers0": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def names(*patterns):
        return [one.name for one in select(model, [optimizer], patterns)]

    assert names("layers[0].weight") == ["layers[0].weight"]
    assert names("layers[0].*") == ["layers[0].weight", "layers[0].bias"]
    assert names("layers[0].bias", "layers0.*") == [
        "layers[0].bias",
        "layers0.weight",
        "layers0.bias",
    ]
    with pytest.raises(ValueError, match="must match a name of the model"):
        names("layers[1].weight")


def test_groups_by_a_part_of_a_name_that_holds_brackets():
    table = {p.name: p for p in parameter_table([(n, (2,), "float32") for n in NAMES])}
    for by, group in {
        "layers[1]": {"layers[1].w": "layers[1]"},
        "['params']['dense']": dict.fromkeys(NAMES[4:6], "['params']['dense']"),
        r"layers\[(\d+)\]": {"layers[0].w": "0", "layers[1].w": "1", "layers[10].w": "10"},
        "plain[.]": {"plain.weight": "plain."},
    }.items():
        found = {name: group_of(by, NAMES)(p) for name, p in table.items()}
        assert {name: each for name, each in found.items() if each} == group


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers[0].w", "w[bold]", "['params']['dense']['kernel']"])
def test_the_command_line_takes_and_prints_such_names(bracketed, call, tmp_path, name):
    code, shown, err = call("info", bracketed)
    assert code == 0, err
    assert f"  {name}  200" in shown
    for words in (
        ("fit", "--families", "laplace", "--group-by", "parameter"),
        ("replay", "--compressors", "topk"),
    ):
        code, shown, err = call(
            words[0], bracketed, "--parameters", name, *words[1:], "--out", tmp_path / words[0]
        )
        assert code == 0, err
        assert name in shown or words[0] == "replay"
    code, _, err = call("fit", bracketed, "--parameters", f"{name}[/no]")
    assert code == 2
    assert "[/no]" in " ".join(err.replace("│", " ").split())


def test_layers_that_stay_are_named_by_the_same_rule():
    layers = {name: nn.Linear(32, 32) for name in ("blocks[0]", "blocks0", "a*", "ab")}
    for keep, kept in {"blocks[0]": {"blocks[0]"}, "a*": {"a*"}, "a?": {"a*", "ab"}}.items():
        found = gradstats.lowrank.factorize(nn.ModuleDict(layers), keep=[keep])
        assert {change.name for change in found.changes if change.kept} == kept
