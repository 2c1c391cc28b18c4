"""The measuring commands at small scale: they run, and count what they should. What they measure is not judged."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import places


@pytest.fixture
def bench(directory):
    """Runs one measurement with its data and results in the test's own directory; answers with the results."""

    def run(*arguments, **variables):
        environment = {**os.environ, "BENCH_RESULTS": str(directory), **variables}
        command = [str(places.binary("bench")), *map(str, arguments)]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return {path.stem: json.loads(path.read_text()) for path in Path(directory).glob("*.json")}

    return run


def sides(result):
    return {side["name"]: side for side in result["sides"]}


def assert_measured(side):
    assert side["absent"] is None
    assert side["us"] > 0
    assert all(round["units"] > 0 for round in side["rounds"])


def test_floors_without_a_protocol(bench):
    results = bench("floor", "--hot", "100", "--connections", "2000", "--rounds", "1", "--seconds", "1", "--beats", "500")
    wanted = {
        "floor-hot-100": ["raw ring", "raw epoll"],
        "floor-cold-2000": ["echo", "answered beat"],
        "floor-relay-100": ["raw relay"],
        "floor-accept": ["raw ring"],
        "floor-fanout": ["merged 1", "merged 8", "merged 32", "merged 64"],
        "floor-commit": ["idle", "other core busy", "same core busy"],
    }
    assert set(results) == set(wanted)
    for name, names in wanted.items():
        assert list(sides(results[name])) == names
        for side in sides(results[name]).values():
            assert_measured(side)
        # One round is no measurement, and the result says so.
        assert results[name]["void"]
        assert results[name]["commit"] and results[name]["kernel"] and results[name]["settings"]["tcp_mem"]


def test_cold_sockets_are_spread_over_rings_and_each_echoes_once(bench):
    result = bench("floor", "cold", "--connections", "17500", "--rounds", "1", "--seconds", "1")["floor-cold-17500"]
    assert result["rings"] == 2
    assert all(round["units"] == 17_500 for round in sides(result)["echo"]["rounds"])


def test_ringway_against_the_probes(bench):
    results = bench("routed", "--connections", "50", "--rounds", "1", "--seconds", "1")
    results |= bench("opened", "--sessions", "300", "--rounds", "1")
    results |= bench("beats", "--sessions", "500", "--rounds", "1", "--seconds", "1")
    for name in ("routed-50", "opened", "beats-500"):
        for side in sides(results[name]).values():
            assert_measured(side)
    assert all(round["units"] == 300 for round in sides(results["opened"])["ringway"]["rounds"])
    # Where the kernel counts for us, it does for both.
    calls = results["routed-50"].get("calls")
    assert calls is None or all(0 < calls[side] < 10 for side in ("raw relay", "ringway shard"))


def test_latencies_beside_a_relay(bench):
    result = bench("latency", "--users", "200", "--rates", "500", "--seconds", "3")["latency"]
    for load in ("at_500", "at_half", "at_90_percent"):
        for of in (result[load], result[f"relay_{load}"]):
            assert 0 < of["delivery_ms"]["p50"] <= of["delivery_ms"]["p99"] <= of["delivery_ms"]["p99_9"]
            assert of["delivery_ms"]["count"] > 0
            assert {of[key] for key in ("reached", "generator_bound", "disturbed")} <= {True, False}


def test_one_process_of_the_generator_holds_more_than_a_table_of_the_probe(bench):
    result = bench("million", "--connections", "18000", "--connections-per-second", "4000", "--seconds", "4")["million-18000"]
    assert (result["held"], result["cut"], result["lost"], result["unanswered"]) == (18_000, 0, 0, 0)
    assert (result["generator_rings"], result["server_rings"]) == (2, 2)
    assert result["echoes"] > 0


def test_what_the_generator_costs_itself(bench):
    orders = ["--connections", "50", "--rate", "2000", "--rounds", "1", "--seconds", "1", "--idle", "300,600"]
    result = bench("generator", *orders)["generator"]
    for part in ("steady", "saturated"):
        assert result[part]["client_us"] > 0 and result[part]["generator_us"] > 0
        assert result[part]["generator_per_second"] > 0
    # One round is no measurement, and the result says so.
    assert result["void"]
    assert isinstance(result["user_bytes_per_session"], float)


def test_ringway_beside_a_peer_from_a_registry(bench):
    if not shutil.which("npm"):
        pytest.skip("npm is missing, install Debian's nodejs and npm")
    results = bench("peers", "echo", "open", "idle", "--peers", "ws", "--connections", "50", "--rounds", "1", "--seconds", "1")
    for name, names in {
        "peers-echo-50": ["raw ring", "raw epoll", "ringway", "ws"],
        "peers-open": ["raw ring", "ringway", "ws"],
    }.items():
        assert list(sides(results[name])) == names
        for side in sides(results[name]).values():
            assert_measured(side)
    assert all(side["user_bytes"] > 0 for side in sides(results["peers-idle"]).values())
    assert results["peers-echo-50"]["peers"][0]["version"].startswith("8.")


def test_a_peer_that_cannot_be_had_is_absent_and_not_beaten(bench, directory):
    empty = Path(directory) / "nothing-installed"
    # The system's own programs, and none of the registries' clients.
    tools = Path(directory) / "tools"
    tools.mkdir()
    for tool in ("taskset", "git", "uname", "date"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = bench(
        "peers", "echo", "--peers", "ws", "--connections", "20", "--rounds", "1", "--seconds", "1",
        BENCH_PEERS=str(empty), PATH=str(tools),
    )["peers-echo-20"]
    assert list(sides(result)) == ["raw ring", "raw epoll", "ringway"]
    assert result["peers"] == [{"name": "ws", "absent": result["peers"][0]["absent"]}]
    assert "npm cannot be run" in result["peers"][0]["absent"]


def test_ringway_beside_servers_that_keep_messages(bench):
    """Whoever cannot be installed here is absent with a reason; whoever is there has kept and delivered every message."""
    run = ["peers", "durable", "--connections", "20", "--rounds", "1", "--seconds", "1"]
    for load, rate in (("50", "50"), ("saturated", "0")):
        result = bench(*run, "--rate", rate, BENCH_PEERS=str(places.TARGET / "bench-peers"))[f"peers-durable-{load}"]
        absent = [peer["absent"] for peer in result["peers"] + result["did_not_start"] if "absent" in peer]
        assert all(absent)
        measured = sides(result)
        assert list(measured)[0] == "ringway" and len(measured) + len(absent) == 3
        for side in measured.values():
            assert_measured(side)
        for peer in result["peers"]:
            assert "absent" in peer or (peer["lacks"] and peer["version"])
