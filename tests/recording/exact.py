"""The rows of the trainings in victims.py against the gradients that they follow from."""

import numpy as np
import pytest
import torch

import gradstats
from gradstats.summary import summarize
from tests.recording.victims import LIMIT, MICRO, RATE, gradients


def check_exact(stream, rows, launch, worker):
    """Every element and every coordinate of some rows of a stream."""
    facts = {name: values[rows] for name, values in stream.coordinates.items()}
    check_facts(facts, launch)
    run = gradstats.open(stream.path, worker=worker) if stream.kind == "summary" else None
    for row, step, point in zip(rows, facts["step"], facts["point"], strict=True):
        exact = gradients(launch, worker, int(step))[point]
        if stream.kind == "summary":
            whole = {name: summarize(as_summarized(name, g)) for name, g in exact.items()}
            assert run.summaries(int(row)) == whole
            continue
        check_row(stream, int(row), exact)
        if stream.kind == "full":
            square = sum(grad.double().square().sum() for grad in exact.values())
            norm = stream.coordinates["grad_norm"][row]
            assert norm == pytest.approx(square.sqrt().item(), rel=1e-9)


def as_summarized(name, grad):
    """The values of a sparse gradient alone are added up, and sums depend on their order."""
    return grad.to_sparse(1) if name == "words.weight" else grad


def check_facts(facts, launch):
    assert facts["loss"].tolist() == [step / 8 for step in facts["step"]]
    assert (facts["learning_rate"] == RATE).all()
    rounds = "outer" in launch.points
    assert (facts["micro_step"] == (0 if rounds else MICRO - 1)).all()
    assert (facts["inner_steps"] == (MICRO if rounds else 0)).all()
    assert (facts["world_size"] == launch.world).all()
    assert not facts["skipped"].any()
    if launch.world == 1:  # clipping leaves the sparse gradient out: there is no norm of all
        assert np.isnan([facts["clip_norm"], facts["clip_coefficient"]]).all()
    elif "clipped" in launch.points:
        expected = LIMIT / facts["clip_norm"]
        assert facts["clip_coefficient"] == pytest.approx(expected.clip(max=1), rel=1e-5)


def check_row(stream, row, exact):
    assert stream.present[row].all()
    for dtype in ("float32", "bfloat16"):
        dense = [p.name for p in stream.table if p.dtype == dtype and p.layout == "dense"]
        flat = torch.cat([exact[name].reshape(-1) for name in dense])
        ids = slice(None) if stream.kind == "full" else stream.element_ids[dtype]
        assert torch.equal(stream.read_flat(row, dtype), flat[ids])
    if "words.weight" in exact and stream.kind == "full":
        sparse = stream.read(row, "words.weight")
        assert torch.equal(sparse.to_dense(), exact["words.weight"])
