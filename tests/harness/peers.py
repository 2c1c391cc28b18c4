"""Other people's servers: a nats-server, and an ejabberd with its archive in a PostgreSQL; and what breaks their promises.

Each on ports and in a directory of its own, started by its program and stopped by its pid.
"""

import asyncio
import glob
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from . import places
from .threaded import ThreadedServer

CONFIGURATIONS = places.REPOSITORY / "loadgen" / "peers"
# The newest that is known to work; `bench peers` takes whatever is the newest.
NATS = "github.com/nats-io/nats-server/v2@v2.15.2"


def nats_server():
    """The program, installed once."""
    programs = places.TOOLS / "go" / "bin"
    if not (programs / "nats-server").exists():
        go = shutil.which("go")
        if not go:
            pytest.skip("Go is missing, install it from https://go.dev/dl: nats-server comes as a Go module")
        go_path = str(programs.parent)
        environment = {**os.environ, "GOPATH": go_path, "GOBIN": str(programs), "GOFLAGS": "-modcacherw"}
        done = subprocess.run([go, "install", NATS], env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    return str(programs / "nats-server")


class Peer:
    """A process that is asked until it answers."""

    def __init__(self, directory):
        self.directory = directory
        self.port = places.free_port()
        self.log = directory / "peer.log"

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}"

    def _start(self, command, **options):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, **options
            )
        places.wait_until(self._answers, f"{command[0]} answers", 90)

    def _answers(self):
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Nats(Peer):
    """A nats-server."""

    def __init__(self, directory, without_streams=False):
        super().__init__(directory)
        self.own_port, self.monitoring = places.free_port(), places.free_port()
        self.without_streams = without_streams

    def start(self):
        configuration = self.directory / "nats.conf"
        text = (CONFIGURATIONS / "nats.conf").read_text()
        configuration.write_text(text.split("jetstream {")[0] if self.without_streams else text)
        flags = ["-p", self.own_port, "-m", self.monitoring, "-sd", self.directory / "nats-data"]
        environment = {**os.environ, "WEBSOCKET_PORT": str(self.port)}
        self._start([nats_server(), "-c", configuration, *flags], env=environment)
        return self

    def make_stream(self, **configuration):
        """A stream, as somebody wants it who was there before."""
        text = json.dumps(configuration)
        with socket.create_connection(("127.0.0.1", self.own_port), timeout=20) as client:
            create = f"$JS.API.STREAM.CREATE.{configuration['name']}"
            client.sendall(f"CONNECT {{}}\r\nSUB made 1\r\nPUB {create} made {len(text)}\r\n{text}\r\n".encode())
            said = b""
            while b'"config"' not in said:
                assert b"error" not in said, said
                said += client.recv(65_536)

    def kept(self):
        """Messages in all its streams, as it says itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitoring}/jsz", timeout=10) as answer:
            return json.load(answer).get("messages", 0)


class Ejabberd(Peer):
    """An ejabberd of one domain, `localhost`, whose users are there already: their numbers, with the password `secret`."""

    def __init__(self, directory, postgres):
        super().__init__(directory)
        self.postgres = postgres

    def start(self):
        programs = glob.glob("/usr/lib/*/ejabberd-*/ebin")
        if not programs or not glob.glob("/usr/lib/erlang/lib/p1_pgsql-*"):
            pytest.skip("ejabberd is missing, install Debian's ejabberd and erlang-p1-pgsql")
        schema = "/usr/share/ejabberd/sql/pg.sql"
        self.postgres.sql("create role ejabberd login; create database ejabberd owner ejabberd", database="postgres")
        self.postgres.sql(file=schema, user="ejabberd", database="ejabberd")
        self.sql("insert into users (username, password) select n::text, 'secret' from generate_series(1, 1000) n")
        configuration = self.directory / "ejabberd.yml"
        configuration.write_text(
            f"define_macro:\n  WEB_PORT: {self.port}\n  SQL_PORT: {self.postgres.port}\n"
            f"include_config_file: {CONFIGURATIONS / 'ejabberd.yml'}\n"
        )
        environment = {
            **os.environ,
            "EJABBERD_CONFIG_PATH": str(configuration),
            "EJABBERD_LOG_PATH": str(self.directory / "ejabberd.log"),
            "ERL_LIBS": os.path.dirname(os.path.dirname(programs[0])),
            "ERL_CRASH_DUMP_BYTES": "0",
            "HOME": str(self.directory),
        }
        # Without a name it is a node alone, and no daemon is left behind that would know its name.
        self._start(["erl", "-noinput", "-mnesia", "dir", f'"{self.directory}/spool"', "-s", "ejabberd"], env=environment)
        return self

    def sql(self, command):
        return self.postgres.sql(command, user="ejabberd", database="ejabberd")

    def kept(self):
        """Messages in its archive: one for each of the two who have it."""
        return int(self.sql("select count(*) from archive"))

    def _answers(self):
        if not super()._answers():
            return False
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10)
        except urllib.error.HTTPError:
            # There is no page there, and somebody who says so.
            return True
        except OSError:
            return False
        return True


class Mischief(ThreadedServer):
    """Stands between users and their server, and misbehaves with every so manieth frame that has a message for them.

    `lose`: it never gets there. `double`: it gets there twice. `swap`: the next one gets there first.
    """

    options = {"select_subprotocol": lambda _, asked: asked[0] if asked else None}

    def __init__(self, server, kind, marker, every=10):
        super().__init__()
        self.server, self.kind, self.marker, self.every = server, kind, marker, every
        self.messages = self.harmed = 0

    async def _serve(self, user):
        asked = user.request.headers.get("Sec-WebSocket-Protocol")
        options = {"subprotocols": [asked] if asked else None, "compression": None, "proxy": None}
        async with connect(self.server.url + user.request.path, **options) as server:
            there = asyncio.ensure_future(self._copy(user, server, lambda frame: [frame]))
            held = []
            await self._copy(server, user, lambda frame: self._harm(frame, held))
            there.cancel()

    @staticmethod
    async def _copy(source, sink, change):
        try:
            async for frame in source:
                for each in change(frame):
                    await sink.send(each)
            await sink.close()
        except ConnectionClosed:
            pass

    def _harm(self, frame, held):
        text = frame if isinstance(frame, str) else frame.decode()
        if self.marker not in text:
            return [frame]
        if held:
            return [frame, held.pop()]
        self.messages += 1
        if self.messages % self.every:
            return [frame]
        self.harmed += 1
        match self.kind:
            case "lose":
                return []
            case "double":
                return [frame, frame]
            case "swap":
                held.append(frame)
                return []
