"""Fixtures that all end-to-end tests share."""

import shutil

import pytest

from harness.client import Client
from harness.server import Server, temporary_directory

_not_run = []


def pytest_runtest_logreport(report):
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _not_run.append((report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_terminal_summary(terminalreporter):
    """What could not run says so where nobody overlooks it."""
    for name, reason in _not_run:
        terminalreporter.write_line(f"!!! {name} did not run: {reason}", red=True, bold=True)


@pytest.fixture
def directory(request):
    """A directory that is gone after the test, unless the test failed."""
    with temporary_directory(request.node.name.split("[")[0][:40]) as path:
        yield path


@pytest.fixture
def make_server(directory):
    """Makes servers that are stopped after the test, and looked over for panics."""
    servers = []

    def make(**options):
        servers.append(Server(options.pop("directory", directory), **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
    for server in servers:
        server.assert_unharmed()


@pytest.fixture
def server(make_server):
    """A running server with an empty store."""
    return make_server().start()


@pytest.fixture(scope="module")
def shared_server(request):
    """One running server for all tests of a file that do not stop it; they use users of their own."""
    with temporary_directory(request.module.__name__) as path:
        server = Server(path, echo=True).start()
        yield server
        server.stop()
        server.assert_unharmed()


_next_user = iter(range(1_000_000, 1 << 62, 10))


@pytest.fixture
def users():
    """A number nobody else uses; it and the nine above it are this test's users."""
    first = next(_next_user)
    return [str(first + offset) for offset in range(10)]


@pytest.fixture
def client(shared_server):
    """Makes clients of the shared server, and cuts them off after the test."""
    clients = []

    def make(user, device="1", **options):
        clients.append(Client(options.pop("server", shared_server), user, device, **options))
        return clients[-1]

    yield make
    for each in clients:
        each.cut()


def pytest_sessionstart(session):
    """Fails at once, with one sentence, where the binary is missing."""
    from harness import places

    if not session.config.option.collectonly:
        places.binary("ringway")


@pytest.fixture(scope="session")
def node():
    """The Node interpreter and where its modules are."""
    from harness import places

    interpreter = shutil.which("node")
    if not interpreter or not (places.TOOLS / "node" / "node_modules").is_dir():
        pytest.skip("Node or its modules are missing, install Debian's nodejs and npm and run ./test e2e")
    return interpreter, places.TOOLS / "node"
