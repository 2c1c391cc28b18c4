"""Overload as clients see it (P13): who is refused first, who never, and that it passes."""

import pytest

from harness import raw
from harness.client import Client, conversation, message_id
from harness.load import Chatter, check
from harness.places import wait_until

# From what is shed first to what is shed last.
ORDER = ["signal", "mark", "pull", "handshake", "send"]
# So many of them are a sixteenth of what the shard holds, a megabyte.
BODY_BYTES = 60_000
ATTEMPTS = 20


def frames_until(client, wanted):
    """What came up to the first frame of a wanted type."""
    frames = [client.receive()]
    while frames[-1]["type"] not in wanted:
        frames.append(client.receive())
    return frames


def settled(client):
    """What came by the time that everything said before had gone its way through the one shard and back."""
    frames = []
    for _ in range(2):
        client.beat()
        frames += frames_until(client, ["beat"])
    return [frame for frame in frames if frame["type"] != "beat"]


def is_overloaded(frame):
    if frame["type"] != "error":
        return False
    assert (frame["code"], frame["retryable"]) == ("overloaded", True) and frame["after_ms"] > 0, frame
    return True


class Asker:
    """Two people and a stranger who ask for everything that may be shed, round by round."""

    def __init__(self, server, alice, bob):
        self.server, self.alice, self.bob = server, alice, bob
        self.conv = conversation(alice.user, bob.user)
        # Of alice: id to body, and to the last answer.
        self.bodies, self.answers = {}, {}

    def round(self):
        """What is granted, asked from the last to be shed to the first: if pressure rises meanwhile, the order stays."""
        return {kind: getattr(self, kind)() for kind in reversed(ORDER)}

    def send(self):
        """Another large message on its way; whether none before it was refused."""
        self.post(message_id(), f"number {len(self.bodies)}".ljust(BODY_BYTES))
        self.hear_alice()
        for frame in self.refusals():
            assert frame["code"] in ("unavailable", "overloaded", "retry") and frame["retryable"] is True, frame
        return not self.refusals()

    def refusals(self):
        return [answer for answer in self.answers.values() if answer["type"] == "error"]

    def gave_up(self):
        """A send has waited for as long as sends do: what was behind it is taken back, and nothing piles up any more."""
        return any(frame["code"] == "unavailable" for frame in self.refusals())

    def post(self, id, body):
        self.bodies[id] = body
        self.answers.pop(id, None)
        self.alice.post(self.bob.user, body, id=id)

    def hear_alice(self):
        frames = settled(self.alice)
        self.answers |= {frame["id"]: frame for frame in frames if frame.get("id") in self.bodies}
        return frames

    def handshake(self):
        with raw.Raw(self.server) as stranger:
            status, headers, _ = stranger.send(raw.upgrade()).response()
        assert status == 101 or status == 503 and int(headers["retry-after"]) > 0, (status, headers)
        return status == 101

    def pull(self):
        self.bob.say({"type": "pull", "conv": self.conv, "limit": 5})
        return not is_overloaded(frames_until(self.bob, ["page", "error"])[-1])

    def mark(self):
        self.bob.mark(self.conv, read=1)
        return not any(is_overloaded(frame) for frame in settled(self.bob))

    def signal(self):
        self.bob.say({"type": "signal", "conv": self.conv, "name": "typing", "body": ""})
        settled(self.bob)
        return any(frame["type"] == "signal" for frame in self.hear_alice())

    def repeat(self):
        """Sends again, in order, what was not stored; whether all is."""
        for id, body in list(self.bodies.items()):
            if self.answers.get(id, {}).get("type") == "error":
                self.post(id, body)
        self.hear_alice()
        return all(self.answers.get(id, {}).get("type") == "stored" for id in self.bodies)

    def acknowledged(self):
        stored = {id: frame["seq"] for id, frame in self.answers.items() if frame["type"] == "stored"}
        return {id: (self.conv, seq, self.bodies[id]) for id, seq in stored.items()}


@pytest.fixture
def busy(on_postgres):
    return on_postgres(more="[server]\nshards = 1\n[limits]\npending_mb_max = 1\n").start()


def pile_up(asker, postgres):
    """The store stands still while one large message after the other is sent: what was granted in each round.

    Ends when everything is refused, or when senders were told that the store is away, which is another matter (P10).
    """
    postgres.pause()
    rounds = [asker.round()]
    while any(rounds[-1].values()) and not asker.gave_up():
        rounds.append(asker.round())
    return rounds


@pytest.mark.timeout(600)
def test_what_is_refused_first_and_what_never(busy, postgres, users):
    before = busy.metrics()
    others = Chatter(busy, int(users[4]), pairs=1)
    with Client(busy, users[0]) as alice, Client(busy, users[1]) as bob, Client(busy, users[2]) as absent:
        asker = Asker(busy, alice, bob)
        alice.send(users[1], "the first")
        absent.send(users[3], "before")
        change = absent.opened["change"]
        absent.cut()
        for _ in range(ATTEMPTS):
            wait_until(lambda: all(asker.round().values()), "everything is granted")
            # The handshake is through before the trouble: what follows it is not shed.
            with Client(busy, users[2], open=False) as returning:
                rounds = pile_up(asker, postgres)
                assert returning.open(token=returning.token, changes_after=change)["result"] == "replay"
                for client in (alice, bob, returning):
                    settled(client)
                postgres.resume()
            for granted in rounds[:-1] if asker.gave_up() else rounds:
                shed = [not granted[kind] for kind in ORDER]
                assert shed == sorted(shed, reverse=True), f"out of order: {granted}"
            # By itself, and on the same connections.
            wait_until(asker.repeat, "everything is stored", 60)
            if not any(rounds[-1].values()):
                break
        else:
            pytest.fail(f"the store was told to be away {ATTEMPTS} times before everything was refused")
        wait_until(lambda: all(asker.round().values()), "everything is granted again")
        wait_until(asker.repeat, "everything is stored")
    grown = wait_until(lambda: counted(busy, before), "all of it is counted")
    record = others.join()
    record.acked |= asker.acknowledged()
    acked, _ = check(busy, [record])
    print(f"{len(rounds)} rounds: {[[kind for kind in ORDER if granted[kind]] for granted in rounds]}")
    print(f"{acked} acknowledged and there; {grown}")


def counted(server, before):
    grown = server.metrics().grown_since(before)
    names = ("shed_signals", "shed_receipts", "shed_scans", "shed_handshakes", "pending_refused")
    found = {name: next((value for key, value in grown.items() if name in key), 0) for name in names}
    return all(found.values()) and found
