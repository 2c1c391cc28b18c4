"""Scripts under tests/node, run by Node; some of them in headless Chromium."""

import json
import os
import shutil
import subprocess

import pytest

from . import places

TESTS = places.REPOSITORY / "tests"


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
