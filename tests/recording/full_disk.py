"""A process with a small disk of its own, which it fills and empties while it trains."""

import contextlib
import ctypes
import errno
import io
import os
import shutil
import subprocess
import time

import torch

from gradstats.recording import capture, every
from tests.recording.victims import RATE, STRIDE, TRACK, Net, one_step
from tests.waiting import wait_until

NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # of unshare(2)
PAGE, DISK_BYTES = 4096, 8_000_000


def mount_own(folder):
    """Mount a small disk that nobody else sees and that goes with the process.

    Returns:
        What forbids it; "" where it is done.
    """
    user, flags = os.getuid(), NEW_MOUNTS | (NEW_USER if os.getuid() else 0)
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        return f"cannot have mounts of its own: {os.strerror(ctypes.get_errno())}"
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none"]):
        command = ["mount", *words, *([] if "/" in words else [folder])]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            return f"cannot mount a tmpfs: {ended.stderr.strip()}"
    return ""


def fill(ballast, pages):
    """Fill the disk, all but some pages of it."""
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(0, file.tell() - PAGE * pages))


def train(folder, out, launch, frees, said):
    """Train with the disk full again and again, each time but for another number of pages."""
    torch.set_num_threads(1)
    folder.mkdir()
    forbidden = mount_own(folder)
    if forbidden:
        said.send(forbidden)
        return
    model = Net(sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    settings = {"full": every(STRIDE), "track": TRACK, "summary": launch.summary}
    settings |= {"at": launch.points, "shadow": ["ef(topk(0.1))"], "quiet": True}
    told = []
    settings["on_summary"] = lambda step, _: told.append(step)  # its other rows are stored then
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        cap = capture(model, optimizer, folder / "run.zarr", **settings)
        for pages in frees:
            for _ in range(3):
                one_step(cap, model, optimizer, launch)
            wait_until(lambda: told.count(cap.step - 2) == len(launch.points))
            fill(folder / "ballast", pages)
            for _ in range(6):
                one_step(cap, model, optimizer, launch)
            time.sleep(0.1)  # the writer finds the disk full
            (folder / "ballast").unlink()
        one_step(cap, model, optimizer, launch)
        cap.close()
    shutil.copytree(folder / "run.zarr", out)
    said.send((cap.step, cap.stats, err.getvalue()))
