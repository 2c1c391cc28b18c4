"""Commands out of documents, run as a reader would, in a network and a directory of their own.

In a Markdown file, a block fenced as

    ```sh               is run to its end, which must be a success;
    ```sh serves        is started, asked until it is ready, and stopped when the document ends;
    ```sh by-hand: WHY  is not run, and says why.

All blocks of one document are run in order, in one shell.
"""

import re
import shlex
import subprocess

import pytest

from . import places

_BLOCK = re.compile(r"^```sh(?: +([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document):
    """(marking, commands) of each block of shell in the document."""
    return [(match[1] or "", match[2]) for match in _BLOCK.finditer(document.read_text())]


def script(document):
    """The document's commands as one script."""
    lines = [
        "set -euo pipefail",
        "ip link set lo up",
        f"export PATH={shlex.quote(str(places.TARGET / 'release'))}:$PATH",
        f"export CARGO_TARGET_DIR={shlex.quote(str(places.TARGET))}",
        # The reader stands in the repository; here the commands run beside it, so that nothing is left in it.
        f"cargo() {{ command cargo \"$1\" --quiet --manifest-path {places.REPOSITORY}/Cargo.toml \"${{@:2}}\"; }}",
        "ready() { for _ in $(seq 2400); do curl -sf http://127.0.0.1:8801/health/ready >/dev/null && return; sleep 0.1;"
        " done; echo 'not ready'; cat served.log; return 1; }",
    ]
    for marking, commands in blocks(document):
        if marking == "":
            lines += ["set -x", commands.rstrip(), "{ set +x; } 2>/dev/null"]
        elif marking == "serves":
            lines += [f"({commands.strip()}) >served.log 2>&1 &", "ready"]
        else:
            assert marking.startswith("by-hand: "), f"{document}: what does `sh {marking}` mean?"
    return "\n".join(lines) + "\n"


def run(document, directory):
    """Runs the document's commands; the test fails with their output if one fails."""
    # A network in which the documented ports are free, and processes that end with the shell that began them.
    namespaces = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
    probe = subprocess.run([*namespaces, "true"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("a network namespace needs root, run ./test e2e as root")
    done = subprocess.run(
        [*namespaces, "bash", "-c", script(document)],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
