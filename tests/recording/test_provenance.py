from pathlib import Path

import pytest
import torch

from gradstats.recording.provenance import VARIABLE, provenance, redact
from gradstats.recording.script.attaching import Session


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "hunter2"],
        ["--api_key=hunter2"],
        ["--wandb-token=hunter2"],
        ["--hf_token", "hunter2"],
        ["WANDB_API_KEY=hunter2"],
        ["--password", "-hunter2"],
        ["--password=correct hunter2 battery"],
        ["--db", "postgres://jane:hunter2@host/db"],
        ["--url", "https://host/x?token=hunter2&y=1"],
        ["--config", '{"api_key": "hunter2", "lr": 0.1}'],
        ["--aws-secret-access-key=hunter2"],
        ["--key", "sk-hunter2abcdefghijklmnop"],
        ["--key", "hf_hunter2abcdefghijklmnopq"],
        ["--auth", "hunter2"],
    ],
)
def test_secrets_are_removed(words):
    assert "hunter2" not in " ".join(redact(["train.py", *words]))


@pytest.mark.parametrize("path", ["/home/jane/x.py", "/Users/jane/x.py", "--data=/home/jane/d"])
def test_home_directories_are_removed(path):
    (word,) = redact([path])
    assert "jane" not in word
    assert "~/" in word


def test_this_users_home_is_removed_wherever_it_is(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/data/people/jane"))
    assert redact(["--out=/data/people/jane/run", "/data/people/janet"]) == [
        "--out=~/run",
        "/data/people/janet",
    ]


def test_the_rest_of_a_command_stays():
    command = ["train.py", "--lr=0.1", "--tokenizer", "gpt2", "--max-tokens=512", "-v", "/data/x"]
    assert redact(command) == command


def test_says_what_was_trained_how():
    model = torch.nn.Linear(2, 2)
    story = provenance(
        model, torch.optim.Adam(model.parameters()), {"seed": 3, "track": 5}, command=["t.py"]
    )
    assert (story["model"], story["optimizer"], story["device"]) == ("Linear", "Adam", "cpu")
    assert (story["seed"], story["command"]) == (3, ["t.py"])
    assert story["settings"] == {"seed": 3, "track": 5}
    assert story["versions"]["torch"] == torch.__version__


def test_a_store_below_a_command_is_marked_by_the_name_of_its_path(monkeypatch):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    monkeypatch.setenv(VARIABLE, Session("/home/jane/run.zarr").to_json())
    assert provenance(model, optimizer, {"seed": 0}, command=[])["out"] == "run.zarr"
    monkeypatch.delenv(VARIABLE)
    assert "out" not in provenance(model, optimizer, {"seed": 0}, command=[])
