"""The PostgreSQL backend with a real PostgreSQL: fenced, killed, and back.

`CRASHES=20 ./test e2e -- -k test_postgres` kills as often as one likes, the database and the server.
"""

import os
import time

import pytest
from websockets.exceptions import ConnectionClosed

from harness.client import Client, Refused, conversation, message_id
from harness.load import Chatter, check, whole_history
from harness.places import wait_until

CRASHES = int(os.environ.get("CRASHES", "3"))


def test_what_was_acknowledged_is_in_the_database(on_postgres, users):
    server = on_postgres().start()
    conv = conversation(*users[:2])
    with Client(server, users[0]) as alice, Client(server, users[1]) as bob:
        for number in range(20):
            alice.send(users[1], str(number))
        assert bob.expect("message", seq=20)["body"] == "19"
    server.kill()
    server.start()
    with Client(server, users[1]) as bob:
        assert [message["seq"] for message in whole_history(bob, conv)] == list(range(1, 21))
        assert bob.send(users[0], "and on")["seq"] == 21


@pytest.mark.timeout(240 + 60 * CRASHES)
def test_postgresql_killed_under_load(on_postgres, postgres, users):
    """P10: no acks without the store, everything else goes on, and it comes back by itself."""
    server = on_postgres().start()
    records = []
    for _ in range(CRASHES):
        chatter = Chatter(server, int(users[0]))
        time.sleep(1.0)
        # Connected before: a session goes on without the store, a new one has its list to read first.
        with Client(server, users[8]) as someone:
            postgres.kill()
            records.append(chatter.join())
            assert server.alive()
            id = message_id()
            with pytest.raises(Refused) as refused:
                someone.send(users[9], "is anybody there?", id=id)
            assert refused.value.code == "unavailable"
            assert refused.value.frame["retryable"] is True
            someone.flush()
            postgres.start()

            def stored():
                try:
                    # The same one: later ones would be answered `retry` until it has come again (P5).
                    return someone.send(users[9], "is anybody there?", id=id)
                except Refused as refused:
                    assert refused.frame["retryable"] is True
                    return None

            wait_until(stored, "the store is back", 60)
    acked, unknown = check(server, records)
    print(f"{CRASHES} crashes of PostgreSQL: {acked} acknowledged and there, {unknown} unknown and answered once")
    assert acked > 10 * CRASHES


@pytest.mark.timeout(240 + 60 * CRASHES)
def test_kill_9_of_the_server_under_load(on_postgres, users):
    server = on_postgres()
    records = []
    for _ in range(CRASHES):
        server.start()
        chatter = Chatter(server, int(users[0]))
        time.sleep(1.0)
        server.kill()
        records.append(chatter.join())
    server.start()
    acked, _ = check(server, records)
    assert acked > 0


def test_of_two_servers_on_one_database_the_older_is_fenced(on_postgres, users):
    """It may still believe that it owns everything; the store does not believe it."""
    older = on_postgres("older").start()
    with Client(older, users[0]) as alice:
        assert alice.send(users[1], "before")["seq"] == 1
        newer = on_postgres("newer", "take_over = true\n").start()
        try:
            stored = alice.send(users[1], "to the older one")
        except (Refused, ConnectionClosed):
            stored = None
        assert stored is None, "the older one must not acknowledge any more"
    assert older.wait() != 0, "and it says by its exit code that it was fenced"
    with Client(newer, users[0]) as alice:
        assert alice.send(users[1], "to the newer one")["seq"] == 2
        assert len(whole_history(alice, conversation(*users[:2]))) == 2
