"""What a newcomer meets: the commands, what they print, and how they fail."""

import os
import re
import socket
import subprocess
import sys

import pytest

from harness import places
from harness.client import Client, conversation
from harness.places import wait_until


def ringway(*arguments, **options):
    command = [str(places.binary("ringway")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def printed(server):
    """What `dev` printed; it does so when it is ready, and we may have been faster."""
    wait_until(lambda: server.output().count(" chat --url ") == 2, "both commands are printed")
    return server.output()


def test_dev_says_what_it_is_doing_and_what_to_type_next(make_server):
    server = make_server().start()
    said = printed(server)
    for fact in (server.address, server.internal, str(server.data), "d1", "ringway chat"):
        assert fact.lower() in said.lower(), said
    assert re.search(r"2 shards|shards\W+2", said), said
    assert re.search(r"io_uring", said), said


def chat_commands(server):
    """The two commands that `dev` printed, with this build's binary in place of the name."""
    lines = [line.strip() for line in printed(server).splitlines() if " chat --url " in line]
    return [re.sub(r"^.*?\bchat ", f"{places.binary('ringway')} chat ", line) for line in lines]


class Terminal:
    """`ringway chat` with its input and output in the test's hand."""

    def __init__(self, command, directory, name):
        self.log = f"{directory}/{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, shell=True, cwd=directory, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )

    def type(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def shows(self, text):
        def there():
            with open(self.log, errors="replace") as log:
                return text in log.read()

        wait_until(there, f"the terminal shows {text!r}")

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def test_two_people_chat_in_two_terminals_and_a_killed_server_loses_nothing(make_server, directory):
    server = make_server().start()
    alice, bob = (Terminal(command, directory, name) for command, name in zip(chat_commands(server), ("alice", "bob")))
    try:
        alice.type("good morning, Bob")
        bob.shows("good morning, Bob")
        bob.type("good morning, Alice")
        alice.shows("good morning, Alice")
        server.kill()
        alice.type("written while the server was gone")
        server.start()
        bob.shows("written while the server was gone")
    finally:
        alice.close()
        bob.close()
    again = Terminal(chat_commands(server)[1], directory, "bob-again")
    try:
        again.shows("good morning, Bob")
        again.shows("written while the server was gone")
    finally:
        again.close()


def test_the_tokens_that_dev_prints_are_good(make_server, users):
    server = make_server().start()
    tokens = re.findall(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+", printed(server))
    assert len(set(tokens)) >= 2
    for token in set(tokens):
        assert server.request("GET", "/v1/conversations", token=token).status == 200


def one_sentence(done):
    """What a command that failed said: no backtrace, no panic, and not a page of it."""
    assert done.returncode not in (0, 101), done.stdout + done.stderr
    said = (done.stdout + done.stderr).strip()
    assert "panicked" not in said and "RUST_BACKTRACE" not in said, said
    return said


def test_a_port_that_is_taken(directory):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = os.environ | {"RINGWAY_SERVER_INTERNAL": f"127.0.0.1:{places.free_port()}"}
        said = one_sentence(ringway("dev", "--listen", address, "--data", f"{directory}/data", env=environment))
        assert address in said
        assert re.search(r"in use|taken", said), said


def test_the_internal_port_that_is_taken(directory):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = os.environ | {"RINGWAY_SERVER_INTERNAL": address}
        listen = f"127.0.0.1:{places.free_port()}"
        said = one_sentence(ringway("dev", "--listen", listen, "--data", f"{directory}/data", env=environment))
        assert address in said


def test_a_directory_that_cannot_be_written(directory):
    """A file where the directory should be stops root as well."""
    with open(f"{directory}/file", "w"):
        pass
    environment = os.environ | {"RINGWAY_SERVER_INTERNAL": f"127.0.0.1:{places.free_port()}"}
    listen = f"127.0.0.1:{places.free_port()}"
    said = one_sentence(ringway("dev", "--listen", listen, "--data", f"{directory}/file/data", env=environment))
    assert f"{directory}/file/data" in said


# Installs a seccomp filter that refuses io_uring_setup (425), as container runtimes do, and runs a command.
WITHOUT_IO_URING = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
program = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(len(program), ctypes.addressof(code))), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_io_uring_that_is_refused(directory):
    environment = os.environ | {"RINGWAY_SERVER_INTERNAL": f"127.0.0.1:{places.free_port()}"}
    listen = f"127.0.0.1:{places.free_port()}"
    command = [sys.executable, "-c", WITHOUT_IO_URING, str(places.binary("ringway"))]
    command += ["dev", "--listen", listen, "--data", f"{directory}/data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert "io_uring" in one_sentence(done)


def test_a_class_that_the_backend_does_not_give_is_refused(directory):
    """P2: better no server than one that promises less than was asked for."""
    with open(f"{directory}/ringway.toml", "w") as file:
        file.write(f'[storage]\ndata = "{directory}/data"\nrequire_class = "d2"\n')
    said = one_sentence(ringway("serve", "--config", f"{directory}/ringway.toml"))
    assert "d2" in said.lower()


def test_token_prints_only_the_token(make_server):
    server = make_server().start()
    done = ringway("token", "--data", server.data, "--user", "5")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", done.stdout), done.stdout
    with Client(server, 5, token=done.stdout.strip()) as client:
        assert client.opened["user"] == "5"


def test_version_has_build_facts():
    done = ringway("version")
    assert done.returncode == 0
    assert done.stdout.startswith("ringway ")
    assert len(done.stdout.splitlines()) > 1 or "(" in done.stdout


def test_the_default_configuration_is_valid_and_an_unknown_key_is_not(directory):
    default = ringway("config", "default")
    assert default.returncode == 0
    path = f"{directory}/ringway.toml"
    with open(path, "w") as file:
        file.write(default.stdout)
    assert ringway("config", "check", "--config", path).returncode == 0
    with open(path, "w") as file:
        file.write("[server]\nlisen = \"127.0.0.1:8800\"\n")
    said = one_sentence(ringway("config", "check", "--config", path))
    assert "server.listen" in said, "a suggestion"


def test_the_configuration_reference_is_the_generated_one():
    done = ringway("config", "doc")
    assert done.stdout == (places.REPOSITORY / "docs" / "configuration.md").read_text()


def test_serve_on_a_configuration_of_ones_own(make_server, directory, users):
    """`serve` with an own key, and tokens for it from `ringway token --config`."""
    import base64

    with open(f"{directory}/key", "w") as file:
        file.write(base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode())
    config = f"{directory}/ringway.toml"
    with open(config, "w") as file:
        file.write(
            f'[storage]\ndata = "{directory}/data"\n\n[[auth.keys]]\nkid = "k1"\nalgorithm = "HS256"\nfile = "key"\n'
        )
    server = make_server(config=config).start()
    with Client(server, users[0]) as alice, Client(server, users[1]) as bob:
        alice.send(users[1], "served")
        assert bob.expect("message")["conv"] == conversation(*users[:2])


def test_echo_is_off_unless_asked_for(make_server, directory):
    from harness.raw import Raw, frame, upgrade

    for echo in (False, True):
        with Raw(make_server(echo=echo, data=f"{directory}/{echo}").start()) as raw:
            raw.send(upgrade("/echo", Sec_WebSocket_Protocol=None))
            status, _, _ = raw.response()
            assert status == (101 if echo else 404)
            if echo:
                raw.send(frame(b"hello"))
                assert raw.frame() == (1, b"hello")


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_the_internal_listener_answers(make_server, path):
    from harness.server import request

    server = make_server().start()
    assert request(server.internal, "GET", path).status == 200
    assert request(server.internal, "GET", "/v1/conversations").status == 404
