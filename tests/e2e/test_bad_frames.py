"""What breaks RFC 6455 after the upgrade: the close code says which rule, and nothing else happens."""

import struct
import time

import pytest

from harness.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Closed, Raw, frame

pytestmark = pytest.mark.usefixtures("others_go_on")


def close_code_for(server, data):
    with Raw(server) as raw:
        raw.handshake()
        raw.send(data)
        code = raw.close_code()
        raw.ended()
        return code


@pytest.mark.parametrize(
    ("name", "data"),
    {
        "unmasked": frame(b"{}", mask=None),
        "first reserved bit": frame(b"{}", rsv=4),
        "second reserved bit": frame(b"{}", rsv=2),
        "third reserved bit": frame(b"{}", rsv=1),
        **{f"opcode {opcode}": frame(b"", opcode) for opcode in (3, 7, 11, 15)},
        "a long ping": frame(b"x" * 126, PING),
        "a long close": frame(struct.pack(">H", 1000) + b"x" * 124, CLOSE),
        "a fragmented ping": frame(b"x", PING, fin=False),
        "a continuation of nothing": frame(b"x", CONTINUATION),
        "a message within a message": frame(b"{", TEXT, fin=False) + frame(b"{}", TEXT),
        "a length with the highest bit": frame(b"", length=1 << 63, length_bytes=8),
        "a length in more bytes than it needs": frame(b"{}", length_bytes=2),
        "a length in far more bytes than it needs": frame(b"{}", length_bytes=8),
        "a close of one byte": frame(b"x", CLOSE),
        **{f"close code {code}": frame(struct.pack(">H", code), CLOSE) for code in (0, 999, 1005, 1006, 1015, 5000)},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_protocol_errors_close_with_1002(shared_server, refused, name, data):
    with refused(close=1002):
        assert close_code_for(shared_server, data) == 1002


def test_64_mib_declared_and_then_silence(shared_server, refused):
    """Refused by the header: nothing of it was sent, so nothing can have been waited for."""
    before = shared_server.memory_bytes()
    with refused(close=1009):
        assert close_code_for(shared_server, frame(b"", length=64 << 20, length_bytes=8)) == 1009
    assert shared_server.memory_bytes() - before < 32 << 20, "nothing was allocated for what was declared"


def test_fragments_without_end(shared_server, refused):
    pieces = frame(b"{", TEXT, fin=False) + frame(b" ", CONTINUATION, fin=False) * 1000
    with refused(close=1009):
        assert close_code_for(shared_server, pieces) == 1009


def test_thirty_two_fragments_are_still_a_message(shared_server):
    text = b'{"type":"beat","received":0}'.ljust(32)
    parts = [frame(text[at : at + 1], CONTINUATION if at else TEXT, fin=at == 31) for at in range(32)]
    with Raw(shared_server) as raw:
        raw.handshake()
        raw.send(b"".join(parts))
        # Not `open` yet: an answer in the protocol, not a close.
        while b'"not_open"' not in raw.frame()[1]:
            pass


def test_a_message_over_the_limit_in_many_frames(shared_server, refused):
    piece = b"x" * 30_000
    data = frame(piece, TEXT, fin=False) + frame(piece, CONTINUATION, fin=False) * 30
    with refused(close=1009):
        assert close_code_for(shared_server, data) == 1009


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "a stray continuation byte": b"a\x80",
        "an overlong slash": b"\xc0\xaf",
        "a surrogate": b"\xed\xa0\x80",
        "above the last code point": b"\xf4\x90\x80\x80",
        "cut off": b"\xe2\x82",
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_that_is_not_utf_8_closes_with_1007(shared_server, refused, name, text):
    with refused(close=1007):
        assert close_code_for(shared_server, frame(text)) == 1007


def test_bad_utf_8_is_seen_at_its_first_byte(shared_server, refused):
    """The message is not over, and need not be: the rest of it will never come."""
    with refused(close=1007):
        assert close_code_for(shared_server, frame(b"ab\xff", TEXT, fin=False)) == 1007


def test_bad_utf_8_split_over_fragments(shared_server, refused):
    with refused(close=1007):
        data = frame(b"\xe2", TEXT, fin=False) + frame(b"\x28", CONTINUATION, fin=False)
        assert close_code_for(shared_server, data) == 1007


def test_bad_utf_8_in_the_reason_of_a_close(shared_server, refused):
    with refused(close=1007):
        assert close_code_for(shared_server, frame(struct.pack(">H", 1000) + b"\xff", CLOSE)) == 1007


def test_a_close_is_answered_in_kind(shared_server):
    for sent, answered in ((struct.pack(">H", 1000) + b"bye", 1000), (struct.pack(">H", 3000), 3000)):
        assert close_code_for(shared_server, frame(sent, CLOSE)) == answered
    assert close_code_for(shared_server, frame(b"", CLOSE)) in (1000, 1005)


def test_a_binary_frame_where_the_protocol_has_text(shared_server, refused):
    with refused(close=1003):
        assert close_code_for(shared_server, frame(b"\0\1\2", BINARY)) == 1003


@pytest.mark.parametrize("opcode", [PING, PONG], ids=["pings", "pongs"])
def test_a_flood_of_control_frames_closes_with_4008(shared_server, refused, opcode):
    with refused(close=4008), Raw(shared_server) as raw:
        raw.handshake()
        try:
            for _ in range(200):
                raw.send(frame(b"x", opcode))
        except OSError:
            pass
        assert raw.close_code() == 4008


def test_pings_within_reason_are_answered(shared_server):
    with Raw(shared_server) as raw:
        raw.handshake()
        raw.frame()  # hello
        for number in range(15):
            raw.send(frame(f"ping {number}", PING))
        assert [raw.frame() for _ in range(15)] == [(PONG, f"ping {number}".encode()) for number in range(15)]


def test_frames_cut_at_every_byte_are_the_same_frames(shared_server):
    """A careful client on a terrible network."""
    with Raw(shared_server) as raw:
        raw.handshake()
        raw.frame()  # hello
        for byte in frame(b'{"type":"beat","received":0}') + frame(b"p", PING):
            raw.send(bytes([byte]))
            time.sleep(0.001)
        kinds = [raw.frame()[0] for _ in range(2)]
        assert sorted(kinds) == [TEXT, PONG]


def test_frames_right_behind_the_handshake(shared_server):
    """What comes in the same packet as the upgrade is not lost."""
    from harness.raw import upgrade

    with Raw(shared_server) as raw:
        raw.send(upgrade() + frame(b"at once", PING))
        assert raw.response()[0] == 101
        while raw.frame() != (PONG, b"at once"):
            pass


def test_cutting_connections_in_every_state_leaves_nothing_behind(shared_server):
    """Cut in the handshake, after it, within a frame: descriptors are back at what they were."""
    from harness.places import wait_until
    from harness.raw import upgrade

    before = shared_server.open_descriptors()
    whole = upgrade()
    for round in range(300):
        raw = Raw(shared_server)
        try:
            if round % 3 == 0:
                raw.send(whole[: round % len(whole)])
            else:
                raw.handshake()
                raw.send(frame(b"x" * 100)[: round % 100])
        except Closed:
            pass
        raw.close()
    wait_until(lambda: shared_server.open_descriptors() <= before, "descriptors are given back")
