"""How long a test waits for what must happen: so long that only a hang is ever cut."""

import time

PATIENCE = 300  # seconds; nothing waits a tenth of it on a busy machine of two cores
PULSE = 1  # seconds from one attempt to the next


def wait_until(happened):
    """Return once `happened()` is true; AssertionError where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "what was waited for does not happen"
        time.sleep(0.01)
