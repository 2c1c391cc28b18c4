"""A thousand clients that take a byte per second, and two who notice nothing (P12)."""

import json
import threading
import time

import pytest
from harness import jwt
from harness.client import Client, conversation
from harness.places import wait_until
from harness.raw import CLOSE, Raw, frame

READERS = 1000
# What waits for one of them in the server: the bound, and the one message that went over it.
OUTBOUND_BYTES = 8_192
BODY_BYTES = 16_384
# Together more than the kernel buffers for a client whose window is small, and more than the bound.
MESSAGES = 12


class SlowReader:
    """A session whose receive window is as small as the kernel allows."""

    def __init__(self, server, user, token):
        self.user = user
        self.raw = Raw(server, receive_buffer=1_024)
        self.raw.handshake()
        assert self.next()["type"] == "hello"
        self.raw.send(frame(json.dumps({"type": "open", "device": "1", "token": token})))
        assert self.next()["type"] == "opened"

    def next(self):
        """The next frame; `None` when the server closed."""
        opcode, payload = self.raw.frame()
        return None if opcode == CLOSE else json.loads(payload)

    def say(self, **fields):
        self.raw.send(frame(json.dumps(fields)))

    def sip(self):
        """Takes a byte, if there is one."""
        self.raw.socket.setblocking(False)
        try:
            self.raw.buffer += self.raw.socket.recv(1)
        except BlockingIOError:
            pass


@pytest.fixture
def crowd(make_server, users):
    """A server, and a sender with a thousand slow readers."""
    limits = {"limits.outbound_bytes_max": OUTBOUND_BYTES, "server.connections_max": 5_000, "limits.stall_ms": 600_000}
    server = make_server(settings=limits).start()
    secret = jwt.dev_secret(server.data)
    first = int(users[0]) * READERS
    readers = []
    for user in range(first, first + READERS):
        claims = jwt.dev_claims(user, "1")
        readers.append(SlowReader(server, user, jwt.signed(jwt.DEV_HEADER, claims, jwt.hs256(secret))))
    yield server, readers
    for reader in readers:
        reader.raw.close()
    wait_until(lambda: server.open_descriptors() < 200, "the descriptors are given back")


def test_a_thousand_readers_at_a_byte_per_second_hold_nobody_up(crowd, users):
    server, readers = crowd
    with Client(server, users[1]) as sender, Client(server, users[2]) as alice, Client(server, users[3]) as bob:
        memory = server.memory_bytes()
        for _ in range(MESSAGES):
            for start in range(0, READERS, 100):
                ids = [sender.post(reader.user, "x" * BODY_BYTES) for reader in readers[start : start + 100]]
                for id in ids:
                    sender.expect("stored", id=id)

        stop = threading.Event()

        def sip():
            while not stop.wait(1.0):
                for reader in readers:
                    reader.sip()

        sipping = threading.Thread(target=sip)
        sipping.start()
        try:
            until = time.monotonic() + 5
            while time.monotonic() < until:
                stored = alice.send(bob.user, "do you notice anything?")
                assert bob.expect("message", seq=stored["seq"])
                bob.beat()
        finally:
            stop.set()
            sipping.join()
        # Bodies on their way through journal and overlay are not the readers'; what waits for them is bounded.
        waiting = server.metrics()["ringway_connection_bytes"]
        assert waiting <= READERS * (OUTBOUND_BYTES + 2 * BODY_BYTES), f"{waiting} bytes wait, {memory} at the start"

    # One of them wakes up: told that it lags, it pulls and has everything.
    reader = readers[0]
    reader.raw.socket.setblocking(True)
    conv = conversation(reader.user, users[1])
    have, has_lagged = 0, False
    while have < MESSAGES:
        told = reader.next()
        if told["type"] == "lagging":
            assert told["conv"] == conv
            has_lagged = True
            reader.say(type="pull", conv=conv, after=have, limit=100)
        messages = [told] if told["type"] == "message" else told.get("messages", [])
        for seq in (message["seq"] for message in messages):
            # The client's rule: what it has it drops, and what lies behind a hole it pulls.
            have = max(have, seq) if seq <= have + 1 else have
        if told["type"] == "page" and have < MESSAGES:
            reader.say(type="pull", conv=conv, after=have, limit=100)
    assert has_lagged
