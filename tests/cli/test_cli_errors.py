"""What goes wrong on the command line: the exit code, the value and the remedy."""

import re
import sys

import pytest
import torch


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["fit", "RUN", "--families", "cauchy"],
            "--families: family must be one of laplace, .*got 'cauchy'",
        ),
        (["fit", "RUN", "--method", "guess"], "'guess' is not one of 'mle', 'moments'"),
        (
            ["fit", "RUN", "--group-by", "layer"],
            "--group-by: must be .*found in a parameter's name, got 'layer'",
        ),
        (
            ["report", "RUN", "--group-by", "layer"],
            "--group-by: must be .*found in a parameter's name, got 'layer'",
        ),
        (["fit", "RUN", "--ratios", "0"], r"--ratios: must lie in \(0, 1\], .*got '0'"),
        (["fit", "RUN", "--ratios", "0.1,1.5"], "--ratios: must .*got '1.5'"),
        (["replay", "RUN", "--ratios", "abc"], "got 'abc'"),
        (["report", "RUN", "--ratios", "nan"], "got 'nan'"),
        (["fit", "RUN", "--ratios", ","], "--ratios: must name at least one, got none"),
        (["fit", "RUN", "--families", ","], "--families: must name at least one, got none"),
        (["fit", "RUN", "--steps", "a:b"], "--steps: must look like .*got 'a:b'"),
        (["fit", "RUN", "--steps", ""], "--steps: must look like .*got ''"),
        (["fit", "RUN", "--steps", "1:2:0"], "got '1:2:0'"),
        (["fit", "RUN", "--steps", "500:"], "from 0 to 219, got 500::1"),
        (["replay", "RUN", "--steps", "777"], "from 0 to 219, got 777:778:1"),
        (["fit", "RUN", "--parameters", "decoder*"], "embed.weight.*got 'decoder"),
        (["fit", "RUN", "--device", "cudda"], "--device: must be there, got 'cudda'"),
        (["replay", "RUN", "--device", "cuda:99"], "--device: must be there, got 'cuda:99'"),
        (
            ["replay", "RUN", "--compressors", "topq"],
            "--compressors: compressor must .*topk, .*got 'topq' .*did you mean topk",
        ),
        (
            ["replay", "RUN", "--compressors", "topk(1.5)"],
            r"--compressors: .*topk\(1.5\).*\(0, 1\].*got 1.5",
        ),
        (["replay", "RUN", "--compressors", "topk(0.1"], "close its bracket"),
        (["replay", "RUN", "--compressors", "no.such:Mine"], "cannot import .*no.such:Mine"),
        (
            ["replay", "RUN", "--feedback", "momentum"],
            "--feedback: must .*none, ef, got 'momentum'",
        ),
        (["replay", "RUN", "--feedback", ","], "--feedback: must name at least one, got none"),
        (
            ["replay", "RUN", "--granularity", "layer"],
            "--granularity: must be one of model, parameter, got 'layer'",
        ),
        (
            ["report", "RUN", "--budget", "soon"],
            "--budget: must be a time such as 90s, 5min or 1h.*got 'soon'",
        ),
        (["capture", "--if-exists", "shrug", "--", "true"], "'shrug' is not one of 'error', 'res"),
        (["capture", "--max-bytes", "lots", "--", "true"], "--max-bytes: must .*got 'lots'"),
        (["capture", "--full-every", "-3", "--", "true"], "--full-every: .*got -3"),
        (["import", "a.npy", "--out", "x.zarr", "--if-exists", "resume"], "'resume' is not one"),
        (["fit"], "Missing argument"),
        (["fitt", "RUN"], "fitt"),
        (["fit", "RUN", "--nonsense"], "nonsense"),
    ],
)
@pytest.mark.slow
def test_a_wrong_option_exits_with_2_and_names_the_value(
    call, small_run, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    code, shown, err = call(*(small_run if word == "RUN" else word for word in words))
    assert (code, shown) == (2, "")
    assert re.search(said, err)
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["info", "fit", "replay", "report"])
def test_a_path_that_is_no_run_exits_with_1_and_says_so(call, tmp_path, command):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty"):
        code, shown, err = call(command, tmp_path / name)
        assert (code, shown) == (1, "")
        assert f"cannot open {tmp_path / name}" in err
        assert "Traceback" not in err


def test_a_damaged_run_exits_with_1(call, run_writer, tmp_path):
    path = run_writer(tmp_path / "d.zarr", {0: {"w": torch.ones(2_000)}})
    (chunk,) = (path / "worker_0" / "grad_float32").glob("c*")
    chunk.unlink()
    for command in ("replay", "report"):
        code, _, err = call(command, path)
        assert code == 1
        assert "is missing" in err


def test_other_failures_exit_with_1_and_name_the_remedy(call, small_run, tmp_path, monkeypatch):
    path = tmp_path / "there.zarr"
    path.mkdir()
    (path / "something").write_text("precious")
    for words in (("demo", "--quick", "--out", path), ("capture", "--out", path, "--", "true")):
        code, shown, err = call(*words)
        assert (code, shown) == (1, "")
        assert f"cannot create {path}" in err or "there.zarr" in err
    assert (path / "something").read_text() == "precious"
    code, _, err = call("import", tmp_path / "grad.csv", "--out", tmp_path / "x.zarr")
    assert code == 1
    assert "must end in .npy" in err
    monkeypatch.setitem(sys.modules, "pandas", None)
    for command in ("fit", "replay", "report"):
        code, _, err = call(command, small_run, "--out", tmp_path / "o")
        assert code == 1
        assert "pip install 'gradstats[analysis]'" in err


@pytest.mark.slow
def test_a_parameter_that_never_had_a_gradient_is_named(call, run_writer, tmp_path, undrawn):
    grads = {0: {"w": torch.ones(5), "frozen": torch.ones(5)}, 1: {"w": torch.ones(5)}}
    path = run_writer(tmp_path / "f.zarr", grads)
    code, shown, err = call("fit", path, "--parameters", "frozen", "--steps", "1")
    assert code == 0
    assert "model: no gradient at step 1" in shown
    assert "warning: 24 of 24 rows could not be fitted" in err
    code, shown, _ = call("report", path, "--parameters", "frozen", "--steps", "1")
    assert (code, shown.strip()) == (0, str(tmp_path / "f.results" / "report.html"))
