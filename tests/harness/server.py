"""A server under test: the release binary on ports and in a directory of its own."""

import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

from . import places

class Metrics(dict):
    """Counters and gauges by their full name with labels: `name{label="value"}`."""

    @classmethod
    def parse(cls, text):
        lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        metrics = cls()
        for line in lines:
            name, value = line.rsplit(" ", 1)
            metrics[name] = float(value)
        return metrics

    def total(self, name):
        """Sum over all labels of the metric called `name`."""
        return sum(value for key, value in self.items() if key == name or key.startswith(name + "{"))

    def grown_since(self, before):
        """What is higher now than it was: name to difference."""
        return {name: value - before.get(name, 0) for name, value in self.items() if value > before.get(name, 0)}


class Response:
    """An answer over HTTP, read whole."""

    def __init__(self, raw):
        self.status = raw.status
        self.headers = raw.headers
        self.body = raw.read()

    def json(self):
        return json.loads(self.body)


class Server:
    """Starts `ringway dev` (or `serve`, when given a configuration) and stops it by its pid."""

    def __init__(self, directory, *, data=None, echo=False, shards=2, config=None, settings=None):
        """`settings` are given through the environment: `{"limits.handshake_ms": 500}`."""
        self.directory = Path(directory)
        self.data = Path(data) if data else self.directory / "data"
        self.port = places.free_port()
        self.internal = f"127.0.0.1:{places.free_port()}"
        self.shards = shards
        self.echo = echo
        self.config = config
        self.settings = settings or {}
        self.process = None
        self.log = None
        self.runs = 0

    # ------------------------------------------------------------------------------------ life and death

    def command(self):
        if self.config:
            return [str(places.binary("ringway")), "serve", "--config", str(self.config)]
        command = [str(places.binary("ringway")), "dev", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--data", str(self.data), "--shards", str(self.shards)]
        return command + (["--echo"] if self.echo else [])

    def environment(self):
        settings = {"server.internal": self.internal} | self.settings
        if self.config:
            settings["server.listen"] = self.address
        as_variables = {f"RINGWAY_{key.replace('.', '_').upper()}": str(value) for key, value in settings.items()}
        return os.environ | {"RUST_BACKTRACE": "1"} | as_variables

    def spawn(self):
        """Starts the process without waiting for it to be ready."""
        assert not self.alive(), "already running"
        self.runs += 1
        self.log = self.directory / f"server-{self.port}-{self.runs}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self.environment(),
            )
        return self

    def start(self, seconds=60.0):
        self.spawn()
        places.wait_until(self._ready_or_dead, "the server is ready", seconds)
        return self

    def _ready_or_dead(self):
        assert self.alive(), f"the server ended with {self.process.returncode}:\n{self.output()}"
        return self.ready()

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """kill -9, as the kernel or a person in a hurry would."""
        self.process.kill()
        self.process.wait()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds=60.0):
        """Exit code, once the process has ended by itself."""
        return self.process.wait(seconds)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        """Ends the process however it is; for the end of a test."""
        if self.alive():
            self.resume()
            self.kill()

    # ----------------------------------------------------------------------------------------- asking it

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        """What clients connect to."""
        return f"ws://{self.address}/ws"

    @property
    def base_url(self):
        return f"http://{self.address}"

    def output(self):
        return self.log.read_text(errors="replace") if self.log else ""

    def ready(self):
        return _answers(self.internal, "/health/ready")

    def metrics(self):
        response = request(self.internal, "GET", "/metrics")
        assert response.status == 200, response.body
        return Metrics.parse(response.body.decode())

    def request(self, method, path, *, body=None, token=None, headers=None):
        """One request over HTTP to the public port. `body` is sent as JSON."""
        headers = dict(headers or {})
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        return request(self.address, method, path, body, headers)

    def token(self, user, device="1", ttl=None):
        """A token as `ringway token` prints it."""
        command = [str(places.binary("ringway")), "token", "--user", str(user)]
        command += ["--config", str(self.config)] if self.config else ["--data", str(self.data)]
        command += ["--device", str(device)] if device is not None else []
        command += ["--ttl", ttl] if ttl else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=self.environment())
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    # -------------------------------------------------------------------------------------- what it uses

    def open_descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024

    def assert_unharmed(self):
        """For the end of a test: nothing panicked, whatever it was given."""
        if self.log:
            for log in sorted(self.directory.glob(f"server-{self.port}-*.log")):
                text = log.read_text(errors="replace")
                assert "panicked at" not in text, f"{log}:\n{text}"


def request(address, method, path, body=None, headers=None, seconds=30.0):
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=seconds)
    try:
        connection.request(method, path, body, headers or {})
        return Response(connection.getresponse())
    finally:
        connection.close()


def _answers(address, path):
    try:
        return request(address, "GET", path, seconds=5.0).status == 200
    except (OSError, http.client.HTTPException):
        return False


def temporary_directory(name):
    """A directory outside the repository, on a real file system where that can be had."""
    return tempfile.TemporaryDirectory(prefix=f"ringway-{name}-", dir=os.environ.get("RINGWAY_TEST_DIR"))
