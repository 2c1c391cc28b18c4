"""What no decent client sends before the upgrade: handshakes, HTTP heads and paths."""

import threading

import pytest

from harness.client import Client
from harness.places import wait_until
from harness.raw import Raw, upgrade

pytestmark = pytest.mark.usefixtures("others_go_on")

GOOD = upgrade()


def answer_to(server, request):
    """Status, headers and body, and whether the server closed behind it."""
    with Raw(server) as raw:
        raw.send(request)
        return raw.response()


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


def without(name):
    return b"\r\n".join(line for line in GOOD.split(b"\r\n") if not line.startswith(name))


def test_the_good_one_is_answered_with_101(shared_server):
    status, headers, _ = answer_to(shared_server, GOOD)
    assert status == 101
    assert headers["sec-websocket-protocol"] == "ringway.v1.json"


KEY = next(line for line in GOOD.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    {
        "wrong method": (400, changed(b"GET", b"PUT")),
        "wrong HTTP version": (400, changed(b"HTTP/1.1", b"HTTP/1.0")),
        "no key": (400, without(b"Sec-WebSocket-Key")),
        "key twice": (400, changed(KEY, KEY + b"\r\n" + KEY)),
        "key of the wrong length": (400, changed(KEY, b"Sec-WebSocket-Key: c2hvcnQ=")),
        "wrong WebSocket version": (426, changed(b"Version: 13", b"Version: 12")),
        "a request, no upgrade": (400, without(b"Upgrade").replace(b"Connection: Upgrade", b"X: y")),
        "no upgrade": (400, without(b"Upgrade")),
        "no connection": (400, without(b"Connection")),
    }.values(),
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_wrong_handshakes(shared_server, refused, status, request_bytes):
    with refused("handshakes_refused"):
        answered, headers, _ = answer_to(shared_server, request_bytes)
        assert answered == status
        if status == 426:
            assert headers["sec-websocket-version"] == "13", "what would have been right"


POST = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    {
        "length and transfer encoding": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        "two different lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "two equal lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
        "a negative length": POST + b"Content-Length: -2\r\n\r\n{}",
        "a signed length": POST + b"Content-Length: +2\r\n\r\n{}",
        "bare line feeds": b"GET /v1/conversations HTTP/1.1\nHost: x\n\n",
        "one bare line feed": b"GET /v1/conversations HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        "NUL in a value": b"GET /v1/conversations HTTP/1.1\r\nHost: x\0y\r\n\r\n",
        "NUL in a name": b"GET /v1/conversations HTTP/1.1\r\nHo\0st: x\r\n\r\n",
        "space before the colon": b"GET /v1/conversations HTTP/1.1\r\nHost : x\r\n\r\n",
        "folded line": b"GET /v1/conversations HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
        "no host": b"GET /v1/conversations HTTP/1.1\r\n\r\n",
        "two hosts": b"GET /v1/conversations HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    }.items(),
    ids=lambda item: item[0],
)
def test_ambiguous_requests_are_refused_and_the_connection_ends(shared_server, refused, request_bytes):
    with refused("http_malformed"), Raw(shared_server) as raw:
        raw.send(request_bytes[1])
        status, _, _ = raw.response()
        assert status == 400
        raw.ended()


def test_a_header_line_of_more_than_8_kib(shared_server, refused):
    with refused("http_malformed"):
        status, _, _ = answer_to(shared_server, upgrade(X_Long="x" * 9000))
        assert status == 431


def test_more_than_64_headers(shared_server, refused):
    many = {f"X_{number}": "y" for number in range(70)}
    with refused("http_malformed"):
        status, _, _ = answer_to(shared_server, upgrade(**many))
        assert status == 431


def test_headers_without_end_in_small_pieces(shared_server, refused):
    with refused("http_malformed"), Raw(shared_server) as raw:
        raw.send(b"GET /ws HTTP/1.1\r\n")
        try:
            for number in range(20_000):
                raw.send(b"X-%d: y\r\n" % number)
        except OSError:
            pass  # The server has answered and closed while this went on.
        assert b" 431 " in raw.ended()


@pytest.mark.parametrize("part", [b"", b"G", b"GET /ws HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "a byte", "half"])
def test_a_handshake_that_is_never_finished_is_cut_off(shared_server, refused, part):
    with refused("handshake_timeouts"), Raw(shared_server) as raw:
        raw.send(part)
        assert b"101" not in raw.ended()


def test_a_handshake_a_byte_at_a_time_is_cut_off(shared_server, refused):
    """Each byte is progress, and the total still counts: a minute's worth does not fit."""
    with refused("handshake_timeouts"), Raw(shared_server) as raw:
        assert raw.send_slowly(GOOD, 0.3) < len(GOOD)


def test_a_body_that_never_comes_is_given_up(make_server, users):
    server = make_server(settings={"limits.request_ms": 1000}).start()
    with Raw(server) as raw:
        raw.send(POST + f"Authorization: Bearer {server.token(users[0])}\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b"HTTP/1.1 2" not in raw.ended()


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/v1/%2e%2e/metrics", {400, 404}),
        ("/../etc/passwd", {400, 404}),
        ("/v1/conversations/%00/messages", {400, 404}),
        ("/v1/conversations/dm.1.2%2f../messages", {400, 404}),
        ("/%", {400, 404}),
        ("/" + "a" * 16_384, {414}),
    ],
    ids=["dots", "climbing", "NUL", "slash", "half an escape", "16 KiB"],
)
def test_hostile_paths(shared_server, users, path, statuses):
    with Raw(shared_server) as raw:
        token = shared_server.token(users[0])
        raw.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        assert raw.response()[0] in statuses


@pytest.mark.parametrize("path", ["/metrics", "/health/ready", "/health/live", "/admin", "/debug/pprof"])
def test_nothing_internal_on_the_public_port(shared_server, path):
    assert shared_server.request("GET", path).status == 404


def test_a_body_over_the_limit_is_refused_by_its_length(shared_server, refused, users):
    with refused("http_malformed"), Raw(shared_server) as raw:
        token = shared_server.token(users[0])
        raw.send(POST + f"Authorization: Bearer {token}\r\nContent-Length: 1000000000\r\n\r\n".encode())
        assert raw.response()[0] == 413


def test_compression_is_declined(shared_server):
    with Raw(shared_server) as raw:
        headers = raw.handshake(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
        assert "sec-websocket-extensions" not in headers


def test_an_origin_that_is_not_on_the_list(make_server, users):
    server = make_server(settings={"server.allowed_origins": "https://chat.example.org"}).start()
    for origin in ("https://evil.example.org", "https://chat.example.org.evil.org", "http://chat.example.org", "null"):
        status, _, _ = answer_to(server, upgrade(Origin=origin))
        assert status == 403, origin
    assert answer_to(server, upgrade(Origin="https://chat.example.org"))[0] == 101


def test_requests_one_behind_the_other_are_answered_in_order(shared_server, users):
    """Keep-alive, and a client that does not wait: not an attack, and easily taken for one."""
    token = shared_server.token(users[0])
    one = f"GET /v1/conversations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    two = b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    with Raw(shared_server) as raw:
        raw.send(one + two + one)
        assert [raw.response()[0] for _ in range(3)] == [200, 404, 200]


def test_slow_handshakes_do_not_hold_the_server(make_server, users):
    """Five hundred clients at a byte per second, while two others chat."""
    server = make_server(settings={"server.connections_max": 5000, "limits.handshake_ms": 60_000}).start()
    slow = [Raw(server) for _ in range(500)]
    stop = threading.Event()

    def trickle():
        at = 0
        while not stop.wait(1.0) and at < len(GOOD):
            for raw in slow:
                raw.send(GOOD[at : at + 1])
            at += 1

    trickling = threading.Thread(target=trickle)
    trickling.start()
    try:
        with Client(server, users[0]) as alice, Client(server, users[1]) as bob:
            for number in range(200):
                alice.send(users[1], str(number))
                assert bob.expect("message")["body"] == str(number)
    finally:
        stop.set()
        trickling.join()
        for raw in slow:
            raw.close()
    baseline = wait_until(lambda: server.open_descriptors() < 200, "the descriptors are given back")
    assert baseline
