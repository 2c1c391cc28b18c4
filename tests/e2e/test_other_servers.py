"""`ringway-loadgen` against a real nats-server and a real ejabberd: what the figures of a comparison rest on.

Small scale, seconds each. Counts and losses are compared, never times.
"""

from pathlib import Path

import pytest

from harness.peers import Ejabberd, Mischief, Nats
from harness.postgres import Postgres
from harness.server import temporary_directory

BROKEN, UNKNOWN = 1, 4
SMALL = """
sessions.users=20 sessions.connections_per_second=1000 sessions.backoff=50ms sessions.ramp=20s
traffic.rate=100 traffic.duration=3s traffic.drain=20s server.domain=localhost
""".split()
# What a frame has in it that brings a message to its receiver.
MARKERS = {"nats": "MSG rw.", "jetstream": "MSG rwjs.", "xmpp": "</body>"}


@pytest.fixture(scope="module")
def nats():
    with temporary_directory("nats") as path:
        server = Nats(Path(path)).start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def ejabberd():
    with temporary_directory("ejabberd-postgres") as of_postgres, temporary_directory("ejabberd") as path:
        postgres = Postgres(str(of_postgres)).start()
        try:
            server = Ejabberd(Path(path), postgres).start()
            yield server
            server.stop()
        finally:
            postgres.stop()


@pytest.fixture
def server_of(request):
    """Starts only those that a test asks for."""
    return lambda protocol: request.getfixturevalue("ejabberd" if protocol == "xmpp" else "nats")


def flags(protocol, server, *more):
    assignments = [f"protocol={protocol}", f"server.url={server.url}", *SMALL, *more]
    return [part for assignment in assignments for part in ("--set", assignment)]


@pytest.mark.parametrize(("protocol", "kept_times"), [("nats", 0), ("jetstream", 1), ("xmpp", 2)])
def test_everything_sent_is_acknowledged_delivered_and_kept(loadgen, server_of, protocol, kept_times):
    server = server_of(protocol)
    before = server.kept()
    counts = loadgen("run", *flags(protocol, server)).good()["counts"]
    assert counts["offered"] == counts["sent"] == counts["acked"] == counts["delivered"] > 100
    for name in ("lost", "doubled", "reordered", "unsent", "unanswered", "failed", "malformed", "timeouts", "cut"):
        assert counts[name] == 0, name
    assert counts["opened"] == 20
    assert server.kept() - before == kept_times * counts["sent"]


@pytest.mark.parametrize("protocol", ["jetstream", "xmpp"])
def test_who_is_cut_comes_back_and_goes_on(loadgen, server_of, protocol):
    storm = ["storm.at=1s", "storm.share=0.5", "storm.jitter=200ms", "traffic.drain=2s", "thresholds=[]"]
    run = loadgen("run", "--scenario", "storm", *flags(protocol, server_of(protocol), *storm)).wait()
    counts = run.result["counts"]
    assert counts["reopened"] == 10, run.said
    # What was on its way to those who were cut, nobody brings them later.
    assert counts["acked"] + counts["unanswered"] == counts["offered"] == counts["sent"] > 100
    assert counts["delivered"] + counts["lost"] + counts["unanswered"] >= counts["sent"]
    assert (counts["doubled"], counts["reordered"], counts["malformed"]) == (0, 0, 0)


# ------------------------------------------------------------------------------------- every check seen to fail


@pytest.mark.parametrize("protocol", ["nats", "jetstream", "xmpp"])
@pytest.mark.parametrize(("mischief", "count"), [("lose", "lost"), ("double", "doubled"), ("swap", "reordered")])
def test_what_goes_wrong_on_the_way_is_found_out(loadgen, server_of, protocol, mischief, count):
    with Mischief(server_of(protocol), mischief, MARKERS[protocol]) as between:
        run = loadgen("run", *flags(protocol, between, "traffic.drain=1s")).wait()
    assert run.code == BROKEN, run.said
    counts = run.result["counts"]
    # A frame of NATS may have several messages in it; who is swapped last of all is not delivered.
    assert counts[count] >= between.harmed * (0.5 if mischief == "swap" else 1) > 0, run.said


@pytest.fixture
def nats_alone(directory):
    """Makes one that nobody else uses."""
    servers = []

    def make(**options):
        servers.append(Nats(Path(directory), **options).start())
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def test_a_stream_that_is_not_there_acknowledges_nothing(loadgen, nats_alone):
    run = loadgen("run", *flags("jetstream", nats_alone(without_streams=True), "traffic.drain=1s")).wait()
    counts = run.result["counts"]
    # Receivers hear of them all the same.
    assert run.code == UNKNOWN and counts["acked"] == 0, run.said
    assert counts["unanswered"] == counts["sent"] == counts["delivered"] > 100
    assert run.result["errors"] == {"JetStream: NATS/1.0 503": 1}


def test_what_a_full_stream_refuses_is_not_acknowledged(loadgen, nats_alone):
    server = nats_alone()
    server.make_stream(name="mine", subjects=["rwjs.*"], storage="file", max_msgs=50, discard="new")
    run = loadgen("run", *flags("jetstream", server)).wait()
    counts = run.result["counts"]
    assert counts["acked"] == server.kept() == 50, run.said
    assert counts["failed"] == counts["sent"] - 50 == run.result["errors"]["JetStream: maximum messages exceeded"]


def test_a_wrong_password_opens_no_session(loadgen, ejabberd):
    run = loadgen("run", *flags("xmpp", ejabberd, "credentials.password=wrong", "sessions.ramp=2s")).wait()
    assert run.code == 2 and "failure: not-authorized" in run.said, run.said
