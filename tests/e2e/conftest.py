"""Fixtures of the end-to-end tests: bystanders, counters of refusals, disks."""

import contextlib
import os
from pathlib import Path

import pytest

from harness.client import Client
from harness.disk import Disk
from harness.load import Run
from harness.places import wait_until
from harness.postgres import Postgres
from harness.server import temporary_directory


@pytest.fixture(scope="module")
def bystanders(shared_server):
    """Two people who have been talking since before anything bad began."""
    with Client(shared_server, 11) as one, Client(shared_server, 12) as other:
        yield one, other


@pytest.fixture
def others_go_on(bystanders):
    """After the test, on the same two connections, a message still goes through."""
    yield
    one, other = bystanders
    stored = one.send(other.user, "still here?")
    assert other.expect("message", seq=stored["seq"])["body"] == "still here?"
    other.beat()
    one.beat()


@pytest.fixture
def refused(shared_server):
    """What happens inside must move the counter of this refusal."""

    @contextlib.contextmanager
    def counted(counter=None, *, close=None, error=None):
        if close:
            name = f'ringway_closes_total{{code="{close}"}}'
        elif error:
            name = f'ringway_errors_total{{code="{error}"}}'
        else:
            name = f"ringway_{counter}_total"
        before = shared_server.metrics()
        assert name in before, f"there is no counter {name}"
        yield
        wait_until(lambda: shared_server.metrics()[name] > before[name], f"{name} grows")

    return counted


@pytest.fixture
def make_disk(directory):
    """Makes disks that are unmounted after the test; servers on them are stopped before."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root, run ./test e2e as root")
    disks = []

    def make(name="disk", size_mb=None, like=None):
        disks.append(like.copy_as_after_a_power_cut(directory, name) if like else Disk(directory, name, size_mb=size_mb))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


@pytest.fixture
def loadgen(directory):
    """Starts commands, and kills what still runs when the test is over."""
    runs = []

    def start(command, *arguments):
        runs.append(Run(directory, command, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


@pytest.fixture
def postgres():
    with temporary_directory("postgres") as path:
        store = Postgres(path)
        try:
            yield store.start()
        finally:
            store.stop()


@pytest.fixture
def on_postgres(postgres, make_server, directory):
    """Makes servers on that database, with a key for tokens of their own."""
    (Path(directory) / "key").write_text("A" * 43)

    def make(name="one", more=""):
        config = Path(directory) / f"{name}.toml"
        config.write_text(
            f'[storage]\nbackend = "postgres"\npostgres = "{postgres.url}"\ndata = "{directory}/data-{name}"\n{more}\n'
            '[[auth.keys]]\nkid = "k"\nalgorithm = "HS256"\nfile = "key"\n'
        )
        return make_server(config=config)

    return make
