"""Garbage collection looks at what calls have made, and not at everything that a start has."""

import os
import re
import signal
import time
from pathlib import Path

from tests.live import LiveServer


class TellingServer(LiveServer):
    """Tells in its log how many objects collections look at, and how many they leave out."""

    module = "tests.server.test_collection"


def test_what_is_there_from_the_start_is_left_out_of_collections(tmp_path: Path) -> None:
    with TellingServer(tmp_path) as server:
        os.kill(server.pid, signal.SIGUSR1)
        while not (found := re.search(r"looked at: (\d+), left out: (\d+)\n", server.log())):
            time.sleep(0.01)
    looked_at, left_out = map(int, found.groups())
    assert left_out > 100_000
    assert looked_at < left_out / 10


if __name__ == "__main__":
    import gc
    import sys

    from limner_server.__main__ import main

    def tell(*_: object) -> None:
        print(f"looked at: {len(gc.get_objects())}, left out: {gc.get_freeze_count()}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGUSR1, tell)
    main()
