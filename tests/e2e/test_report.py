"""What ringway-loadgen shows of a run: the page, the interval log, lines, live metrics, and the live view."""

import copy
import json
import os
import pty
import re
import subprocess

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from harness import places
from harness.node import look
from harness.server import Metrics, request, temporary_directory

EVIL = "</script><img src=x onerror=alert(1)><b>\"'&"


def command(*arguments):
    return [str(part) for part in [places.binary("ringway-loadgen"), *arguments]]


def load(server, *, first_user, seconds=4, rate=300, users=20):
    return command(
        "run", "--url", server.url, "--data", server.data, "--first-user", first_user,
        "--users", users, "--rate", rate, "--duration", f"{seconds}s",
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(shared_server):
    """A directory with everything that one small run leaves behind."""
    with temporary_directory("report") as path:
        outputs = ["--json", "a.json", "--report", "a.html", "--hlog", "a.hlog", "--export-jsonl", "-"]
        outputs += ["--server-metrics", f"http://{shared_server.internal}/metrics"]
        outputs += ["--server-pid", shared_server.process.pid, "--label", "small"]
        arguments = [*load(shared_server, first_user=50_001), *map(str, outputs)]
        done = subprocess.run(arguments, cwd=path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        (places.Path(path) / "a.jsonl").write_text(done.stdout)
        yield places.Path(path)


def result_of(made):
    return json.loads((made / "a.json").read_text())


def report(directory, *results):
    """`ringway-loadgen report` over these documents; the page."""
    files = []
    for number, result in enumerate(results):
        files.append(directory / f"{number}.json")
        files[-1].write_text(json.dumps(result))
    page = directory / "page.html"
    done = subprocess.run(command("report", *files, "-o", page), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return page


def test_the_page_of_a_run(made, node, directory):
    seen = look(node, made / "a.html", directory)
    result = result_of(made)
    assert (seen["title"], seen["verdict"]) == ("Capacity test: small", "passed")
    assert seen["headings"][0] == "Thresholds"
    assert ["lost == 0", "0", "pass"] in seen["checks"]
    charts = {chart["id"]: chart["lines"] for chart in seen["charts"]}
    assert {"by-percentile", "latency", "rate", "connections", "cpu", "memory", "server-counts"} <= set(charts)
    assert charts["rate"] == ["time", "offered", "stored", "delivered"]
    assert charts["cpu"] == ["time", "server", "generator"]
    assert seen["tiles"]["sessions open"] == "20"
    # The machine, the program, the command that runs it again, and a kernel setting in a table that is folded.
    host = result["generators"][0]["host"]
    for part in [host["kernel"], host["processor"], "commit", "ringway-loadgen run --url", "Kernel settings"]:
        assert part in seen["text"], part
    assert "net.core.somaxconn" in (made / "a.html").read_text()


def test_memory_is_known_on_both_sides_of_the_kernel(made):
    result = result_of(made)
    memory = result["memory"]
    assert memory["sessions"] == 20 and memory["both_ends"]
    assert memory["server_bytes_per_session"] is not None and memory["generator_bytes_per_session"] is not None
    if os.geteuid() == 0:
        assert "TCP" in memory["kernel_slabs"] or memory["kernel_bytes_per_session"] is not None
    growth = result["server"]["metrics_growth"]
    assert growth["ringway_chat_messages_total"] > 0
    assert result["server"]["cpu_us_per_message"] > 0
    # As its own metrics say it.
    assert re.fullmatch(r"version \S+ commit \S+ profile \S+", result["server"]["version"])


def variants(result):
    """Runs under three labels and of two commits, one label as evil as labels can be."""
    runs = []
    for label, factor in [("before", 1.0), ("after", 0.8), (EVIL, 1.5)]:
        for number in range(6):
            run = copy.deepcopy(result)
            run |= {"label": label, "command": f"run {EVIL}", "began_unix_ms": result["began_unix_ms"] + number}
            run["generators"][0]["build"]["commit"] = ["aaaaaaa", "bbbbbbb"][number % 2]
            run["generators"][0]["host"]["name"] = EVIL
            run["server"]["version"] = ""
            for distribution in run["latency"].values():
                distribution["p99"] *= factor * (1 + number / 100)
            run["thresholds"] = [
                {"condition": f"delivery.p99 < {EVIL}", "measured": number, "unit": "ms", "passed": number < 5}
            ]
            runs.append(run)
    return runs


def test_several_runs_compare(made, node, directory):
    page = report(places.Path(directory), *variants(result_of(made)))
    seen = look(node, page, directory)
    assert seen["verdict"] == "failed"
    assert seen["title"] == f"before against after against {EVIL}"
    assert {"Side by side", "Against before"} <= set(seen["headings"])
    assert any(row[0] == "before" and "held in 5 of 6 runs" in row[1] and row[-1] == "fail" for row in seen["checks"])
    assert any(chart["id"] == "trend-delivered-p99" for chart in seen["charts"])
    assert "aaaaaaa" in page.read_text() and "95 %" in seen["text"]


def test_what_fails_is_said_first(made, node, directory):
    result = result_of(made)
    result |= {"aborted": "delivery.p99 < 1ms was breached for 5 s", "generator_bound": True}
    result["thresholds"] = [
        {"condition": "delivery.p99 < 1ms", "measured": 12.5, "unit": "ms", "passed": False, "note": EVIL}
    ]
    step = {
        "kind": "search", "offered_per_second": 100.0, "achieved_per_second": 99.0, "passed": True,
        "generator_bound": False, "generator_cpu_percent": 1.0, "latency": result["latency"],
    }  # fmt: skip
    result["steps"] = [step, step | {"offered_per_second": 200.0}]
    page = report(places.Path(directory), result)
    seen = look(node, page, directory)
    assert seen["verdict"] == "failed"
    condition, measured, verdict = seen["checks"][0]
    assert (condition, measured, verdict) == (f"delivery.p99 < 1ms{EVIL}", "12.5 ms", "fail")
    assert "Generator-bound" in seen["text"] and "breached for 5 s" in seen["text"]
    assert seen["charts"][0]["id"] == "steps"


def test_another_format_is_refused_with_a_sentence(made, directory):
    old = places.Path(directory) / "old.json"
    old.write_text(json.dumps(result_of(made) | {"format": 99}))
    done = subprocess.run(command("report", old, "-o", old.with_suffix(".html")), capture_output=True, text=True)
    assert done.returncode == 2
    assert "format 99" in done.stderr


def test_the_interval_log_is_read_by_others(made):
    """By PyPI's hdrhistogram: as many times as the result counts, and the same percentiles."""
    result = result_of(made)
    whole = {}
    reader = HistogramLogReader(str(made / "a.hlog"), HdrHistogram(1, 600_000_000_000, 3))
    while (interval := reader.get_next_interval_histogram()) is not None:
        tag = interval.get_tag()
        whole.setdefault(tag, HdrHistogram(1, 600_000_000_000, 3)).add(interval)
    reader.close()
    for tag, histogram in whole.items():
        distribution = result["latency"][tag]
        assert histogram.get_total_count() == distribution["count"], tag
        # The intervals together are the document's own histogram.
        own = HdrHistogram.decode(distribution["histogram"])
        one_message = 100 / distribution["count"]
        for percentile, name in [(50, "p50"), (90, "p90"), (99, "p99"), (100, "max")]:
            value = histogram.get_value_at_percentile
            assert value(percentile) == own.get_value_at_percentile(percentile), (tag, name)
            # Libraries differ by one in which message a percentile is.
            low, high = value(percentile - one_message) / 1e6, value(min(percentile + one_message, 100)) / 1e6
            assert low * 0.999 <= distribution[name] <= high * 1.001, (tag, name)
    assert {"ack", "delivery", "opening", "schedule_error"} <= set(whole)


def test_a_line_a_second_adds_up_to_the_result(made):
    result = result_of(made)
    lines = [json.loads(line) for line in (made / "a.jsonl").read_text().splitlines()]
    assert lines == result["series"]
    for name in ["offered", "acked", "delivered"]:
        assert sum(line[name] for line in lines) == result["counts"][name], name
    assert any(line["server_metrics"]["ringway_chat_sessions"] == 20 for line in lines)


def test_live_metrics_and_plain_progress(shared_server, directory):
    arguments = [*load(shared_server, first_user=51_001, seconds=60), "--prometheus", "127.0.0.1:0"]
    with subprocess.Popen(arguments, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            first = run.stderr.readline()
            address = re.fullmatch(r"live metrics at http://(.*)/metrics\n", first)[1]

            def acked():
                metrics = Metrics.parse(request(address, "GET", "/metrics").body.decode())
                return metrics.get('ringway_loadgen_events_total{what="acked"}', 0) > 0 and metrics

            metrics = places.wait_until(acked, "live metrics count messages")
            assert metrics['ringway_loadgen_sessions{what="open"}'] == 20
            assert metrics['ringway_loadgen_latency_seconds{of="ack",quantile="0.99"}'] > 0
            # No terminal: a line a second that a log can keep.
            assert re.search(r"open 20/20 .* ack p50", run.stderr.readline() + run.stderr.readline())
        finally:
            run.terminate()
            out, _ = run.communicate(timeout=60)
    assert "lost 0, doubled 0, reordered 0" in out


def test_the_live_view_of_a_terminal(shared_server, directory):
    ours, theirs = pty.openpty()
    arguments = [*load(shared_server, first_user=52_001, seconds=3), "--server-pid", str(shared_server.process.pid)]
    with subprocess.Popen(arguments, cwd=directory, stdout=subprocess.DEVNULL, stderr=theirs) as run:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:
                break  # The other side is closed: the run has ended.
            if not piece:
                break
            drawn += piece
    os.close(ours)
    assert run.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    for part in ["sessions", "20 of 20 open", "/s stored", "p99", "generator", "server", "nothing"]:
        assert part in text, (part, text)
