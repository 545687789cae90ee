"""Files that are written whole or not at all, and the lock that excludes a second writer."""

import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gradstats.store.layout import StoreFormatError

if sys.platform != "win32":
    import fcntl

_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file so that every reader sees the old content or the whole new content.

    There is no fsync: the promise covers the death of the process, not of the machine.
    """
    partial = path.with_name(path.name + ".partial")  # one writer: one name is enough
    try:
        with open(partial, "wb", buffering=0) as file:
            for part in parts:
                write_all(file, part)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that nobody reads yet; a file that cannot be written whole is removed."""
    try:
        with open(path, "wb", buffering=0) as file:
            for part in parts:
                write_all(file, part)
            begin_writeback(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def begin_writeback(file: IO[bytes]) -> None:
    """Let the system write a file to its disk from now on, without waiting for it.

    Left alone, it begins after seconds, and then holds up whoever writes.
    """
    if hasattr(os, "posix_fadvise"):  # Linux: pages that are not on the disk yet stay in memory
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_zeros(path: Path, nbytes: int) -> None:
    """Make a file that nobody reads yet as long as this, by zeros that take no disk."""
    with open(path, "ab") as file:
        file.truncate(nbytes)


def taken_by(path: Path) -> int:
    """Return the bytes that a file takes, without zeros that take no disk."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", None)  # Windows has none
    return status.st_size if blocks is None else min(status.st_size, 512 * blocks)


def check_size(path: Path, nbytes: int) -> None:
    """Check that a chunk with committed rows is whole before rows are added to it.

    Raises:
        StoreFormatError: it is missing, or has another size.
    """
    actual = path.stat().st_size if path.is_file() else None
    if actual != nbytes:
        fact = f"has {actual:,} of {nbytes:,} bytes" if actual is not None else "is missing"
        raise StoreFormatError(f"cannot append: chunk {path} {fact}; restore it from a copy")


def write_all(file: IO[bytes], part: bytes | memoryview) -> None:
    """Write every byte of `part` to an unbuffered file."""
    view = memoryview(part).cast("B") if len(part) else memoryview(b"")
    while len(view):  # one write stops short at 2 GiB and on a full disk
        view = view[file.write(view) :]


def take_lock(path: Path, what: str, *, wait: bool = False) -> IO[str]:
    """Hold a lock file until the returned file is closed or the process dies.

    Args:
        path: the lock file.
        what: the name of the locked thing, for the error.
        wait: wait for the holder instead of raising.

    Raises:
        BlockingIOError: another writer holds it.
    """
    file = open(path, "a+", encoding="ascii")
    if sys.platform == "win32":  # capture is for Linux first; a demo has one writer
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        ours = _is_held(file)
        file.close()
        fact, remedy = f"process {holder} is writing there", "wait for it or end it"
        if ours:
            fact = f"this process ({holder}) is writing there already"
            remedy = "close it; gradstats.close_all() closes all recordings of this process"
        raise BlockingIOError(f"cannot write {what}: {fact}; {remedy}") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _held.add(file)
    return file


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; wait for the present holder.

    Remove the file afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = take_lock(path, str(path), wait=True)
    while not _is_at(lock, path):  # the one before has removed the file that was waited for
        lock.close()
        lock = take_lock(path, str(path), wait=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock_files(folder: Path) -> list[Path]:
    """List the lock files of the writers in a folder, and of the processes that send its rows."""
    return [*folder.glob("worker_*/step/.lock"), *folder.glob("worker_*.lock")]


def _is_held(file: IO[str]) -> bool:
    """Return whether this process holds the lock.

    Process ids would not tell: containers share them.
    """
    one = os.fstat(file.fileno())
    others = [os.fstat(each.fileno()) for each in list(_held) if not each.closed]
    return any(os.path.samestat(one, other) for other in others)


def _let_go() -> None:
    """A forked child shares its parent's locks, and would hold them on after the parent's death.

    Workers of a DataLoader notice only after seconds that a killed training is gone; until then
    its restart would be refused.
    """
    for file in list(_held):
        file.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)
