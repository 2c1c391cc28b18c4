"""A PostgreSQL of a test's own: its own cluster, port and user, killed and started at will."""

import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess

import pytest

from . import places


class Postgres:
    """One cluster. PostgreSQL refuses to run as root, so then it runs as another user."""

    def __init__(self, directory):
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        self.programs = programs[-1] if programs else os.path.dirname(shutil.which("postgres") or "")
        if not self.programs:
            pytest.skip("PostgreSQL is missing, install Debian's postgresql")
        self.port = places.free_port()
        self.directory = directory
        self.as_user = {}
        if os.geteuid() == 0:
            somebody = pwd.getpwnam("postgres")
            os.chown(directory, somebody.pw_uid, somebody.pw_gid)
            self.as_user = {"user": somebody.pw_uid, "group": somebody.pw_gid, "extra_groups": []}
        self.process = None
        command = [f"{self.programs}/initdb", "-D", f"{directory}/cluster", "-U", "ringway", "-A", "trust", "-N"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, **self.as_user)
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def url(self):
        return f"postgres://ringway@127.0.0.1:{self.port}/postgres"

    def start(self):
        # After a kill its orphans need a moment to notice; until then it refuses to start.
        places.wait_until(self._try_to_start, "PostgreSQL answers", 60)
        return self

    def _try_to_start(self):
        if self.process is None or self.process.poll() is not None:
            settings = ["-p", self.port, "-k", self.directory, "-c", "listen_addresses=127.0.0.1"]
            command = [f"{self.programs}/postgres", "-D", f"{self.directory}/cluster", *settings]
            with open(f"{self.directory}/postgres.log", "ab") as log:
                self.process = subprocess.Popen(
                    [str(part) for part in command],
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **self.as_user,
                )
        ready = [f"{self.programs}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready).returncode == 0

    def sql(self, command=None, *, file=None, user="ringway", database="postgres"):
        """What it answers to `command`, or to those in `file`."""
        program = [f"{self.programs}/psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port)]
        # Several statements each for itself: a database cannot be made in a transaction.
        what = ["-f", file] if file else [part for each in command.split(";") for part in ("-c", each)]
        done = subprocess.run([*program, "-U", user, "-d", database, *what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def kill(self):
        """kill -9 of all its processes.

        Of the one that leads alone would not do: the others notice when they next wait for their client, and one
        that is kept busy goes on to commit, and rightly says so.
        """
        self._signal_all(signal.SIGKILL)
        self.process.wait()

    def pause(self):
        """All its processes stand still: it takes what is sent, and answers nothing."""
        self._signal_all(signal.SIGSTOP)

    def resume(self):
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number):
        leader = self.process.pid
        # Stopped first, so that it starts no further ones.
        os.kill(leader, signal.SIGSTOP)
        with open(f"/proc/{leader}/task/{leader}/children") as children:
            for child in children.read().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), number)
        os.kill(leader, number)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.resume()
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)
