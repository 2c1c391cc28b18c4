"""What stands in front of a server: something that ends TLS, or that reads a PROXY header."""

import contextlib
import socket
import ssl
import subprocess
import threading

from . import places


class Certificates:
    """An authority of the test's own, and a certificate by it for `name`."""

    def __init__(self, directory, name):
        self.ca = directory / "ca.pem"
        self.certificate = directory / "server.pem"
        self.key = directory / "server.key"
        ca_key = directory / "ca.key"
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", self.ca, "-subj", "/CN=test authority", "-days", 2)
        request = directory / "server.csr"
        openssl("req", *new_key, "-keyout", self.key, "-out", request, "-subj", f"/CN={name}")
        extensions = directory / "extensions"
        extensions.write_text(f"subjectAltName=DNS:{name}\n")
        signed_by = ["-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", extensions]
        openssl("x509", "-req", "-in", request, "-out", self.certificate, "-days", 2, *signed_by)


def openssl(*arguments):
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class Front:
    """Listens, does `greet(socket)` with each connection, and passes the bytes of what that returns on to `server`."""

    def __init__(self, server, greet, host="127.0.0.1"):
        self.server = server
        self.greet = greet
        self.greeted = []
        self.listener = socket.create_server((host, places.free_port()), backlog=512)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._pass, args=(connection,), daemon=True).start()

    def _pass(self, connection):
        with contextlib.suppress(OSError):
            greeted, connection = self.greet(connection)
            self.greeted.append(greeted)
            behind = socket.create_connection(("127.0.0.1", self.server.port))
            back = threading.Thread(target=pump, args=(behind, connection), daemon=True)
            back.start()
            pump(connection, behind)


def pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def tls_front(server, certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    asked_for = []
    context.sni_callback = lambda _, name, __: asked_for.append(name)

    def greet(connection):
        connection = context.wrap_socket(connection, server_side=True)
        return asked_for[-1], connection

    return Front(server, greet)


def proxy_front(server):
    """Reads a PROXY header, of version 1 or 2, and remembers it."""

    def greet(connection):
        start = exactly(connection, 6)
        if start == b"PROXY ":
            while not start.endswith(b"\r\n"):
                start += exactly(connection, 1)
            return start, connection
        start += exactly(connection, 10)
        return start + exactly(connection, int.from_bytes(start[14:16], "big")), connection

    return Front(server, greet)


def exactly(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise OSError("the header is cut")
        data += piece
    return data
