"""The main path through clients in another language: Node with npm's `ws`, and a page in Chromium."""

import functools
import http.server
import shutil
import threading

import pytest

from harness.client import conversation
from harness.node import TESTS, run, run_in_chromium

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


def test_node(shared_server, users, node):
    assert run(node, "chat.mjs", world_of(shared_server, users)) == STEPS


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
    argument = {"world": world_of(shared_server, users), "page": page_address, "profile": f"{directory}/profile"}
    assert run_in_chromium(node, "page.mjs", argument) == STEPS
