"""Scripts under tests/node, run by Node; some of them in headless Chromium."""

import json
import os
import re
import shutil
import subprocess

import pytest

from . import places

TESTS = places.REPOSITORY / "tests"
VIEWS = ["desk-light", "desk-dark", "phone-light", "phone-dark"]


def run(node, script, argument, **environment):
    """Runs a script with JSON in its only argument; returns the JSON of the last line that it prints."""
    interpreter, tools = node
    done = subprocess.run(
        [interpreter, str(TESTS / "node" / script), json.dumps(argument)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"NODE_TOOLS": str(tools)} | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_in_chromium(node, script, argument):
    """The same for a script that needs Chromium."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("Chromium is missing, install Debian's chromium")
    return run(node, script, argument, CHROMIUM=chromium)


def look(node, page, directory, has_charts=True):
    """What Chromium sees, after what holds for every page: drawn, whole, silent, and nothing fetched."""
    argument = {"page": str(page), "profile": f"{directory}/profile", "pictures": str(directory)}
    seen = run_in_chromium(node, "report.mjs", argument)
    assert seen["problems"] == []
    assert seen["requests"] == []
    assert list(seen["views"]) == VIEWS
    for name, view in seen["views"].items():
        assert view["overflow"] <= 0, name
        assert view["images"] == 0, name
        assert bool(view["charts"]) == has_charts, name
        for chart in view["charts"]:
            # Paper, axes, a line and its smooth edges; an empty canvas has none.
            assert chart["colours"] > 8, (name, chart)
            assert len(chart["lines"]) > 1, (name, chart)
        # Every view is taken; small ones would be blank.
        assert (places.Path(directory) / f"{name}.png").stat().st_size > 20_000
    background = {name: view["background"] for name, view in seen["views"].items()}
    assert background["desk-light"] == background["phone-light"] == "rgb(255, 255, 255)"
    assert background["desk-dark"] == background["phone-dark"] != background["desk-light"]
    paper = (places.Path(directory) / "paper.pdf").read_bytes()
    assert paper.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", paper)) >= 2
    return seen["views"]["desk-light"]
