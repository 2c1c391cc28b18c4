"""The page of all figures: made out of the result files alone, the same each time, and it says what is not known."""

import json
import subprocess
from pathlib import Path

import pytest

from harness import places
from harness.node import look

NAMES = ["T1", "T2", "T4", "T4", "T5", "T5", "T6", "T9", "T9", "T9", "T9", "T9", "T10", "T12", "T13", "T13", "T13", "generator", "million"]
# Every file says by what, where and when it was measured.
ABOUT = {
    "command": "cargo run --release -p bench -- something",
    "commit": "abc1234",
    "cores": 2,
    "date": "2026-01-01T00:00Z",
    "kernel": "6.18.0",
    "memory_kib": 24684092,
    "method": "As it is done.",
    "processor": "A processor",
    "worktree_clean": True,
}


def side(name, us, **over):
    ratios = {base: {"median": value, "low": value - 0.05, "high": value + 0.05} for base, value in over.items()}
    return {"name": name, "absent": None, "us": us, "per_second": 1e6 / us, "over": ratios}


@pytest.fixture
def results(directory):
    """A directory with results of which some reach what they must, and some do not."""
    path = Path(directory) / "results"
    path.mkdir()

    def put(name, **result):
        (path / f"{name}.json").write_text(json.dumps(ABOUT | result))

    routed = [side("raw relay", 10.0), side("ringway shard", 13.0) | {"over": side("", 1, **{"raw relay": 1.3})["over"]}]
    put("routed-1000", sides=routed, void=False)
    opened = [side("raw ring", 10.0), side("ringway", 16.0) | {"over": side("", 1, **{"raw ring": 1.6})["over"]}]
    put("opened", sides=opened, void=False)
    put("beats-200000", sides=routed, void=True)
    put("idle", bytes_per_session=190.0, kernel_added_bytes={"io_kiocb": 256.0, "kmalloc-32": 32.0}, kernel_plain_bytes=7_000.0)
    put("million", held=1_000_000, cut=0, lost=1)
    put("restart", rounds=[{"conversations": 10, "ready_seconds": 0.5}, {"conversations": 20, "ready_seconds": 0.75}])
    return path


def make(results, directory):
    command = [places.binary("bench"), "performance", "--results", results, "--output", directory]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return [Path(directory) / name for name in ("performance.md", "performance.html")]


def test_the_same_files_give_the_same_pages(results, directory):
    first = [path.read_bytes() for path in make(results, directory)]
    assert first == [path.read_bytes() for path in make(results, directory)]


def test_the_first_table_says_what_is_met_and_what_was_not_measured(results, directory):
    text = make(results, directory)[0].read_text()
    lines = [line for line in text.split("## ")[1].splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == NAMES
    by_name = {}
    for row in rows:
        by_name.setdefault(row[0], row)
    assert {name: row[-1] for name, row in by_name.items()} == {
        "T1": "met",
        "T2": "met",
        "T4": "not measured",
        "T5": "met",
        "T6": "not measured",
        "T9": "not measured",
        "T10": "**not met**",
        "T12": "not measured",
        "T13": "not measured",
        "generator": "not measured",
        "million": "**not met**",
    }
    assert by_name["T5"][2:5] == ["13 µs", "raw relay 10 µs: 1.3x (1.25 to 1.35)", "–"]
    assert by_name["T2"][2] == "288 B (io_kiocb 256, kmalloc-32 32)"
    assert by_name["million"][2] == "1,000,000 held by one process, 0 cut, 1 lost"
    assert "| ready seconds | 0.5 | 0.75 |" in text


def test_the_page_shows_it_in_a_browser(results, node, directory):
    seen = look(node, make(results, directory)[1], directory, has_charts=False)
    assert (seen["title"], seen["verdict"]) == ("Performance of Ringway", "failed")
    assert seen["headings"][:2] == ["What is to be reached, and how far it is", "beats-200000"]
    first = seen["tables"][0][1:]
    assert [row[0] for row in first] == NAMES
    assert {row[-1] for row in first} == {"met", "not met", "not measured"}
    assert "beats-200000 is void" in seen["text"]
