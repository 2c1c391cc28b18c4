"""Nothing acknowledged is ever lost: kill -9, power cut, full disk, damage.

`CRASHES=20 ./test e2e -- -k kill_9` crashes as often as one likes, `SEGMENT_REMOVALS=10 ./test e2e -- -k segments`
runs for as long as that takes; `SEED=...` repeats the moments.
"""

import errno
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from harness.client import Client, Refused, conversation
from harness.load import Chatter, Loadgen, check, verify, whole_history
from harness.places import wait_until
from harness.server import Server

CRASHES = int(os.environ.get("CRASHES", "3"))
SEGMENT_REMOVALS = int(os.environ.get("SEGMENT_REMOVALS", "2"))
SEED = os.environ.get("SEED") or str(random.randrange(1 << 32))


@pytest.fixture
def moments():
    """When things go wrong: random, and repeatable by the seed that is printed when a test fails."""
    print(f"replay with SEED={SEED}")
    return random.Random(SEED)


# ---------------------------------------------------------------------------------------- kill -9, power cut


@pytest.mark.timeout(240 + 60 * CRASHES)
def test_kill_9_under_load(make_server, directory, moments):
    server = make_server()
    files = []
    for crash in range(CRASHES):
        server.start()
        files.append(Path(directory) / f"acks-{crash}.log")
        load = Loadgen(server, files[-1])
        try:
            load.wait_for(moments.randrange(500, 5000))
            server.kill()
        finally:
            load.stop()
        server.start()
        said = verify(server, files[-1])
        print(f"crash {crash + 1} of {CRASHES}: {said.strip().splitlines()[-1]}")
        server.kill()
    server.start()
    for file in files:
        verify(server, file)


@pytest.mark.timeout(240 + 60 * CRASHES)
def test_kill_9_as_a_client_that_is_not_ours_sees_it(make_server, moments, users):
    server = make_server()
    records = []
    for _ in range(CRASHES):
        server.start()
        chatter = Chatter(server, int(users[0]))
        time.sleep(moments.uniform(0.5, 2.0))
        server.kill()
        records.append(chatter.join())
    server.start()
    acked, unknown = check(server, records)
    print(f"{CRASHES} crashes: {acked} acknowledged and there, {unknown} unknown and answered once")
    assert acked > 100 * CRASHES


@pytest.mark.timeout(600)
def test_power_cut(make_server, make_disk, directory, moments, users):
    """The disk as it is at one moment, with everything lost that only caches had."""
    disk = make_disk("disk", size_mb=1024)
    server = make_server(data=disk.data).start()
    load = Loadgen(server, Path(directory) / "acks.log")
    chatter = Chatter(server, int(users[0]))
    try:
        load.wait_for(moments.randrange(2000, 6000))
        server.pause()
        # What was acknowledged before this moment is on the disk, or P1 is broken.
        at_the_cut = chatter.record.copy()
        acks = Path(directory) / "acks-at-the-cut.log"
        written = load.acks.read_bytes()
        acks.write_bytes(written[: written.rfind(b"\n") + 1])
        copy = make_disk("copy", like=disk)
        server.resume()
        server.kill()
    finally:
        load.stop()
        chatter.join()
    after = Server(directory, data=copy.data)
    try:
        after.start()
        print(verify(after, acks))
        check(after, [at_the_cut])
    finally:
        after.stop()
        after.assert_unharmed()


@pytest.mark.timeout(600)
def test_both_checkers_see_a_loss(make_server, directory, users):
    """A store from a moment earlier, with more acknowledged since: if this passed, the tests above would mean nothing."""
    server = make_server().start()
    load = Loadgen(server, Path(directory) / "acks.log")
    chatter = Chatter(server, int(users[0]))
    try:
        load.wait_for(1000)
        server.pause()
        shutil.copytree(server.data, f"{directory}/earlier")
        server.resume()
        load.wait_for(load.acknowledged() + 1000)
        server.kill()
    finally:
        load.stop()
        record = chatter.join()
    shutil.rmtree(server.data)
    shutil.move(f"{directory}/earlier", server.data)
    server.start()
    with pytest.raises(AssertionError, match="missing"):
        verify(server, load.acks)
    with pytest.raises(AssertionError):
        check(server, [record])


def test_a_second_crash_while_recovering(make_server, moments, users):
    server = make_server().start()
    chatter = Chatter(server, int(users[0]))
    time.sleep(1.5)
    server.kill()
    record = chatter.join()
    for _ in range(5):
        server.spawn()
        time.sleep(moments.uniform(0.0, 0.3))
        server.kill()
    server.start()
    check(server, [record])


@pytest.mark.parametrize("signals", (1, 2))
def test_sigterm_while_recovering_ends_the_start(make_server, users, signals):
    """Recovery hangs for as long as the test likes: what it reads is a pipe into which nobody writes."""
    server = make_server().start()
    chatter = Chatter(server, int(users[0]))
    time.sleep(1.0)
    server.terminate()
    assert server.wait() == 0, server.output()
    record = chatter.join()
    mark = server.data / "views" / "MARK"
    aside = mark.with_name("aside")
    mark.rename(aside)
    os.mkfifo(mark)
    server.spawn()
    pipe = wait_until(lambda: writer_of(mark), "recovery reads the mark of the views")
    for _ in range(signals):
        server.terminate()
    assert server.wait() == 0, server.output()
    assert "before everything was recovered" in server.output()
    os.close(pipe)
    mark.unlink()
    aside.rename(mark)
    server.start()
    check(server, [record])


def writer_of(pipe):
    """A descriptor that writes to a pipe, once somebody reads from it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        assert error.errno == errno.ENXIO, error
        return None


def test_sigterm_at_any_moment_of_a_start_loses_nothing(make_server, moments, users):
    server = make_server().start()
    chatter = Chatter(server, int(users[0]))
    time.sleep(1.5)
    server.kill()
    record = chatter.join()
    for _ in range(8):
        server.spawn()
        time.sleep(moments.uniform(0.05, 0.4))
        server.terminate()
        # Before there is any start to end, the signal does what it does to every process.
        assert server.wait() in (0, -signal.SIGTERM), server.output()
    server.start()
    check(server, [record])


def test_a_pause_changes_nothing(make_server, users):
    """SIGSTOP and back, as a debugger or a starved machine does it."""
    server = make_server().start()
    with Client(server, users[0]) as alice, Client(server, users[1]) as bob:
        alice.send(users[1], "before")
        for round in range(3):
            server.pause()
            id = alice.post(users[1], f"into the pause {round}")
            time.sleep(1.0)
            server.resume()
            assert alice.expect("stored", id=id)["seq"] == round + 2
        bob.expect("message", seq=4)
        assert [message["seq"] for message in bob.messages(conversation(*users[:2]))] == [1, 2, 3, 4]


@pytest.mark.timeout(600)
def test_graceful_restarts_under_load(make_server, users):
    server = make_server(settings={"server.drain_s": 1})
    records = []
    for _ in range(3):
        server.start()
        chatter = Chatter(server, int(users[0]))
        time.sleep(1.0)
        server.terminate()
        assert server.wait() == 0, server.output()
        records.append(chatter.join())
    server.start()
    check(server, records)


@pytest.mark.timeout(300 + 120 * SEGMENT_REMOVALS)
def test_old_segments_go_and_no_message_goes_with_them(make_server, directory, moments):
    """The disk does not grow without end, and what the removed segments held is in the views."""
    server = make_server().start()
    acks = Path(directory) / "acks.log"
    load = Loadgen(server, acks, rate=6000, seconds=120 * SEGMENT_REMOVALS)

    def lowest_segment():
        assert load.process.poll() is None, load.log.read_text()
        return min(int(path.stem) for path in (server.data / "journal").glob("*.seg"))

    try:
        first = wait_until(lowest_segment, "there is a segment")
        wait_until(
            lambda: lowest_segment() >= first + SEGMENT_REMOVALS,
            f"{SEGMENT_REMOVALS} segments are gone",
            120 * SEGMENT_REMOVALS,
        )
        time.sleep(moments.uniform(0.0, 2.0))
        server.kill()
    finally:
        load.stop()
    server.start()
    print(verify(server, acks))


# -------------------------------------------------------------------------------------------- a full disk


@pytest.mark.timeout(600)
def test_a_full_disk_is_said_and_survived(make_server, make_disk, users):
    disk = make_disk("disk", size_mb=512)
    server = make_server(data=disk.data).start()
    conv, body = conversation(*users[:2]), "x" * 60_000
    with Client(server, users[0]) as alice, Client(server, users[1]) as bob:
        filler = disk.fill()
        acked, stuck = 0, None
        # What the journal has reserved may still take a while to fill.
        for _ in range(8000):
            id = alice.post(users[1], body)
            try:
                acked = alice.expect("stored", id=id, seconds=60)["seq"]
                # Bob keeps up: who lags gets no typing.
                bob.expect("message", seq=acked)
                bob.beat()
            except Refused as refused:
                assert refused.code == "unavailable"
                assert refused.frame["retryable"] is True
                assert refused.frame["after_ms"] > 0
                stuck = id
                break
        assert stuck, "the disk never filled"

        # What was sent behind it may not overtake it (P5).
        with pytest.raises(Refused) as behind:
            alice.send(users[1], "behind the one that failed")
        assert behind.value.code == "retry"

        # Connections, reading and typing go on.
        assert whole_history(alice, conv)[-1]["seq"] == acked
        alice.say({"type": "signal", "conv": conv, "name": "typing", "body": ""})
        bob.expect("signal", conv=conv)

        filler.unlink()

        def stored_now():
            try:
                return alice.send(users[1], body, id=stuck)
            except Refused as refused:
                assert refused.code in ("unavailable", "retry")
                return None

        stored = wait_until(stored_now, "there is room again", 60)
        assert stored["seq"] == acked + 1, "nothing in between, and nothing lost"
        assert alice.send(users[1], "goes on")["seq"] == acked + 2
    server.kill()
    server.start()
    with Client(server, users[0]) as alice:
        assert [message["seq"] for message in whole_history(alice, conv)] == list(range(1, acked + 3))


# ----------------------------------------------------------------------------- what must not be started on


def refusal(server):
    """What a server that must not start says; it ends by itself, with another code than 0."""
    server.spawn()
    code = server.wait()
    said = server.output()
    assert code != 0, said
    assert "panicked" not in said
    return said


def filled(server, users, count=200):
    """A server that has been running and has kept something worth losing."""
    server.start()
    with Client(server, users[0]) as alice:
        for start in range(0, count, 20):
            ids = [alice.post(users[1], f"worth keeping {number}") for number in range(start, start + 20)]
            for id in ids:
                alice.expect("stored", id=id)
    return server


def stopped_cleanly(server):
    server.terminate()
    assert server.wait() == 0, server.output()
    return server


def test_two_processes_on_one_directory(make_server, users):
    first = filled(make_server(), users)
    said = refusal(make_server(data=first.data))
    assert str(first.process.pid) in said, "who has it"
    with Client(first, users[0]) as alice:
        assert alice.send(users[1], "the first goes on")["seq"] == 201


def test_a_deleted_views_directory_is_not_an_empty_history(make_server, users):
    server = stopped_cleanly(filled(make_server(), users))
    shutil.rmtree(server.data / "views")
    assert "views" in refusal(server)


def test_views_of_another_time_are_refused(make_server, users, directory):
    """Views that are older than the journal's checkpoint, as a careless restore leaves them."""
    server = stopped_cleanly(filled(make_server(), users))
    shutil.copytree(server.data / "views", f"{directory}/old-views")
    stopped_cleanly(filled(server, users))
    shutil.rmtree(server.data / "views")
    shutil.copytree(f"{directory}/old-views", server.data / "views")
    assert "views" in refusal(server)


def test_damaged_views_are_refused_or_said_and_never_served(make_server, users):
    server = stopped_cleanly(filled(make_server(), users, count=2000))
    files = sorted(
        (path for path in (server.data / "views").rglob("*") if path.is_file() and path.stat().st_size > 4096),
        key=lambda path: -path.stat().st_size,
    )
    assert files, "nothing to damage"
    for path in files[:3]:
        with open(path, "r+b") as file:
            size = path.stat().st_size
            for at in range(size // 8, size, size // 8):
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 0x10]))
    server.spawn()
    wait_until(lambda: not server.alive() or server.ready(), "the server is ready or has given up", 60)
    if not server.alive():
        assert server.wait() != 0
        return
    try:
        with Client(server, users[0]) as alice:
            have = whole_history(alice, conversation(*users[:2]))
    except Refused as refused:
        assert refused.code == "damaged"
        return
    # The bits that flipped were nobody's message; then all of it must be right.
    assert [message["body"] for message in have] == [f"worth keeping {number}" for number in range(2000)]


def flip_a_bit(path, needle):
    """Flips one bit where `needle` first stands in the file; says at which offset."""
    data = bytearray(path.read_bytes())
    at = data.index(needle)
    data[at] ^= 0x01
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data[at : at + 1])
    return at


def segment_with(server, needle):
    for path in sorted((server.data / "journal").glob("*.seg")):
        if needle in path.read_bytes():
            return path
    raise AssertionError(f"{needle} is in no segment")


def test_one_flipped_bit_in_the_journal_is_refused_and_named(make_server, users):
    server = filled(make_server(), users)
    server.kill()
    segment = segment_with(server, b"worth keeping 17")
    flip_a_bit(segment, b"worth keeping 17")
    said = refusal(server)
    assert segment.name in said
    assert re.search(r"damage|checksum", said), said


def test_storage_check_says_what_is_damaged(make_server, users):
    import subprocess

    from harness.places import binary

    server = filled(make_server(), users)
    server.kill()

    def checked():
        command = [binary("ringway"), "storage", "check", "--data", server.data]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)

    sound = checked()
    assert sound.returncode == 0, sound.stdout + sound.stderr
    segment = segment_with(server, b"worth keeping 17")
    flip_a_bit(segment, b"worth keeping 17")
    damaged = checked()
    assert damaged.returncode != 0
    assert segment.name in damaged.stdout + damaged.stderr


def test_a_torn_tail_is_cut(make_server, users):
    """Half a write behind the last one: nobody was told of it, so it is not there."""
    server = filled(make_server(), users)
    server.kill()
    segment = sorted((server.data / "journal").glob("*.seg"))[-1]
    data = segment.read_bytes()
    end = (len(data.rstrip(b"\0")) + 4095) // 4096 * 4096
    with open(segment, "r+b") as file:
        file.seek(end)
        file.write(random.Random(1).randbytes(3000))
    server.start()
    with Client(server, users[0]) as alice:
        have = whole_history(alice, conversation(*users[:2]))
        assert [message["body"] for message in have] == [f"worth keeping {number}" for number in range(200)]


def test_backup_and_restore_renew_the_generation(make_server, users, directory):
    """Loss becomes visible (P16): after a restore clients are told that this is another history."""
    import subprocess

    from harness.places import binary

    def storage(*arguments):
        command = [binary("ringway"), "storage", *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    server = stopped_cleanly(filled(make_server(), users))
    storage("backup", "--data", server.data, "--to", f"{directory}/backup")
    server.start()
    with Client(server, users[0]) as alice:
        generation = alice.hello["generation"]
        change = alice.opened["change"]
        for number in range(20):
            alice.send(users[1], f"after the backup {number}")
        change = alice.flush() and change
    stopped_cleanly(server)
    shutil.rmtree(server.data)
    storage("restore", "--from", f"{directory}/backup", "--data", server.data)
    server.start()
    with Client(server, users[0]) as alice:
        assert alice.hello["generation"] != generation
        assert len(whole_history(alice, conversation(*users[:2]))) == 200
        assert alice.send(users[1], "a new tail")["generation"] == alice.hello["generation"]
