"""A chat client on PyPI's `websockets`: small, independent, and honest about what it received."""

import json
import time
import uuid

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SUBPROTOCOL = "ringway.v1.json"
# Ends a test that hangs; nothing is asserted about how long an answer takes.
PATIENCE_SECONDS = 20.0


def conversation(one, other):
    """The name of the direct conversation of two users."""
    low, high = sorted((int(one), int(other)))
    return f"dm.{low}.{high}"


def message_id():
    """A client message id that begins with the time, as UUIDv7 does."""
    now = time.time_ns() // 1_000_000
    random = uuid.uuid4().int
    value = (now << 80) | (0x7 << 76) | ((random >> 64 & 0xFFF) << 64) | (0b10 << 62) | (random & ((1 << 62) - 1))
    return str(uuid.UUID(int=value))


class Refused(Exception):
    """The server answered a request of this client with an error frame."""

    def __init__(self, frame):
        super().__init__(f"{frame.get('code')}: {frame}")
        self.frame = frame
        self.code = frame.get("code")


class Client:
    """One device of one user. Frames are kept in the order in which they came, in `seen`."""

    def __init__(self, server, user, device="1", *, token=None, open=True, bearer=False, **fields):
        self.server = server
        self.user = str(user)
        self.device = str(device)
        self.token = token or server.token(user, device)
        headers = {"Authorization": f"Bearer {self.token}"} if bearer else {}
        connecting = connect(
            server.url,
            subprotocols=[SUBPROTOCOL],
            additional_headers=headers,
            compression=None,
            open_timeout=PATIENCE_SECONDS,
            max_size=None,
            proxy=None,
        )
        # Entered and never left: `cut` and `close` are how a client goes.
        self.socket = connecting.__enter__()
        self.seen = []
        self.waiting = []
        self.hello = self.expect("hello")
        self.opened = None
        if open:
            self.open(**({} if bearer else {"token": self.token}), **fields)

    # -------------------------------------------------------------------------------------- what it says

    def say(self, frame):
        """Sends a frame as it stands."""
        self.socket.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame))

    def open(self, **fields):
        self.say({"type": "open", "device": self.device, **fields})
        self.opened = self.expect("opened")
        return self.opened

    def post(self, to, body, *, id=None, **fields):
        """Sends a message and does not wait; returns its id."""
        id = id or message_id()
        where = {"conv": to} if str(to).startswith(("dm.", "gr.")) else {"to": str(to)}
        self.say({"type": "send", "id": id, "kind": "text", "body": body, **where, **fields})
        return id

    def send(self, to, body, *, id=None, **fields):
        """Sends a message and waits for its ack."""
        id = self.post(to, body, id=id, **fields)
        return self.expect("stored", id=id)

    def beat(self):
        """Acknowledges everything that has been received on this connection."""
        received = max((frame["n"] for frame in self.seen if "n" in frame), default=0)
        self.say({"type": "beat", "received": received})
        return received

    def mark(self, conv, **marks):
        self.say({"type": "mark", "conv": conv, **marks})

    def pull(self, conv, **fields):
        self.say({"type": "pull", "conv": conv, **fields})
        return self.expect("page", conv=conv)

    # -------------------------------------------------------------------------------------- what it hears

    def receive(self, seconds=PATIENCE_SECONDS):
        """The next frame; raises `TimeoutError` or `ConnectionClosed`."""
        frame = json.loads(self.socket.recv(timeout=seconds))
        self.seen.append(frame)
        return frame

    def expect(self, kind, seconds=PATIENCE_SECONDS, **fields):
        """The first frame, not yet asked for, of that type and with these fields.

        An error that answers the same id raises instead of running into the time limit.
        """

        def matches(frame):
            return frame.get("type") == kind and all(frame.get(name) == value for name, value in fields.items())

        def refuses(frame):
            if frame.get("type") != "error" or kind == "error":
                return False
            # An error that names a message or a conversation belongs to whoever asked for that one.
            return all(name not in frame or name not in fields or frame[name] == fields[name] for name in ("id", "conv"))

        end = time.monotonic() + seconds
        while True:
            for at, frame in enumerate(self.waiting):
                if matches(frame):
                    return self.waiting.pop(at)
                if refuses(frame):
                    raise Refused(self.waiting.pop(at))
            try:
                self.waiting.append(self.receive(max(0.0, end - time.monotonic())))
            except TimeoutError:
                raise AssertionError(
                    f"user {self.user} waited in vain for {kind} {fields}; not asked for: {self.waiting}"
                ) from None

    def hears_nothing_of(self, kind, **fields):
        """Asserts that nothing of that type has come, up to the answer to a question asked now."""
        self.flush()
        stray = [
            frame
            for frame in self.waiting
            if frame.get("type") == kind and all(frame.get(name) == value for name, value in fields.items())
        ]
        assert not stray, stray

    def flush(self):
        """Everything said before has been handled when a beat is answered: one connection is one FIFO."""
        self.beat()
        return self.expect("beat")

    def messages(self, conv):
        """What was pushed of that conversation, in order."""
        return [frame for frame in self.seen if frame.get("type") == "message" and frame.get("conv") == conv]

    # ----------------------------------------------------------------------------------------- the end of it

    def closed(self, seconds=PATIENCE_SECONDS):
        """The code with which the server closes; frames before it are kept."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.waiting.append(self.receive(max(0.01, end - time.monotonic())))
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else 1006
            except TimeoutError:
                raise AssertionError(f"the server did not close; last frames: {self.waiting[-5:]}") from None

    def close(self):
        self.socket.close()

    def cut(self):
        """Vanishes without a word, as a phone in a tunnel does."""
        self.socket.close_socket()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()
