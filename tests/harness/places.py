"""Where things are, and ports and waiting without sleeping blindly."""

import os
import random
import socket
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
TOOLS = TARGET / "test-tools"


def binary(name):
    """A release binary of this repository; `./test build` makes them."""
    path = TARGET / "release" / name
    assert path.exists(), f"{path} is missing: run ./test build"
    return path


def free_port():
    """A port that nobody listens on at this moment.

    Below the range from which the system takes ports of outgoing connections: a client that connects again and
    again to a server that is down would else some day get the server's port for itself.
    """
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass  # Taken: another one.


def wait_until(condition, what, seconds=30.0):
    """Asks `condition` until it answers with something true, and returns that.

    The bound only ends a test that hangs; no test asserts how long anything took.
    """
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain until {what}"
        time.sleep(0.02)
