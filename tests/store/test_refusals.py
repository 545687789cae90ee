"""A disk that takes no more is answered with the path, the fact and the remedy."""

import errno
import os
import sys

import numpy as np
import pytest

from gradstats.runs.copying import copy
from gradstats.runs.importing import import_gradients
from gradstats.store.refusals import REMEDIES, check_writable, writing
from gradstats.store.writing import WorkerWriter


@pytest.mark.parametrize("number", REMEDIES)
def test_an_error_names_path_fact_and_remedy(tmp_path, number):
    place = tmp_path / "new" / "run.zarr"
    with pytest.raises(OSError, match="cannot write") as caught, writing(place):
        raise OSError(number, os.strerror(number))
    text = str(caught.value)
    assert text.startswith(f"cannot write {place}: {os.strerror(number)}")
    assert text.endswith(f"; {REMEDIES[number]}")
    assert ("bytes are free" in text) == (number == errno.ENOSPC)
    assert caught.value.errno == number
    assert type(caught.value) is type(OSError(number, ""))


def test_errors_of_other_files_and_other_kinds_stay(tmp_path):
    for error in (
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "grad.npy")),
        FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "run.zarr")),
    ):
        with (
            pytest.raises(OSError, match=r"denied|No such") as caught,
            writing(tmp_path / "r.zarr"),
        ):
            raise error
        assert caught.value is error


@pytest.fixture
def full(monkeypatch):
    """A disk that is full as soon as rows are written."""

    def refused(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WorkerWriter, "append", refused)


@pytest.mark.parametrize("name", ["out.zarr", "out.zarr.zip"])
def test_a_copy_to_a_full_disk(call, small_run, tmp_path, full, name):
    out = tmp_path / name
    with pytest.raises(OSError, match=f"cannot write {out}: No space left .* free some space"):
        copy(small_run, out)
    code, _, err = call("copy", small_run, out)
    assert code == 1
    assert f"cannot write {out}: No space left on device (" in err
    assert not list(tmp_path.iterdir())


def test_an_import_to_a_full_disk(call, tmp_path, full):
    file, out = tmp_path / "grad_0.npy", tmp_path / "out.zarr"
    np.save(file, np.ones((40, 30), np.float32))
    with pytest.raises(OSError, match=f"cannot write {out}: No space left .* free some space"):
        import_gradients([file], out)
    code, _, err = call("import", file, "--out", out)
    assert code == 1
    assert f"cannot write {out}: No space left on device (" in err
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def read_only(tmp_path):
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    return folder


def test_a_folder_that_may_not_be_written(call, small_run, read_only):
    out = read_only / "out.zarr"
    for words in (("copy", small_run, out), ("capture", "--out", out, "--", "true")):
        code, _, err = call(*words)
        assert code == 1
        assert f"cannot write {out}: Permission denied; this user may not write there" in err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_capture_is_refused_before_its_command_starts(call, tmp_path, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    out, ran = tmp_path / "new" / "run.zarr", tmp_path / "ran"
    with pytest.raises(OSError, match=f"cannot write {out}: "):
        check_writable(out)
    command = (sys.executable, "-c", f"open({str(ran)!r}, 'w')")
    code, _, err = call("capture", "--out", out, "--", *command)
    assert code == 1
    assert f"cannot write {out}: {os.strerror(number)}; {REMEDIES[number]}" in err
    assert not ran.exists()


def test_a_place_that_can_be_written_stays_as_it_was(tmp_path):
    check_writable(tmp_path / "a" / "b.zarr")
    assert not list(tmp_path.iterdir())
