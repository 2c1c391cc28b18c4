"""The main path through clients in another language: Node with npm's `ws`, and a page in Chromium."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading

import pytest

from harness import places
from harness.client import conversation

TESTS = places.REPOSITORY / "tests"
STEPS = [
    "open",
    "send and ack",
    "delivery to two devices",
    "ticks: stored, delivered, read",
    "the other device knows what was read",
    "offline, then resume",
    "history by cursor in both directions",
    "typing",
    "superseded by a newer connection",
]


def world_of(server, users):
    """What a scenario needs to know: where the server is, and three devices of two users."""

    def device(user, number):
        return {"user": user, "id": number, "token": server.token(user, number)}

    return {
        "url": server.url,
        "conv": conversation(*users[:2]),
        "alice": device(users[0], "1"),
        "phone": device(users[1], "1"),
        "tablet": device(users[1], "2"),
    }


def run_node(node, script, argument, **environment):
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


def test_node(shared_server, users, node):
    assert run_node(node, "chat.mjs", world_of(shared_server, users)) == STEPS


@pytest.fixture
def page_address(directory):
    """Serves the page and the scenario on a port, and so from an origin, of their own."""
    for file in (TESTS / "browser" / "page.html", TESTS / "node" / "scenario.mjs"):
        shutil.copy(file, directory)

    class Files(http.server.SimpleHTTPRequestHandler):
        extensions_map = {".mjs": "text/javascript", ".html": "text/html"}

        def log_message(self, *_):
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=directory))
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{site.server_port}/page.html"
    site.shutdown()
    thread.join()
    site.server_close()


def test_a_page_in_chromium(shared_server, users, node, page_address, directory):
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("Chromium is missing, install Debian's chromium")
    argument = {"world": world_of(shared_server, users), "page": page_address, "profile": f"{directory}/profile"}
    assert run_node(node, "page.mjs", argument, CHROMIUM=chromium) == STEPS
