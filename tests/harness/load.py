"""Load with a record of every acknowledgement: by `ringway-loadgen`, and by a client that is not ours."""

import dataclasses
import json
import signal
import subprocess
import threading
import time
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from . import places
from .client import Client, Refused, conversation, message_id


class Loadgen:
    """`ringway-loadgen run`, which writes down what was acknowledged, and `verify`, which reads it back."""

    def __init__(self, server, acks, *, users=200, rate=2000, seconds=60):
        self.acks = acks
        self.log = acks.with_suffix(".out")
        command = [places.binary("ringway-loadgen"), "run", "--url", server.url, "--data", server.data]
        command += ["--users", users, "--rate", rate, "--duration", f"{seconds}s", "--acks", acks]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def acknowledged(self):
        """How many acknowledgements have been written down."""
        return self.acks.read_bytes().count(b"\n") if self.acks.exists() else 0

    def wait_for(self, count):
        def enough():
            assert self.process.poll() is None, f"loadgen ended early:\n{self.log.read_text()}"
            return self.acknowledged() >= count

        places.wait_until(enough, f"{count} messages are acknowledged", 60)

    def stop(self):
        """Ends it as Ctrl-C does, so that what it holds is written down; it must not hang."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Run:
    """A command of the load generator: started at once, awaited when somebody asks for what came of it."""

    def __init__(self, directory, command, *arguments):
        self.json = Path(directory) / f"result-{time.monotonic_ns()}.json"
        self.error = self.json.with_suffix(".err")
        whole = [places.binary("ringway-loadgen"), command, *arguments]
        if command in ("run", "saturate", "burst-drain"):
            whole += ["--json", self.json]
        with open(self.error, "wb") as error:
            self.process = subprocess.Popen(
                [str(part) for part in whole], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=error, text=True
            )

    def wait(self):
        try:
            self.output, _ = self.process.communicate(timeout=120)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        self.code = self.process.returncode
        self.said = self.output + self.error.read_text()
        self.result = json.loads(self.json.read_text()) if self.json.exists() else None
        return self

    def good(self):
        assert self.wait().code == 0, self.said
        return self.result


def verify(server, acks):
    """`ringway-loadgen verify`: everything acknowledged in the file is on the server. Returns what it said.

    What a killed server had not answered yet is unknown (exit code 4), and no loss.
    """
    command = [places.binary("ringway-loadgen"), "verify", "--acks", acks, "--url", server.url, "--data", server.data]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 4), done.stdout + done.stderr
    return done.stdout


@dataclasses.dataclass
class Record:
    """What senders saw acknowledged, and what they do not know about: id to (conversation, seq, body)."""

    acked: dict = dataclasses.field(default_factory=dict)
    unknown: dict = dataclasses.field(default_factory=dict)

    def copy(self):
        return Record(dict(self.acked), dict(self.unknown))


class Chatter:
    """Pairs of users who talk without pause until the server is gone, each in a thread of its own."""

    def __init__(self, server, first_user, pairs=4):
        self.server = server
        self.record = Record()
        self.stopping = threading.Event()
        self.threads = []
        for pair in range(pairs):
            users = (str(first_user + 2 * pair), str(first_user + 2 * pair + 1))
            self.threads.append(threading.Thread(target=self._talk, args=users))
        for thread in self.threads:
            thread.start()

    def _talk(self, user, other):
        try:
            with Client(self.server, user) as client:
                while not self.stopping.is_set():
                    flight = {message_id(): f"{user} says {number}" for number in range(8)}
                    conv = conversation(user, other)
                    self.record.unknown |= {id: (conv, None, body) for id, body in flight.items()}
                    for id, body in flight.items():
                        client.post(other, body, id=id)
                    for id, body in flight.items():
                        seq = client.expect("stored", id=id)["seq"]
                        self.record.acked[id] = (conv, seq, body)
                        del self.record.unknown[id]
        except (ConnectionClosed, InvalidHandshake, InvalidMessage, OSError, Refused):
            pass  # The server is gone: that is what this is for.

    def join(self):
        """Ends the talk; says what was seen of it."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.record


def check(server, records):
    """The checker: nothing acknowledged is missing, seq is dense, one seq per id, and every resend is answered so."""
    acked, unknown = {}, {}
    for record in records:
        acked |= record.acked
        unknown |= record.unknown
    by_conversation = {}
    for id, (conv, seq, body) in acked.items():
        by_conversation.setdefault(conv, {})[id] = (seq, body)
    for conv, sent in by_conversation.items():
        author = conv.split(".")[1]
        with Client(server, author) as client:
            have = whole_history(client, conv)
            assert [message["seq"] for message in have] == list(range(1, len(have) + 1)), f"{conv} is not dense"
            at = {message["seq"]: message for message in have}
            for id, (seq, body) in sent.items():
                assert seq in at, f"{conv}: seq {seq} was acknowledged and is missing"
                assert (at[seq]["id"], at[seq]["body"]) == (id, body), f"{conv}: seq {seq} is another message"
            ids = [message["id"] for message in have]
            assert len(ids) == len(set(ids)), f"{conv}: one id has two seqs"
            # Unknown is not lost and not doubled: the same id again gets the seq it has, or a new one.
            for id, (where, _, body) in unknown.items():
                if where == conv:
                    known = id in ids
                    answer = client.send(conv, body, id=id)
                    assert bool(answer.get("dup")) is known, (id, answer)
    return len(acked), len(unknown)


def whole_history(client, conv):
    messages, cursor = [], 0
    while True:
        page = client.pull(conv, after=cursor, limit=100)
        messages += page["messages"]
        if not page["more"]:
            return messages
        cursor = page["cursor"]
