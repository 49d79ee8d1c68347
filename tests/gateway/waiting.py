"""Waiting for what another process does."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], limit_s: float = 60, pause_s: float = 0.1) -> None:
    """Return when it holds."""
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, "it did not come about in time"
        time.sleep(pause_s)
