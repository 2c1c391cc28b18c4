"""Frames that are well-formed and wrong: JSON, ids, sends, marks, resumes, cursors."""

import json

import pytest

from harness.client import Client, Refused, conversation, message_id

pytestmark = pytest.mark.usefixtures("others_go_on")


def answer(client, frame):
    """The error that answers this frame; the session must go on behind it."""
    client.say(frame)
    error = client.expect("error")
    client.flush()
    return error


def a_send(**fields):
    """A good send as a dictionary, with these fields changed; `...` leaves one out."""
    whole = {"type": "send", "id": message_id(), "to": "7", "kind": "text", "body": "x"} | fields
    return {name: value for name, value in whole.items() if value is not ...}


def named(frame):
    """The same name in every process that collects this test: without the random id."""
    return json.dumps({name: value for name, value in frame.items() if name != "id" or len(str(value)) < 36})[:70]


DEEP = '{"type":"beat","received":0,"x":' + "[" * 10_000 + "]" * 10_000 + "}"


@pytest.mark.parametrize(
    "text",
    {
        "10,000 deep": DEEP,
        "10,000 deep and not closed": DEEP[: len(DEEP) // 2],
        "an infinite number": '{"type":"beat","received":1e400}',
        "a lone surrogate": '{"type":"send","to":"7","kind":"text","body":"\\ud800"}',
        "a key twice": '{"type":"beat","received":0,"received":1}',
        "the type twice": '{"type":"beat","type":"send","received":0}',
        "bytes behind it": '{"type":"beat","received":0} x',
        "two frames in one": '{"type":"beat","received":0}{"type":"beat","received":0}',
        "not JSON": "hello",
        "empty": "",
        "an array": "[]",
        "a string": '"beat"',
        "no type": "{}",
        "a type that is a number": '{"type":1}',
        "half an object": '{"type":"beat"',
        "not a number": '{"type":"beat","received":NaN}',
        "a control character": '{"type":"beat","received":0,"x":"\x01"}',
    }.items(),
    ids=lambda item: item[0],
)
def test_malformed_json(client, refused, users, text):
    with refused(error="bad_request"):
        assert answer(client(users[0]), text[1])["code"] == "bad_request"


@pytest.mark.parametrize(
    ("frame", "path"),
    [
        (a_send(id=5), "id"),
        (a_send(id="short"), "id"),
        (a_send(id=...), "id"),
        (a_send(to=7), "to"),
        (a_send(to=...), ""),
        (a_send(to="-7"), "to"),
        (a_send(to="007"), "to"),
        (a_send(to="18446744073709551616"), "to"),
        (a_send(to="7", conv="dm.1.2"), ""),
        (a_send(body=["x"]), "body"),
        (a_send(body=...), "body"),
        (a_send(kind="sonnet"), "kind"),
        *[(a_send(kind=kind, target_seq=1), "kind") for kind in ("edit", "delete", "pin", "system")],
        (a_send(kind="reaction"), "target_seq"),
        (a_send(reply_to=-1), "reply_to"),
        (a_send(reply_to=1.5), "reply_to"),
        (a_send(to=..., conv="dm.9.7"), "conv"),
        (a_send(to=..., conv="dm.07.9"), "conv"),
        (a_send(to=..., conv="dm.7"), "conv"),
        (a_send(to=..., conv="xy.7.9"), "conv"),
        ({"type": "beat", "received": "1"}, "received"),
        ({"type": "beat", "received": -1}, "received"),
        ({"type": "mark", "conv": 7, "read": 1}, "conv"),
        ({"type": "pull", "conv": "dm.1.2", "after": "x"}, "after"),
        ({"type": "pull", "conv": "dm.1.2", "after": 1, "before": 5}, ""),
        ({"type": "changes", "after": "not a number"}, "after"),
        ({"type": "signal", "conv": "dm.1.2"}, "name"),
        ({"type": "auth"}, "token"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else None,
)
def test_wrong_types_and_names_are_told_with_their_path(client, refused, users, frame, path):
    with refused(error="bad_request"):
        error = answer(client(users[0]), frame)
        assert error["code"] == "bad_request"
        assert error["retryable"] is False
        assert path in (error.get("path") or "")


def test_unknown_fields_are_ignored(client, users):
    alice = client(users[0])
    assert alice.send(users[1], "x", colour="blue", nested={"deep": [1, 2]})["seq"] == 1


def test_unknown_types_are_named_so(client, refused, users):
    with refused(error="unknown_type"):
        assert answer(client(users[0]), {"type": "teleport"})["code"] == "unknown_type"


def test_frames_of_the_server_are_not_frames_of_a_client(client, users):
    assert answer(client(users[0]), {"type": "stored", "seq": 1})["code"] == "unknown_type"


def test_a_body_at_the_limit_passes_and_above_it_is_too_large(client, refused, users):
    alice, bob = client(users[0]), client(users[1])
    limit = 64 * 1024
    assert alice.send(bob.user, "x" * limit)["seq"] == 1
    assert bob.expect("message")["body"] == "x" * limit
    for body in ("x" * (limit + 1), "\N{WAVING HAND SIGN}" * (limit // 4 + 1)):
        with refused(error="too_large"), pytest.raises(Refused) as error:
            alice.send(bob.user, body)
        assert error.value.code == "too_large"
    assert alice.send(bob.user, "\N{WAVING HAND SIGN}" * (limit // 4))["seq"] == 2, "the limit is in bytes"


def test_an_empty_body(client, refused, users):
    with refused(error="empty"), pytest.raises(Refused) as error:
        client(users[0]).send(users[1], "")
    assert error.value.code == "empty"


def test_conversations_one_is_not_in_do_not_exist(client, refused, users):
    """One that exists and one that does not are answered alike, down to the words."""
    alice, mallory = client(users[0]), client(users[2])
    exists = alice.send(users[1], "between us")["conv"]
    never = conversation(users[3], users[4])
    answers = []
    for conv in (exists, never, "gr.123"):
        told = []
        for frame in (
            a_send(to=..., conv=conv, id="AAAAAAAAAAAAAAAAAAAAAA"),
            {"type": "pull", "conv": conv, "after": 0},
            {"type": "mark", "conv": conv, "read": 1},
        ):
            with refused(error="not_found"):
                told.append(answer(mallory, frame))
        for error in told:
            assert error["code"] == "not_found"
        answers.append([json.dumps(error).replace(conv, "") for error in told])
    assert answers[0] == answers[1] == answers[2]
    status = {
        mallory.server.request("GET", f"/v1/conversations/{conv}/messages", token=mallory.token).status
        for conv in (exists, never)
    }
    assert status == {404}


def test_typing_where_one_is_not(client, users):
    alice, bob, mallory = client(users[0]), client(users[1]), client(users[2])
    conv = alice.send(users[1], "between us")["conv"]
    assert answer(mallory, {"type": "signal", "conv": conv, "name": "typing", "body": ""})["code"] == "not_found"
    alice.send(users[1], "and again")
    bob.expect("message", seq=2)
    bob.hears_nothing_of("signal")


@pytest.mark.parametrize("mark", ["read", "delivered"])
def test_marks_outside_the_conversation_change_nothing(client, refused, users, mark):
    alice, bob = client(users[0]), client(users[1])
    conv = alice.send(users[1], "one")["conv"]
    bob.expect("message")
    for value in (2, 1_000_000, 2**63):
        with refused(error="bad_cursor"):
            assert answer(bob, {"type": "mark", "conv": conv, mark: value})["code"] == "bad_cursor"
    error = answer(bob, {"type": "mark", "conv": conv, mark: -1})
    assert error["code"] in ("bad_cursor", "bad_request")
    alice.send(users[1], "two")
    bob.expect("message", seq=2)
    assert not [tick for tick in alice.seen if tick["type"] == "tick" and tick.get("read_all")]
    with Client(bob.server, bob.user, "9") as fresh:
        (listed,) = [each for each in fresh.opened["conversations"] if each["conv"] == conv]
        assert (listed["read"], listed["unread"]) == (0, 2)


def test_a_receipt_for_what_was_never_sent(client, refused, users):
    alice = client(users[0])
    with refused(error="bad_cursor"):
        alice.say({"type": "beat", "received": 10_000})
        assert alice.expect("error")["code"] == "bad_cursor"


def test_before_open_nothing_else_works(client, refused, users):
    alice = client(users[0], open=False)
    with refused(error="not_open"):
        alice.say(a_send(to=users[1]))
        assert alice.expect("error")["code"] == "not_open"
    alice.open(token=alice.token)
    assert alice.send(users[1], "now")["seq"] == 1


def test_open_twice(client, refused, users):
    alice = client(users[0])
    with refused(error="already_open"):
        alice.say({"type": "open", "device": "1", "token": alice.token})
        assert alice.expect("error")["code"] == "already_open"
    assert alice.send(users[1], "goes on")["seq"] == 1


def test_changes_after_what_the_server_has_is_ahead_and_a_snapshot(client, users):
    alice = client(users[0])
    alice.send(users[1], "one")
    epoch, counter = client(users[1]).opened["change"].split(".")
    for claimed in (f"{epoch}.{int(counter) + 1000}", f"{int(epoch) + 1000}.1"):
        opened = client(users[1], "2", changes_after=claimed).opened
        assert (opened["result"], opened["ahead"]) == ("snapshot", True)
        assert [each["conv"] for each in opened["conversations"]] == [conversation(*users[:2])]


def test_a_pull_above_the_head_is_an_empty_page(client, users):
    alice = client(users[0])
    conv = alice.send(users[1], "one")["conv"]
    page = alice.pull(conv, after=1_000_000)
    assert (page["messages"], page["more"], page["head"]) == ([], False, 1)


# --------------------------------------------------------------------------------------------- sessions


def refusal_of_open(client, **fields):
    """What a first `open` is answered with when it is refused: an error, then a close."""
    client.say({"type": "open", "device": client.device, **fields})
    error = client.expect("error")
    return error["code"], client.closed()


def test_an_altered_ticket(client, refused, users):
    ticket = client(users[0]).opened["ticket"]
    for at in (0, len(ticket) // 2, len(ticket) - 2):
        altered = ticket[:at] + ("A" if ticket[at] != "A" else "B") + ticket[at + 1 :]
        with refused(error="invalid_session"):
            assert refusal_of_open(client(users[0], open=False), ticket=altered) == ("invalid_session", 4102)


@pytest.mark.parametrize("ticket", ["", "x", "x" * 65_000], ids=["empty", "short", "huge"])
def test_what_is_not_a_ticket(client, refused, users, ticket):
    with refused(error="invalid_session"):
        assert refusal_of_open(client(users[0], open=False), ticket=ticket) == ("invalid_session", 4102)


def test_somebody_elses_ticket_beside_ones_own_token(client, refused, users):
    alice, mallory = client(users[0]), client(users[1], open=False, bearer=True)
    with refused(error="invalid_session"):
        assert refusal_of_open(mallory, ticket=alice.opened["ticket"]) == ("invalid_session", 4102)


def test_a_ticket_for_another_device(client, refused, users):
    ticket = client(users[0], "1").opened["ticket"]
    with refused(error="invalid_session"):
        assert refusal_of_open(client(users[0], "2", open=False), ticket=ticket) == ("invalid_session", 4102)


def test_a_stale_ticket(make_server, users):
    from harness.places import wait_until

    server = make_server(settings={"auth.ticket_s": 1}).start()
    with Client(server, users[0]) as alice:
        ticket = alice.opened["ticket"]

    def refused():
        with Client(server, users[0], open=False) as again:
            again.say({"type": "open", "device": "1", "ticket": ticket})
            return again.receive()["type"] == "error"

    wait_until(refused, "the ticket is stale")


def test_the_same_ticket_twice_the_newest_wins(client, users):
    first = client(users[0])
    ticket = first.opened["ticket"]
    second = client(users[0], open=False)
    second.open(ticket=ticket)
    assert first.closed() == 4210
    third = client(users[0], open=False)
    third.open(ticket=ticket)
    assert second.closed() == 4210
    assert third.send(users[1], "the newest")["seq"] == 1


# ----------------------------------------------------------------------------------------- REST cursors


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=0", 200),
        ("limit=1000000000", 200),
        ("limit=-1", 400),
        ("limit=x", 400),
        ("limit=1&limit=2", 400),
        ("after=0&after=1", 400),
        ("after=-1", 400),
        ("after=99999999999999999999", 400),
        ("after=1&before=2", 400),
        ("after=%00", 400),
        ("after=x", 400),
    ],
)
def test_limits_and_cursors_of_history(client, shared_server, users, query, status):
    alice = client(users[0])
    conv = alice.send(users[1], "one")["conv"]
    answered = shared_server.request("GET", f"/v1/conversations/{conv}/messages?{query}", token=alice.token)
    assert answered.status == status, answered.body
    if status == 200:
        assert len(answered.json()["messages"]) == 1, "the limit is clamped to 1..100"
    else:
        assert answered.headers["Content-Type"].startswith("application/problem+json")


@pytest.mark.parametrize("cursor", ["x", "%00", "AAAA", "-1", "9" * 30])
def test_forged_cursors_of_the_list(client, shared_server, users, cursor):
    alice = client(users[0])
    alice.send(users[1], "one")
    answered = shared_server.request("GET", f"/v1/conversations?cursor={cursor}", token=alice.token)
    assert answered.status == 400, answered.body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"{}", 400),
        (json.dumps(a_send(body="")).encode(), 400),
        (json.dumps(a_send(body="x" * 65_537)).encode(), 413),
        (json.dumps(a_send(to=..., conv="dm.1.2")).encode(), 404),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_bad_messages_over_rest(shared_server, users, body, status):
    answered = shared_server.request("POST", "/v1/messages", body=body, token=shared_server.token(users[0]))
    assert answered.status == status, answered.body
    assert answered.json()["status"] == status
