"""Two people and their devices talk, through an independent client (PyPI `websockets`)."""

import pytest

from harness.client import Refused, conversation, message_id
from harness.places import wait_until


def test_a_message_is_acknowledged_and_arrives_as_it_was_sent(client, users):
    alice, bob = client(users[0]), client(users[1])
    conv = conversation(*users[:2])

    stored = alice.send(bob.user, "hello, Bob \N{WAVING HAND SIGN}")
    assert (stored["conv"], stored["seq"], stored["class"]) == (conv, 1, "d1")
    assert stored["generation"] == alice.hello["generation"]
    assert not stored.get("dup")

    message = bob.expect("message")
    assert message["conv"] == conv
    assert message["seq"] == 1
    assert message["from"] == alice.user
    assert message["device"] == alice.device
    assert message["kind"] == "text"
    assert message["body"] == "hello, Bob \N{WAVING HAND SIGN}"
    assert message["time"] == stored["time"]
    assert message["n"] == 1


def test_the_authors_id_goes_to_the_authors_devices_only(client, users):
    alice, tablet, bob = client(users[0]), client(users[0], "2"), client(users[1])
    stored = alice.send(bob.user, "whose id is it?")
    assert tablet.expect("message")["id"] == stored["id"]
    assert "id" not in bob.expect("message")


def test_the_short_form_is_a_message_too(client, users):
    alice, bob = client(users[0]), client(users[1])
    alice.say({"type": "message", "to": bob.user, "text": "typed by hand"})
    assert alice.expect("stored")["seq"] == 1
    assert bob.expect("message")["body"] == "typed by hand"


def test_many_messages_keep_one_order_for_everyone(client, users):
    alice, bob, tablet = client(users[0]), client(users[1]), client(users[1], "2")
    conv = conversation(*users[:2])
    ids = []
    for number in range(50):
        ids.append(alice.post(bob.user, f"a{number}"))
        bob.post(alice.user, f"b{number}")
    seqs = [alice.expect("stored", id=id)["seq"] for id in ids]
    assert seqs == sorted(seqs), "one sender's messages keep their order"

    def complete(device, count):
        while len(device.messages(conv)) < count:
            device.waiting.append(device.receive())
        return [(message["seq"], message["body"]) for message in device.messages(conv)]

    # Each author hears the other; the second device hears both.
    everything = complete(tablet, 100)
    assert [seq for seq, _ in everything] == list(range(1, 101)), "dense, and in order"
    assert complete(alice, 50) == [pair for pair in everything if pair[1].startswith("b")]
    assert complete(bob, 50) == [pair for pair in everything if pair[1].startswith("a")]
    assert [body for _, body in complete(bob, 50)] == [f"a{number}" for number in range(50)]


def test_ticks_say_delivered_then_read(client, users):
    alice, bob = client(users[0]), client(users[1])
    conv = conversation(*users[:2])
    alice.send(bob.user, "one")
    alice.send(bob.user, "two")
    bob.expect("message", seq=1)
    bob.expect("message", seq=2)

    bob.beat()
    wait_for_tick(alice, conv, "delivered_all", 2)
    bob.mark(conv, read=1)
    wait_for_tick(alice, conv, "read_all", 1)
    bob.mark(conv, read=2)
    wait_for_tick(alice, conv, "read_all", 2)


def wait_for_tick(client, conv, mark, value):
    """Ticks are cumulative and may be merged: the first that reaches `value`."""
    while True:
        tick = client.expect("tick", conv=conv)
        assert tick.get(mark, 0) <= value, f"{mark} went beyond what was marked: {tick}"
        if tick.get(mark) == value:
            return tick


def test_marks_only_go_forward(client, users):
    alice, bob = client(users[0]), client(users[1])
    conv = conversation(*users[:2])
    for number in range(3):
        alice.send(bob.user, str(number))
    bob.expect("message", seq=3)
    bob.mark(conv, delivered=3, read=3)
    wait_for_tick(alice, conv, "read_all", 3)
    bob.mark(conv, read=1)
    bob.flush()
    # The next thing that happens in the conversation reaches Alice after any tick of the old mark.
    bob.send(alice.user, "still three")
    alice.expect("message", seq=4)
    later = [frame for frame in alice.waiting if frame["type"] == "tick"]
    assert all(tick.get("read_all", 3) >= 3 for tick in later), later
    assert summary(bob, conv)["read"] >= 3


def summary(client, conv):
    """A conversation as a fresh connection of the same user sees it."""
    found = [each for each in conversations(client) if each["conv"] == conv]
    assert len(found) == 1, found
    return found[0]


def conversations(client, **options):
    """What a snapshot lists, asked for by a device that is nobody else's."""
    from harness.client import Client

    with Client(client.server, client.user, "99", **options) as other:
        return other.opened["conversations"]


def test_a_second_device_gets_everything_and_what_the_first_one_reads(client, users):
    alice, phone, tablet = client(users[0]), client(users[1], "1"), client(users[1], "2")
    conv = conversation(*users[:2])
    alice.send(users[1], "for both")
    assert phone.expect("message")["body"] == tablet.expect("message")["body"] == "for both"

    phone.mark(conv, read=1)
    assert tablet.expect("mark", conv=conv)["read"] == 1

    phone.send(users[0], "from the phone")
    own = tablet.expect("message", seq=2)
    assert (own["from"], own["device"], own["body"]) == (users[1], "1", "from the phone")
    phone.hears_nothing_of("message", seq=2)


def test_unread_counts_fall_when_read_and_when_answered(client, users):
    alice, bob = client(users[0]), client(users[1])
    conv = conversation(*users[:2])
    for number in range(5):
        alice.send(bob.user, str(number))
    bob.expect("message", seq=5)
    assert summary(bob, conv)["unread"] == 5
    assert summary(alice, conv)["unread"] == 0, "one's own messages are not unread"

    bob.mark(conv, read=3)
    bob.flush()
    wait_until(lambda: summary(bob, conv)["unread"] == 2, "two are unread")

    bob.send(alice.user, "an answer says that all was read")
    wait_until(lambda: summary(bob, conv)["unread"] == 0, "nothing is unread")
    assert summary(alice, conv)["unread"] == 1


def test_a_reaction_takes_a_seq_and_does_not_count_as_unread(client, users):
    alice, bob = client(users[0]), client(users[1])
    conv = conversation(*users[:2])
    alice.send(bob.user, "good news")
    assert alice.send(bob.user, "\N{PARTY POPPER}", kind="reaction", target_seq=1)["seq"] == 2
    message = bob.expect("message", seq=2)
    assert (message["kind"], message["target_seq"]) == ("reaction", 1)
    assert summary(bob, conv)["unread"] == 1


def test_an_answer_carries_what_it_answers(client, users):
    alice, bob = client(users[0]), client(users[1])
    alice.send(bob.user, "a question")
    bob.expect("message")
    bob.send(alice.user, "an answer", reply_to=1)
    assert alice.expect("message")["reply_to"] == 1


def test_typing_reaches_the_other_one_and_is_not_kept(client, users):
    alice, bob = client(users[0]), client(users[1])
    conv = conversation(*users[:2])
    alice.send(bob.user, "hello")
    bob.expect("message")
    alice.say({"type": "signal", "conv": conv, "name": "typing", "body": ""})
    signal = bob.expect("signal", conv=conv)
    assert (signal["from"], signal["name"]) == (alice.user, "typing")
    assert [message["seq"] for message in bob.pull(conv, after=0)["messages"]] == [1]


def test_someone_can_talk_to_themself(client, users):
    phone, tablet = client(users[0], "1"), client(users[0], "2")
    stored = phone.send(users[0], "a note to myself")
    assert stored["conv"] == conversation(users[0], users[0])
    assert tablet.expect("message")["body"] == "a note to myself"


# ------------------------------------------------------------------------------------------------- once


def test_the_same_id_again_is_answered_with_the_first_seq(client, users):
    alice, bob = client(users[0]), client(users[1])
    id = message_id()
    first = alice.send(bob.user, "only once", id=id)
    again = alice.send(bob.user, "only once", id=id)
    assert again["dup"] is True
    assert (again["seq"], again["time"], again["conv"]) == (first["seq"], first["time"], first["conv"])
    assert alice.send(bob.user, "next")["seq"] == 2
    bob.expect("message", seq=2)
    assert [message["seq"] for message in bob.messages(first["conv"])] == [1, 2]


def test_the_same_id_twice_in_flight_gets_one_seq(client, users):
    alice, bob = client(users[0]), client(users[1])
    ids = [message_id() for _ in range(20)]
    for id in ids:
        alice.post(bob.user, "twice", id=id)
        alice.post(bob.user, "twice", id=id)
    for expected, id in enumerate(ids, 1):
        answers = [alice.expect("stored", id=id) for _ in range(2)]
        assert [answer["seq"] for answer in answers] == [expected, expected]
        assert sorted(bool(answer.get("dup")) for answer in answers) == [False, True]


def test_the_same_id_with_another_body_is_a_conflict(client, users):
    alice, bob = client(users[0]), client(users[1])
    id = message_id()
    alice.send(bob.user, "this", id=id)
    with pytest.raises(Refused) as refused:
        alice.send(bob.user, "that", id=id)
    assert refused.value.code == "id_conflict"
    assert refused.value.frame["retryable"] is False
    assert alice.send(bob.user, "the session goes on")["seq"] == 2


def test_the_same_id_is_another_message_on_another_device_and_in_another_conversation(client, users):
    phone, tablet = client(users[0], "1"), client(users[0], "2")
    id = message_id()
    assert phone.send(users[1], "one", id=id)["seq"] == 1
    assert tablet.send(users[1], "two", id=id)["seq"] == 2
    assert not phone.send(users[2], "one", id=id).get("dup")


def test_an_id_in_base64url_is_the_same_id(client, users):
    import base64
    import uuid

    alice = client(users[0])
    id = message_id()
    first = alice.send(users[1], "same bytes", id=id)
    short = base64.urlsafe_b64encode(uuid.UUID(id).bytes).rstrip(b"=").decode()
    alice.say({"type": "send", "id": short, "to": users[1], "kind": "text", "body": "same bytes"})
    again = alice.expect("stored")
    assert (again["seq"], again.get("dup")) == (first["seq"], True)


# -------------------------------------------------------------------------------------- away and back again


def test_someone_offline_finds_everything_in_a_snapshot(client, users):
    alice = client(users[0])
    conv = conversation(*users[:2])
    for number in range(3):
        alice.send(users[1], f"while you were away {number}")
    bob = client(users[1])
    assert bob.opened["result"] == "snapshot"
    (listed,) = [each for each in bob.opened["conversations"] if each["conv"] == conv]
    assert (listed["head"], listed["unread"]) == (3, 3)
    assert listed["last"]["body"] == "while you were away 2"
    page = bob.pull(conv, after=0)
    assert [message["seq"] for message in page["messages"]] == [1, 2, 3]


def test_a_short_absence_is_answered_by_replay(client, users):
    alice, bob = client(users[0]), client(users[1])
    conv = conversation(*users[:2])
    alice.send(bob.user, "seen")
    seen = bob.expect("message")
    bob.flush()
    bob.cut()
    for number in range(3):
        alice.send(users[1], f"missed {number}")

    back = client(users[1], changes_after=seen["change"])
    assert back.opened["result"] == "replay"
    back.expect("message", seq=4)
    assert [(m["seq"], m["body"]) for m in back.messages(conv)] == [(seq, f"missed {seq - 2}") for seq in (2, 3, 4)]


def test_a_client_that_missed_nothing_is_told_so(client, users):
    alice, bob = client(users[0]), client(users[1])
    alice.send(bob.user, "seen")
    seen = bob.expect("message")
    bob.flush()
    bob.cut()
    back = client(users[1], changes_after=seen["change"])
    assert back.opened["result"] == "replay"
    back.hears_nothing_of("message")


def test_a_resume_ticket_opens_without_a_token(client, users):
    alice, bob = client(users[0]), client(users[1])
    ticket = bob.opened["ticket"]
    bob.cut()
    back = client(users[1], open=False)
    opened = back.open(ticket=ticket)
    assert (opened["user"], opened["device"]) == (users[1], "1")
    alice.send(users[1], "are you there?")
    back.expect("message")


def test_a_long_absence_is_never_a_silent_gap(client, users):
    """More was missed than a tail holds: whatever the answer is, everything can be had from it."""
    alice, bob = client(users[0]), client(users[1])
    alice.send(bob.user, "seen")
    seen = bob.expect("message")
    bob.flush()
    bob.cut()
    count = 1500
    for start in range(0, count, 50):
        ids = [alice.post(users[1], str(number)) for number in range(start, start + 50)]
        for id in ids:
            alice.expect("stored", id=id)

    back = client(users[1], changes_after=seen["change"])
    conv = conversation(*users[:2])
    have = {1: "seen"}
    if back.opened["result"] == "replay":
        back.expect("message", seq=count + 1)
        have |= {message["seq"]: message["body"] for message in back.messages(conv)}
    else:
        assert back.opened["result"] in ("delta", "snapshot")
        (listed,) = [each for each in back.opened["conversations"] if each["conv"] == conv]
        assert listed["head"] == count + 1
        while len(have) < count + 1:
            page = back.pull(conv, after=max(have), limit=100)
            have |= {message["seq"]: message["body"] for message in page["messages"]}
    assert have == {1: "seen"} | {number + 2: str(number) for number in range(count)}


def test_a_newer_connection_of_the_same_device_supersedes_the_older(client, users):
    alice, older = client(users[0]), client(users[1])
    newer = client(users[1])
    assert older.closed() == 4210
    alice.send(users[1], "to the newer one")
    newer.expect("message")


def test_a_token_on_the_upgrade_is_enough(client, users):
    alice = client(users[0], bearer=True)
    assert alice.opened["user"] == users[0]


def test_a_living_connection_takes_a_new_token(client, shared_server, users):
    alice = client(users[0])
    alice.say({"type": "auth", "token": shared_server.token(users[0])})
    assert alice.expect("auth")["deadline_ms"] > 0
    assert alice.send(users[1], "still here")["seq"] == 1


def test_a_living_connection_does_not_take_somebody_elses_token(client, shared_server, users):
    alice = client(users[0])
    alice.say({"type": "auth", "token": shared_server.token(users[1])})
    assert alice.expect("error")["code"] == "unauthorized"


def test_changes_are_listed_without_reconnecting(client, users):
    alice, bob = client(users[0]), client(users[1])
    alice.send(bob.user, "one")
    first = bob.expect("message")
    bob.say({"type": "changes", "after": first["change"]})
    nothing = bob.expect("changes")
    assert nothing["list"] == []
    alice.send(bob.user, "two")
    bob.expect("message", seq=2)
    bob.say({"type": "changes", "after": first["change"]})
    (changed,) = bob.expect("changes")["list"]
    assert (changed["conv"], changed["head"]) == (conversation(*users[:2]), 2)


# ---------------------------------------------------------------------------------------------- history


def test_history_is_read_by_cursor_in_both_directions(client, users):
    alice = client(users[0])
    conv = conversation(*users[:2])
    for number in range(1, 26):
        alice.send(users[1], str(number))

    bob = client(users[1])
    forward, cursor = [], 0
    while True:
        page = bob.pull(conv, after=cursor, limit=10)
        forward += [message["seq"] for message in page["messages"]]
        assert page["first_seq"] == 1
        assert page["head"] == 25
        if not page["more"]:
            break
        cursor = page["cursor"]
    assert forward == list(range(1, 26))

    page = bob.pull(conv, before=None, limit=10)
    backward = [message["seq"] for message in page["messages"]]
    while page["more"]:
        page = bob.pull(conv, before=page["cursor"], limit=10)
        backward += [message["seq"] for message in page["messages"]]
    assert sorted(backward, reverse=True) == list(range(25, 0, -1))
    assert len(backward) == 25
    assert backward[:10] == list(range(25, 15, -1)), "the newest first"


def test_a_page_is_never_longer_than_a_hundred(client, users):
    alice = client(users[0])
    conv = conversation(*users[:2])
    ids = [alice.post(users[1], str(number)) for number in range(120)]
    for id in ids:
        alice.expect("stored", id=id)
    page = alice.pull(conv, after=0, limit=100_000)
    assert [message["seq"] for message in page["messages"]] == list(range(1, 101))
    assert page["more"] is True


def test_one_reads_ones_own_writes(client, users):
    alice = client(users[0])
    conv = conversation(*users[:2])
    for number in range(1, 30):
        stored = alice.send(users[1], str(number))
        page = alice.pull(conv, after=stored["seq"] - 1, min_seq=stored["seq"])
        assert [message["body"] for message in page["messages"]] == [str(number)]


def test_a_read_that_asks_for_the_future_is_told_so(client, users):
    alice = client(users[0])
    conv = conversation(*users[:2])
    alice.send(users[1], "one")
    with pytest.raises(Refused) as refused:
        alice.pull(conv, after=0, min_seq=1000)
    assert refused.value.code == "behind"
    assert refused.value.frame["retryable"] is True


# ------------------------------------------------------------------------------------------------- REST


def test_messages_and_history_without_a_socket(shared_server, client, users):
    token, conv = shared_server.token(users[0]), conversation(*users[:2])
    bob = client(users[1])
    id = message_id()
    body = {"id": id, "to": users[1], "kind": "text", "body": "over REST"}
    stored = shared_server.request("POST", "/v1/messages", body=body, token=token)
    assert stored.status in (200, 201), stored.body
    assert (stored.json()["seq"], stored.json()["conv"]) == (1, conv)
    again = shared_server.request("POST", "/v1/messages", body=body, token=token)
    assert (again.json()["seq"], again.json()["dup"]) == (1, True)
    assert bob.expect("message")["body"] == "over REST"

    for number in range(2, 6):
        bob.send(users[0], str(number))
    page = shared_server.request("GET", f"/v1/conversations/{conv}/messages?after=0&limit=3", token=token)
    assert page.status == 200, page.body
    assert [message["seq"] for message in page.json()["messages"]] == [1, 2, 3]
    assert page.json()["more"] is True
    page = shared_server.request(
        "GET", f"/v1/conversations/{conv}/messages?after={page.json()['cursor']}&limit=3", token=token
    )
    assert [message["seq"] for message in page.json()["messages"]] == [4, 5]
    page = shared_server.request("GET", f"/v1/conversations/{conv}/messages?before=5&limit=2", token=token)
    assert [message["seq"] for message in page.json()["messages"]] == [4, 3]

    listed = shared_server.request("GET", "/v1/conversations", token=token)
    assert listed.status == 200, listed.body
    (one,) = listed.json()["list"]
    assert (one["conv"], one["head"]) == (conv, 5)


def test_the_conversation_list_is_paged_the_newest_first(shared_server, client, users):
    alice, token = client(users[0]), shared_server.token(users[0])
    for other in users[1:8]:
        alice.send(other, "hello")
    names, path = [], "/v1/conversations?limit=3"
    while path:
        answer = shared_server.request("GET", path, token=token)
        assert answer.status == 200, answer.body
        names += [each["conv"] for each in answer.json()["list"]]
        cursor = answer.json().get("cursor")
        path = f"/v1/conversations?limit=3&cursor={cursor}" if cursor else None
    assert names == [conversation(users[0], other) for other in reversed(users[1:8])]


def test_errors_over_rest_are_problem_documents(shared_server, users):
    answer = shared_server.request("GET", "/v1/conversations")
    assert answer.status == 401
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.json()["status"] == 401
    answer = shared_server.request("GET", "/v1/nothing-of-the-kind", token=shared_server.token(users[0]))
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("application/problem+json")


# ----------------------------------------------------------------------------------------- the end of a day


def test_draining_moves_clients_and_exits_cleanly(make_server, users):
    from harness.client import Client

    server = make_server().start()
    with Client(server, users[0]) as alice:
        alice.send(users[1], "before the restart")
        server.terminate()
        move = alice.expect("move")
        assert move["deadline_ms"] > 0
        assert "spread_ms" in move
        assert 4000 <= alice.closed() < 4100 or alice.seen[-1]["type"] == "move"
    assert server.wait() == 0, server.output()

    server.start()
    with Client(server, users[1]) as bob:
        assert bob.pull(conversation(*users[:2]), after=0)["messages"][0]["body"] == "before the restart"


def test_what_was_acknowledged_is_there_after_kill_9(make_server, users):
    from harness.client import Client

    server = make_server().start()
    id = message_id()
    with Client(server, users[0]) as alice:
        for number in range(20):
            alice.send(users[1], str(number))
        last = alice.send(users[1], "the last one", id=id)
    server.kill()
    server.start()
    with Client(server, users[0]) as alice, Client(server, users[1]) as bob:
        page = bob.pull(conversation(*users[:2]), after=0)
        assert [message["seq"] for message in page["messages"]] == list(range(1, 22))
        again = alice.send(users[1], "the last one", id=id)
        assert (again["seq"], again.get("dup")) == (last["seq"], True), "once, across a restart"
        assert alice.send(users[1], "and on")["seq"] == 22
        assert bob.expect("message")["seq"] == 22


def test_another_number_of_shards_at_the_next_start_changes_nothing(make_server, users):
    from harness.client import Client

    server = make_server(shards=1).start()
    heads = {}
    for shards in (1, 3, 2, 1):
        if server.shards != shards:
            server.terminate()
            assert server.wait() == 0
            server.shards = shards
            server.start()
        with Client(server, users[0]) as alice:
            for other in users[1:6]:
                seq = alice.send(other, f"with {shards} shards")["seq"]
                assert seq == heads.get(other, 0) + 1
                heads[other] = seq
    with Client(server, users[3]) as someone:
        page = someone.pull(conversation(users[0], users[3]), after=0)
        assert [message["body"] for message in page["messages"]] == [f"with {n} shards" for n in (1, 3, 2, 1)]


@pytest.mark.parametrize("count, size", [(1200, 10), (400, 60_000)], ids=["unacknowledged", "bytes"])
def test_slow_clients_lag_and_lose_nothing(make_server, users, count, size):
    """A client that stops reading is told that it lags, pulls, and has everything (P12).

    It lags for what it has not acknowledged, as little as that is; and for what waits in the server, as few as those are.
    """
    from harness.client import Client

    server = make_server().start()
    with Client(server, users[0]) as alice, Client(server, users[1]) as slow, Client(server, users[2]) as carol:
        # The large ones fill the kernel's buffers and the server's bound many times over.
        conv, body = conversation(*users[:2]), "x" * size
        for start in range(0, count, 40):
            ids = [alice.post(users[1], body) for _ in range(start, start + 40)]
            for id in ids:
                alice.expect("stored", id=id)
        assert carol.send(users[0], "nobody else notices")["seq"] == 1
        have, lags = 0, False
        while have < count and not lags:
            frame = slow.receive()
            if frame["type"] == "message" and frame["seq"] == have + 1:
                have += 1
            elif frame["type"] == "lagging":
                assert frame["conv"] == conv
                lags = True
        assert lags, "everything was pushed, however much of it waited"
        while have < count:
            page = slow.pull(conv, after=have, limit=100)
            seqs = [message["seq"] for message in page["messages"]]
            assert seqs == list(range(have + 1, have + 1 + len(seqs))) and seqs
            have = seqs[-1]
