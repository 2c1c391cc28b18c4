"""`ringway-loadgen` against servers that keep their promises, and against one that does not.

Small scale, seconds each. Counts and losses are compared, never times; that a server which was stopped shows in the tail is
the one statement about a time, and it is about one that the test itself made.
"""

import json
import os
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from harness import jwt, places
from harness.front import Certificates, Front, proxy_front, tls_front
from harness.hostile import HostileServer

SCENARIOS = places.REPOSITORY / "loadgen" / "scenarios"
BROKEN, COULD_NOT_RUN, BREACHED, UNKNOWN, STOPPED, SHORT = 1, 2, 3, 4, 5, 6

# Whatever a shipped scenario says, so small and short, and with limits that only what stands still exceeds.
SMALL = """
sessions.users=32 sessions.connections_per_second=1000 sessions.backoff=50ms sessions.ramp=20s
traffic.rate=100 traffic.duration=3s traffic.drain=20s traffic.every=1s
""".split()
SMALL_PARTS = {
    "storm": ["storm.at=1s", "storm.jitter=200ms"],
    "offline": ["offline.from=500ms", "offline.until=2s", "offline.jitter=200ms"],
    "churn": ["churn.per_second=20", "churn.away=100ms"],
}


@pytest.fixture
def at(shared_server, users):
    """Flags for the shared server, with users whom nobody else has."""
    return ["--url", shared_server.url, "--data", shared_server.data, "--first-user", int(users[0]) * 1000]


def settings(*assignments):
    return [part for assignment in assignments for part in ("--set", assignment)]


def small(name):
    more = SMALL_PARTS.get(name.removesuffix("-jitter"), [])
    return settings(*[each for each in SMALL if name != "idle" or "rate" not in each], *more)


# ------------------------------------------------------------------------------------------------------ scenarios


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_scenario_runs_and_everything_acknowledged_is_there(loadgen, at, directory, path):
    kind = tomllib.loads(path.read_text())["kind"]
    extra = settings("storm.jitter=0s") if path.stem == "storm" else []
    # Its own limits are for other machines than the one that tests run on.
    extra += settings("thresholds=['lost == 0', 'doubled == 0', 'reordered == 0', 'unsent == 0']")
    if path.stem == "day":
        # Its rates stand in its phases.
        phase = "{{name='{}', duration='1s', from={}, to={}}}"
        phases = [phase.format(*each) for each in (("ramp", 0, 100), ("spike", 300, 300), ("decline", 100, 0))]
        extra += settings(f"phase=[{', '.join(phases)}]")
    if path.stem == "permutation":
        extra += settings("sessions.conversations=3")
    acks = Path(directory) / "acks"
    result = loadgen("run", "--scenario", path, *at, *small(path.stem), *extra, "--acks", acks).good()
    counts = result["counts"]
    assert result["open"] == 32 and counts["cut"] == 0
    assert counts["acked"] == counts["offered"] == counts["delivered"]
    latency = result["latency"]
    assert (latency["resume"]["count"] > 0) == (kind == "storm")
    assert (latency["slow"]["count"] > 0) == (kind == "slow-readers")
    assert latency["untouched"]["count"] == 0 or kind in ("storm", "offline", "churn", "day", "slow-readers")
    assert "abroad" not in latency and 0 < result["busiest_thread_percent"] < 101
    match kind:
        case "idle":
            assert counts["offered"] == 0
            return
        case "storm":
            assert counts["ended_on_purpose"] == counts["reopened"] == latency["resume"]["count"] == 16
            # Some of what reached half of the users, since the storm.
            assert 0 < latency["untouched"]["count"] < 0.75 * latency["delivery"]["count"]
        case "slow-readers":
            assert latency["slow"]["count"] > 0
            assert latency["slow"]["count"] + latency["delivery"]["count"] == counts["delivered"]
            assert 0 < latency["untouched"]["count"] <= latency["delivery"]["count"]
        case "offline":
            assert counts["ended_on_purpose"] == counts["reopened"] == 8 and counts["delivered_on_return"] > 0
            assert latency["delivery"]["count"] == counts["delivered"] - counts["delivered_on_return"]
        case "churn" | "day":
            assert counts["ended_on_purpose"] > 0
        case "permutation":
            # A message to each of the 32 in each of three rounds; the last one of all is due when it is over.
            assert counts["offered"] in (95, 96)
    verified = loadgen("verify", "--acks", acks, *at[:4]).wait()
    assert verified.code == 0, verified.said
    assert f"{counts['acked']} acknowledged messages" in verified.output


def test_what_is_written_down_gives_the_same_scenario(loadgen, directory):
    written = loadgen("run", "--scenario", "storm", "--users", 8, "--set", "storm.jitter=3s", "--print-scenario").wait()
    assert written.code == 0, written.said
    assert tomllib.loads(written.output)["storm"]["jitter"] == "3s"
    path = Path(directory) / "storm.toml"
    path.write_text(written.output)
    assert loadgen("run", "--scenario", path, "--print-scenario").wait().output == written.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[traffic]\nrato = 5", "no key `traffic.rato`; did you mean `traffic.rate`?"),
        ("[traffic]\nduration = 'soon'", "soon is no time"),
        ("thresholds = ['delivery.p98 < 1ms']", "no metric `delivery.p98`"),
        ("thresholds = ['lost = 0']", "write it like"),
        ("[sessions]\nusers = 3", "an even number"),
        ("kind = 'pears'", "pears"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_in_words(loadgen, directory, text, said):
    path = Path(directory) / "bad.toml"
    path.write_text(text)
    run = loadgen("run", "--scenario", path).wait()
    assert run.code == COULD_NOT_RUN and said in run.said, run.said


def test_what_was_recorded_is_sent_again(loadgen, at, directory):
    record = Path(directory) / "record"
    first = loadgen("run", *at, *small("pairs"), "--set", f"traffic.record={record}").good()
    lines = record.read_text().splitlines()
    assert len(lines) == first["counts"]["offered"] > 100
    again = Path(directory) / "again"
    more = settings(f"traffic.replay={record}", f"traffic.record={again}")
    second = loadgen("run", *at, *small("pairs"), *more, "--seed", 99).good()
    assert sorted(again.read_text().splitlines()) == sorted(lines)
    assert second["counts"]["delivered"] == len(lines)


def test_more_sessions_than_a_table_holds(loadgen, at):
    """Several rings in one thread: seven connections in each table, and none waits for the others."""
    more = settings("sessions.table=7", "storm.at=1s", "storm.share=0.5")
    counts = loadgen("run", "--scenario", "storm", *at, *small("pairs"), *more).good()["counts"]
    assert counts["delivered"] == counts["offered"] > 100 and counts["reopened"] == 16


def test_the_same_engine_drives_a_plain_echo(loadgen, at):
    result = loadgen("run", "--set", "protocol=echo", *at[:2], *settings(f"server.url={at[1][:-3]}"), *small("pairs"))
    counts = result.good()["counts"]
    assert counts["delivered"] == counts["offered"] > 100


# ------------------------------------------------------------------------------------- every check seen to fail


def hostile(loadgen, server, directory, *more):
    key = Path(directory) / "any-key"
    key.write_text(jwt.base64url(b"it believes anybody"))
    flags = ["--url", server.url, "--jwt-key", key, *small("pairs"), *settings("traffic.drain=2s")]
    return loadgen("run", *flags, *more).wait(), key


@pytest.mark.parametrize(("mischief", "count"), [("lose", "lost"), ("double", "doubled"), ("swap", "reordered")])
def test_a_server_that_breaks_its_promise_is_found_out(loadgen, directory, mischief, count):
    acks = Path(directory) / "acks"
    with HostileServer(mischief) as server:
        run, key = hostile(loadgen, server, directory, "--acks", acks)
        assert run.code == BROKEN, run.said
        assert run.result["counts"][count] == server.harmed > 0
        verified = loadgen("verify", "--acks", acks, "--url", server.url, "--jwt-key", key).wait()
        # In another order than it was sent, it is all there; but who is swapped last of all never gets an answer.
        assert verified.code in ((0, UNKNOWN) if mischief == "swap" else (BROKEN,)), verified.said


def test_a_message_that_comes_again_must_keep_its_place(loadgen, directory):
    with HostileServer("again") as server:
        run, _ = hostile(loadgen, server, directory, "--resend")
        assert run.code == BROKEN, run.said
        assert run.result["counts"]["repeats_sent"] == server.harmed > 0


def test_a_message_that_comes_again_does_keep_its_place(loadgen, at):
    run = loadgen("run", *at, *small("pairs"), "--resend").wait()
    assert run.code == 0, run.said
    counts = run.result["counts"]
    assert counts["repeats_sent"] == counts["repeats_kept"] == counts["acked"] // 100 > 0
    assert "were sent again on purpose" in run.said


def test_without_an_answer_nobody_knows(loadgen, directory):
    acks = Path(directory) / "acks"
    with HostileServer("mute", every=50) as server:
        run, key = hostile(loadgen, server, directory, "--acks", acks)
        assert run.code == UNKNOWN, run.said
        unanswered = run.result["counts"]["unanswered"]
        assert unanswered > 0 and f"{unanswered} messages were sent and never answered" in run.said
        verified = loadgen("verify", "--acks", acks, "--url", server.url, "--jwt-key", key).wait()
        assert verified.code == UNKNOWN and f"{unanswered} messages were sent and never answered" in verified.said


def test_nothing_acknowledged_is_nothing_checked(loadgen, at, directory):
    empty = Path(directory) / "acks"
    empty.touch()
    verified = loadgen("verify", "--acks", empty, *at[:4]).wait()
    assert verified.code == COULD_NOT_RUN and "nothing was checked" in verified.said


def test_a_breached_threshold_has_an_exit_code_of_its_own(loadgen, at):
    run = loadgen("run", *at, *small("pairs"), "--threshold", "delivery.p50 < 1us", "--threshold", "lost == 0").wait()
    assert run.code == BREACHED, run.said
    assert [threshold["passed"] for threshold in run.result["thresholds"]] == [False, True]


def test_a_breach_ends_the_run_after_the_grace(loadgen, at):
    more = settings("abort.on_breach=true", "abort.grace=1s", "traffic.duration=600s")
    run = loadgen("run", *at, *small("pairs"), *more, "--threshold", "delivery.p50 < 1us").wait()
    assert run.code == BREACHED, run.said
    assert "was breached" in run.result["aborted"]
    assert run.result["counts"]["lost"] == 0


def test_a_run_that_is_told_to_stop_says_so(loadgen, at):
    run = loadgen("run", *at, *small("pairs"), "--duration", "600s")
    places.wait_until(lambda: "stored" in run.error.read_text(), "messages are stored")
    run.process.send_signal(signal.SIGINT)
    assert run.wait().code == STOPPED, run.said


def test_who_is_stopped_loses_and_forgets_nothing(loadgen, at):
    """What is on its way when it is told to stop still arrives, and all that fell due is accounted for."""
    run = loadgen("run", *at, *small("pairs"), "--duration", "600s", "--rate", 5000, *settings("traffic.in_flight=2"))
    places.wait_until(lambda: "stored" in run.error.read_text(), "messages are stored")
    run.process.send_signal(signal.SIGINT)
    assert run.wait().code == STOPPED, run.said
    counts = run.result["counts"]
    assert counts["offered"] == counts["acked"] + counts["unsent"] and counts["acked"] == counts["delivered"] > 0


def test_a_search_that_is_told_to_stop_is_no_good_one(loadgen, at):
    more = settings("saturate.from=100", "saturate.probe=2s")
    run = loadgen("saturate", *at, *small("pairs"), *more)
    places.wait_until(lambda: "search" in run.error.read_text(), "a rate is tried")
    run.process.send_signal(signal.SIGINT)
    assert run.wait().code == STOPPED, run.said
    assert not run.result["steps"][-1]["passed"] and "told to stop" in run.result["steps"][-1]["breached"]


def test_less_than_was_asked_for_is_not_good(loadgen, shared_server, at, users, directory):
    """A server that lets some in and not others loses nothing, and yet is none to deploy."""
    secret = jwt.dev_secret(shared_server.data)
    key = lambda number: jwt.hs256(secret if number % 4 < 2 else b"another")
    token = lambda user: jwt.signed(jwt.DEV_HEADER, jwt.dev_claims(str(user)), key(user))
    path = Path(directory) / "tokens"
    path.write_text("\n".join(token(int(users[0]) * 1000 + number) for number in range(32)))
    more = settings("sessions.ramp=2s", "traffic.drain=1s")
    flags = ["--url", shared_server.url, "--tokens", path, *small("pairs"), *more, "--threshold", "lost == 0"]
    run = loadgen("run", *flags).wait()
    assert run.code == SHORT and "16 of 32 sessions never opened" in run.said, run.said
    counts = run.result["counts"]
    assert counts["offered"] == counts["acked"] + counts["unsent"] and counts["unsent"] > 0
    assert run.result["thresholds"][0]["passed"]


@pytest.mark.parametrize("flag", ["--report", "--hlog", "--export-jsonl"])
def test_a_place_that_cannot_be_written_is_known_before_the_run(loadgen, at, flag):
    run = loadgen("run", *at, *small("pairs"), flag, "/no/such/place").wait()
    assert run.code == COULD_NOT_RUN and "/no/such/place cannot be written" in run.said, run.said
    assert "open 32" not in run.said


def test_large_messages_over_tls_leave_in_one_turn(loadgen, shared_server, at, directory):
    """More than a TLS library holds by itself: a stall, and then many large messages at once for each connection."""
    certificates = Certificates(Path(directory), "chat.example.org")
    with tls_front(shared_server, certificates) as front:
        flags = ["--url", "wss://chat.example.org", "--ca", certificates.ca, "--address", f"127.0.0.1:{front.port}"]
        flags += [*at[2:], *small("pairs"), "--users", 2, "--rate", 200, "--payload-bytes", 20_000, "--tick", "500ms"]
        run = loadgen("run", *flags).wait()
    assert not [error for error in run.result["errors"] if "TLS" in error], run.said
    assert run.result["counts"]["cut"] == run.result["counts"]["malformed"] == 0, run.said


def test_what_cannot_be_written_down_is_not_good(loadgen, at):
    run = loadgen("run", *at, *small("pairs"), "--acks", "/dev/full").wait()
    assert run.code == SHORT and "Not all could be written down" in run.said, run.said


def test_a_server_that_stands_still_shows_in_the_tail(loadgen, make_server):
    """The schedule goes on: all that fell due meanwhile waits, and counts from when it was due."""
    server = make_server().start()
    run = loadgen("run", "--url", server.url, "--data", server.data, *small("pairs"), "--duration", "6s")
    places.wait_until(lambda: "stored" in run.error.read_text(), "messages are stored")
    server.pause()
    begun = time.monotonic()
    time.sleep(2)
    server.resume()
    stopped_ms = (time.monotonic() - begun) * 1000
    result = run.good()
    assert result["latency"]["ack"]["max"] > 0.95 * 2000
    assert result["latency"]["delivery"]["max"] > 0.95 * 2000
    # A third of the messages fell due meanwhile, and half of those waited for longer than half of it.
    assert result["latency"]["ack"]["p90"] > 0.25 * 2000, stopped_ms
    assert result["counts"]["acked"] == result["counts"]["offered"] == result["counts"]["delivered"]


def test_a_generator_that_is_the_limit_says_so(loadgen, at):
    """It stands still itself for a while: what it measures then says nothing of the server."""
    run = loadgen("run", *at, *small("pairs"), "--duration", "6s", "--threshold", "delivery.p50 < 1h")
    places.wait_until(lambda: "stored" in run.error.read_text(), "messages are stored")
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    run.process.send_signal(signal.SIGCONT)
    result = run.good()
    assert result["generator_bound"]
    assert "generator-bound, at least" in result["thresholds"][0]["note"]
    assert result["latency"]["schedule_error"]["max"] > 0.95 * 2000
    assert result["counts"]["late"] > 0 and "could not be sent in time" in run.said


def test_nobody_there_is_no_run(loadgen, directory):
    key = Path(directory) / "any-key"
    key.write_text(jwt.base64url(b"any"))
    run = loadgen("run", "--url", f"ws://127.0.0.1:{places.free_port()}", "--jwt-key", key, "--ramp", "1s", "--users", 2)
    assert run.wait().code == COULD_NOT_RUN and "no session could be opened" in run.said


# ---------------------------------------------------------------------------------------------------- credentials


def test_tokens_from_a_file_and_from_a_command(loadgen, shared_server, users, directory):
    secret = jwt.dev_secret(shared_server.data)
    token = lambda user: jwt.signed(jwt.DEV_HEADER, jwt.dev_claims(str(user)), jwt.hs256(secret))
    # Whoever they are: nobody says that their numbers follow each other.
    numbers = [int(users[0]) * 1000 + 7 * number for number in range(32)]
    path = Path(directory) / "tokens"
    path.write_text("\n".join(token(number) for number in numbers) + "\n")
    for flags in (["--tokens", path], ["--token-command", f"cat > /dev/null; cat {path}"]):
        acks = Path(directory) / f"acks-{flags[0]}"
        result = loadgen("run", "--url", shared_server.url, *flags, *small("pairs"), "--acks", acks).good()
        assert result["counts"]["delivered"] == result["counts"]["offered"] > 100
        senders = {json.loads(line)["sender"] for line in acks.read_text().splitlines()}
        assert senders <= set(numbers)
        verified = loadgen("verify", "--acks", acks, "--url", shared_server.url, *flags).wait()
        assert verified.code == 0, verified.said


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("RS256", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("ES256", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("EdDSA", ["-algorithm", "ed25519"]),
    ],
)
def test_tokens_signed_with_the_operators_key(loadgen, make_server, directory, algorithm, make):
    private, public, config = (Path(directory) / name for name in ("key.pem", "public.pem", "ringway.toml"))
    jwt.openssl("genpkey", *make, "-out", private)
    jwt.openssl("pkey", "-in", private, "-pubout", "-out", public)
    config.write_text(
        f'[storage]\ndata = "{directory}/data"\n\n[auth]\nissuer = "https://issuer.example"\naudience = "chat"\n\n'
        f'[[auth.keys]]\nkid = "one"\nalgorithm = "{algorithm}"\nfile = "{public}"\n'
    )
    server = make_server(config=config).start()
    key = ["--jwt-key", private, "--kid", "one", "--issuer", "https://issuer.example", "--audience", "chat"]
    counts = loadgen("run", "--url", server.url, *key, *small("pairs")).good()["counts"]
    assert counts["delivered"] == counts["offered"] > 100


def test_too_few_tokens_are_refused_before_anything_begins(loadgen, shared_server, directory):
    path = Path(directory) / "tokens"
    path.write_text("a.b.c\n")
    run = loadgen("run", "--url", shared_server.url, "--tokens", path, *small("pairs")).wait()
    assert run.code == COULD_NOT_RUN and "1 tokens for 32 users" in run.said
    run = loadgen("run", "--url", shared_server.url, *small("pairs")).wait()
    assert run.code == COULD_NOT_RUN and "name the server's key" in run.said


# ------------------------------------------------------------------------------------------------ TLS and proxies


def test_tls_with_a_name_and_an_authority(loadgen, shared_server, at, directory):
    certificates = Certificates(Path(directory), "chat.example.org")
    with tls_front(shared_server, certificates) as front:
        flags = [*at[2:], "--address", f"127.0.0.1:{front.port}", *small("pairs")]
        acks = Path(directory) / "acks"
        run = loadgen("run", "--url", "wss://chat.example.org", "--ca", certificates.ca, *flags, "--acks", acks)
        assert run.good()["counts"]["delivered"] > 100
        assert set(front.greeted) == {"chat.example.org"}
        tls = ["--url", "wss://chat.example.org", "--ca", certificates.ca, "--address", f"127.0.0.1:{front.port}"]
        verified = loadgen("verify", "--acks", acks, *tls, *at[2:4]).wait()
        assert verified.code == 0, verified.said
        named = ["--url", "wss://other.example.org", "--server-name", "chat.example.org", "--ca", certificates.ca]
        assert loadgen("run", *named, *flags).good()["counts"]["delivered"] > 100
        # Another name than the certificate's, or nobody who vouches for it.
        for wrong in (["--url", "wss://other.example.org", "--ca", certificates.ca], ["--url", "wss://chat.example.org"]):
            run = loadgen("run", *wrong, *flags, "--ramp", "2s").wait()
            assert run.code == COULD_NOT_RUN and ("certificate" in run.said), run.said


@pytest.mark.parametrize(("version", "start"), [("v1", b"PROXY TCP4 10.0.0."), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\n\0\0")])
def test_a_proxy_header_goes_first(loadgen, shared_server, at, version, start):
    with proxy_front(shared_server) as front:
        flags = ["--url", f"ws://127.0.0.1:{front.port}", *at[2:], *small("pairs"), "--set", f"server.proxy={version}"]
        assert loadgen("run", *flags).good()["counts"]["delivered"] > 100
        assert len(front.greeted) == 32 and all(greeted.startswith(start) for greeted in front.greeted)


# ----------------------------------------------------------------------------------- saturation, bursts and agents


def test_saturation_is_searched_and_measured_at_parts(loadgen, at):
    more = settings("saturate.from=100", "saturate.to=200", "saturate.probe=1s")
    result = loadgen("saturate", *at, *small("pairs"), *more, "--threshold", "lost == 0").good()
    steps = result["steps"]
    search = [step for step in steps if step["kind"] == "search"]
    assert search[0]["passed"]
    assert [step["fraction"] for step in steps if step["kind"] == "measure"] == [0.1, 0.25, 0.5, 0.75, 0.9]
    if all(step["passed"] for step in search):
        # Nothing failed up to the highest rate that was tried: more may be possible.
        assert result["generator_bound"]


def test_a_rate_that_cannot_be_is_not_found(loadgen, at):
    more = settings("saturate.from=64", "saturate.probe=1s")
    run = loadgen("saturate", *at, *small("pairs"), *more, "--threshold", "delivery.p50 < 1us").wait()
    assert run.code == COULD_NOT_RUN and "no rate meets the thresholds" in run.said


def test_a_burst_is_drained_and_counted(loadgen, make_server):
    server = make_server().start()
    flags = ["--url", server.url, "--data", server.data, "--server-pid", server.process.pid, *small("pairs"), "--bursts", 2]
    drained = loadgen("burst-drain", *flags).good()
    assert drained["sessions"] == 32 and len(drained["cpu_us_per_message"]) == 2
    assert all(cost > 0 for cost in drained["cpu_us_per_message"]) and drained["lost"] == 0
    # Three bursts, the first of them uncounted.
    assert drained["stored"] == drained["delivered"] == 96


@pytest.fixture
def agent(directory):
    """Starts agents, and stops them by their pid."""
    agents = {}

    def start(*before, host="127.0.0.1"):
        port = places.free_port()
        log = Path(directory) / f"agent-{port}.log"
        command = [*before, places.binary("ringway-loadgen"), "agent", "--listen", f"{host}:{port}"]
        with open(log, "wb") as output:
            process = subprocess.Popen([str(part) for part in command], stderr=output, stdin=subprocess.DEVNULL)
        agents[f"{host}:{port}"] = (process, before)
        places.wait_until(lambda: "ready for coordinators" in log.read_text(), "the agent is ready")
        return f"{host}:{port}"

    def kill(address):
        process, _ = agents.pop(address)
        process.kill()
        process.wait(20)

    start.kill = kill
    yield start
    for process, before in agents.values():
        # `unshare` does not hand on what ends it; its child ends with it.
        process.kill() if "unshare" in before else process.terminate()
        assert process.wait(20) == (-signal.SIGKILL if "unshare" in before else 0)


# A clock that differs by days must not matter; where the kernel has no such clocks, it does not differ.
SHIFT_S = 200_000
SHIFTED = ["unshare", "--time", "--monotonic", SHIFT_S, "--fork", "--kill-child"]


def shift_of_clocks():
    shifted = [str(part) for part in [*SHIFTED, "true"]]
    can_shift = os.geteuid() == 0 and subprocess.run(shifted, capture_output=True, check=False).returncode == 0
    return (SHIFTED, SHIFT_S) if can_shift else ([], 0)


def check_times_abroad(result, said, shifts):
    """What was delivered between agents has times that hold no shift of a clock, and say how exact they are."""
    abroad, count = result["latency"]["abroad"], result["counts"]["delivered_abroad"]
    assert abroad["count"] == count > 0 and 0 < abroad["error_ms"]
    known = [abroad[quantile] for quantile in ("p50", "p90", "p99", "p99_9", "p99_99", "max") if abroad[quantile]]
    assert all(abroad["error_ms"] < ms < 100_000 for ms in known) and known == sorted(known)
    assert all(distribution["max"] < 100_000 for name, distribution in result["latency"].items() if name != "abroad")
    for generator, shift in zip(result["generators"], shifts, strict=True):
        offset, error = generator["clock_offset_ms"]
        assert abs(offset - shift * 1000) <= error + 1000 and 0 < error <= abroad["error_ms"]
        assert 0 < generator["busiest_thread_percent"] < 101 and generator["cpu_percent"] > 0
        assert f"agent {generator['name']}: " in said and f"{offset:+.3f} ms ±" in said
    assert result["busiest_thread_percent"] == max(each["busiest_thread_percent"] for each in result["generators"])
    assert f"below the clocks' error of {abroad['error_ms']:.3f} ms" in said


def test_agents_share_a_run_and_pairs_across_them_are_counted_apart(loadgen, at, agent, directory):
    shifted, shift = shift_of_clocks()
    agents = f"{agent()},{agent(*shifted)}"
    page, log = Path(directory) / "page.html", Path(directory) / "log"
    more = [*settings("sessions.cross_share=0.25"), "--report", page, "--hlog", log, "--threshold", "abroad.max < 1m"]
    run = loadgen("run", *at, *small("pairs"), *more, "--agents", agents)
    result = run.good()
    check_times_abroad(result, run.said, [0, shift])
    assert "delivered from other agents" in page.read_text() and "Tag=abroad," in log.read_text()
    assert "the clocks' error of" in result["thresholds"][0]["note"]
    counts = result["counts"]
    assert result["open"] == 32 and counts["delivered"] == counts["acked"] == counts["offered"] > 100
    assert counts["delivered_abroad"] > 0
    # Merged exactly: each delivery is in the distribution, but those across clocks.
    assert result["latency"]["delivery"]["count"] == counts["delivered"] - counts["delivered_abroad"]
    assert result["latency"]["ack"]["count"] == counts["acked"]
    # An agent takes one run after the other.
    result = loadgen("run", *at, *small("pairs"), "--agents", agents).good()
    assert result["counts"]["delivered_abroad"] == 0 and "abroad" not in result["latency"]


class Namespaces:
    """Two hosts as far as the network is concerned, each with a cable to this one."""

    def __init__(self):
        self.names = [f"rw{os.getpid()}{side}" for side in "ab"]
        for number, name in enumerate(self.names, 1):
            ip("netns", "add", name)
            ip("link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("addr", "add", f"10.213.{number}.1/24", "dev", f"{name}h")
            ip("link", "set", f"{name}h", "up")
            ip("-n", name, "addr", "add", f"10.213.{number}.2/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "route", "add", "default", "via", f"10.213.{number}.1")

    def close(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@pytest.fixture
def namespaces():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root, run ./test e2e as root")
    namespaces = Namespaces()
    yield namespaces
    namespaces.close()


def test_agents_on_other_hosts_whose_clocks_are_days_apart(loadgen, shared_server, at, agent, namespaces):
    """Each in a network of its own: the server, here, is to both of them another machine."""
    with Front(shared_server, lambda connection: (connection.getpeername()[0], connection), "10.213.1.1") as front:
        shifted, shift = shift_of_clocks()
        one, other = (["ip", "netns", "exec", name] for name in namespaces.names)
        hosts = [agent(*one, host="10.213.1.2"), agent(*other, *shifted, host="10.213.2.2")]
        flags = ["--url", f"ws://10.213.1.1:{front.port}", *at[2:], *small("pairs")]
        run = loadgen("run", *flags, *settings("sessions.cross_share=0.5"), "--agents", ",".join(hosts))
        result = run.good()
        counts = result["counts"]
        assert counts["delivered"] == counts["offered"] > 100
        check_times_abroad(result, run.said, [0, shift])
        assert sorted(front.greeted) == ["10.213.1.2"] * 16 + ["10.213.2.2"] * 16


def test_a_loss_across_agents_is_found(loadgen, agent, directory):
    with HostileServer("lose") as server:
        agents = f"{agent()},{agent()}"
        run, _ = hostile(loadgen, server, directory, *settings("sessions.cross_share=1"), "--agents", agents)
        assert run.code == BROKEN and run.result["counts"]["lost"] == server.harmed > 0, run.said


def test_what_agents_saw_acknowledged_is_in_one_file(loadgen, at, agent, directory):
    """Half of the pairs are across them, and half of the users are cut and come back meanwhile."""
    acks = Path(directory) / "acks"
    agents = f"{agent()},{agent()}"
    more = settings("sessions.cross_share=0.5", "sessions.threads=2", "storm.at=1s", "storm.jitter=200ms")
    run = loadgen("run", "--scenario", "storm", *at, *small("pairs"), *more, "--agents", agents, "--acks", acks)
    counts = run.good()["counts"]
    assert counts["acked"] == counts["offered"] > 100 and counts["reopened"] == 16
    lines = [json.loads(line) for line in acks.read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == counts["acked"]
    assert len({line["sender"] for line in lines}) > 16
    verified = loadgen("verify", "--acks", acks, *at[:4]).wait()
    assert verified.code == 0 and f"{counts['acked']} acknowledged messages" in verified.output, verified.said


@pytest.mark.parametrize(("mischief", "code"), [("lose", BROKEN), ("mute", UNKNOWN)])
def test_what_agents_were_told_and_is_not_there_is_found(loadgen, agent, directory, mischief, code):
    acks = Path(directory) / "acks"
    with HostileServer(mischief, every=50) as server:
        more = [*settings("sessions.cross_share=0.5"), "--agents", f"{agent()},{agent()}", "--acks", acks]
        run, key = hostile(loadgen, server, directory, *more)
        assert run.code == code, run.said
        verified = loadgen("verify", "--acks", acks, "--url", server.url, "--jwt-key", key).wait()
        assert verified.code == code, verified.said
        counts = run.result["counts"]
        # A message that was lost, or never answered, is named; so is every other.
        lines = [json.loads(line) for line in acks.read_text().splitlines()]
        assert sum(line["seq"] == 0 for line in lines) == counts["unanswered"]
        assert sum(line["seq"] > 0 for line in lines) == counts["acked"]


def test_a_lost_agent_ends_the_run_in_its_name_and_what_it_told_is_kept(loadgen, at, agent, directory):
    acks = Path(directory) / "acks"
    lost = agent()
    flags = [*small("pairs"), *settings("sessions.cross_share=0.5"), "--duration", "600s"]
    run = loadgen("run", *at, *flags, "--agents", f"{agent()},{lost}", "--acks", acks)
    told = lambda: acks.exists() and len({json.loads(line)["sender"] for line in whole_lines(acks)}) == 32
    places.wait_until(told, "all users of both agents have had an answer")
    agent.kill(lost)
    assert run.wait().code == COULD_NOT_RUN and f"the agent {lost}: it is gone" in run.said, run.said
    text = acks.read_text()
    assert text.endswith("\n") and all(json.loads(line) for line in text.splitlines())
    # Those whose answers were cut off with it are on nobody's list; every line that there is holds.
    verified = loadgen("verify", "--acks", acks, *at[:4]).wait()
    assert verified.code in (0, UNKNOWN), verified.said


def test_a_killed_coordinator_leaves_whole_lines(loadgen, at, agent, directory):
    acks = Path(directory) / "acks"
    agents = f"{agent()},{agent()}"
    flags = [*small("pairs"), *settings("sessions.cross_share=0.5", "traffic.rate=1000")]
    run = loadgen("run", *at, *flags, "--duration", "600s", "--agents", agents, "--acks", acks)
    places.wait_until(lambda: acks.exists() and len(whole_lines(acks)) > 500, "messages are stored")
    run.process.kill()
    run.process.wait(20)
    text = acks.read_text()
    assert text.endswith("\n") and all(json.loads(line) for line in text.splitlines())
    verified = loadgen("verify", "--acks", acks, *at[:4]).wait()
    assert verified.code == 0, verified.said
    # The agents are free again.
    assert loadgen("run", *at, *flags, "--agents", agents).good()["counts"]["delivered_abroad"] > 0


def whole_lines(path):
    return path.read_text().rpartition("\n")[0].splitlines()


def test_an_agent_that_is_not_there_is_named(loadgen, at, agent):
    nobody = f"127.0.0.1:{places.free_port()}"
    run = loadgen("run", *at, *small("pairs"), "--agents", f"{agent()},{nobody}").wait()
    assert run.code == COULD_NOT_RUN and nobody in run.said
