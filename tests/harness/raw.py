"""Bytes on a socket: for everything that no decent client would send."""

import base64
import os
import socket
import struct

# Ends a test that hangs.
PATIENCE_SECONDS = 20.0

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0


def frame(payload=b"", opcode=TEXT, *, fin=True, rsv=0, mask=b"\x11\x22\x33\x44", length=None, length_bytes=None):
    """A WebSocket frame, as wrong as asked for.

    `length` is declared instead of the real one; `length_bytes` (1, 2 or 8) forces how it is written;
    `mask=None` leaves the mask out.
    """
    payload = payload.encode() if isinstance(payload, str) else payload
    length = len(payload) if length is None else length
    length_bytes = length_bytes or (1 if length < 126 else 2 if length < 65536 else 8)
    masked = 0x80 if mask is not None else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if length_bytes == 1:
        head += bytes([masked | length])
    elif length_bytes == 2:
        head += bytes([masked | 126]) + struct.pack(">H", length)
    else:
        head += bytes([masked | 127]) + struct.pack(">Q", length)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def upgrade(path="/ws", *, host="127.0.0.1", **headers):
    """The request of a handshake; a header given as `None` is left out, as a list is repeated."""
    fields = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "ringway.v1.json",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"GET {path} HTTP/1.1"]
    for name, value in fields.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        lines += [f"{name}: {each}" for each in values]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Closed(Exception):
    """The peer ended the stream before what was waited for had come."""

    def __init__(self, received):
        super().__init__(f"closed after {received[:200]!r}")
        self.received = received


class Raw:
    """A TCP connection whose bytes are in the test's hand."""

    def __init__(self, server, *, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            # Before the connection, for the window is announced with it. Small segments, for by their size
            # the kernel of the server decides how much it buffers.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data):
        self.socket.sendall(data)
        return self

    def send_slowly(self, data, pause_seconds):
        """One byte at a time, until the peer has had enough; says how many went out."""
        for at, byte in enumerate(data):
            try:
                self.socket.sendall(bytes([byte]))
                self.socket.settimeout(pause_seconds)
                try:
                    if self.socket.recv(1, socket.MSG_PEEK) == b"":
                        return at + 1
                except TimeoutError:
                    pass
            except OSError:
                return at
        return len(data)

    def fill(self, least):
        while len(self.buffer) < least:
            try:
                self.socket.settimeout(PATIENCE_SECONDS)
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise Closed(self.buffer)
            self.buffer += data

    def take(self, count):
        self.fill(count)
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def until(self, mark):
        while mark not in self.buffer:
            self.fill(len(self.buffer) + 1)
        taken, self.buffer = self.buffer.split(mark, 1)
        return taken

    def response(self):
        """Status, headers (names in lower case) and body of an HTTP answer."""
        head = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:])}
        body = self.take(int(headers.get("content-length", 0)))
        return status, headers, body

    def handshake(self, path="/ws", **headers):
        self.send(upgrade(path, **headers))
        status, answered, body = self.response()
        assert status == 101, (status, body)
        return answered

    def frame(self):
        """(opcode, payload) of the next frame from the server, which must be whole and unmasked."""
        first, second = self.take(2)
        assert not second & 0x80, "a server must not mask"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.take(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.take(8))
        return first & 0x0F, self.take(length)

    def close_code(self):
        """The code with which the server closes this WebSocket; 1006 if it went without a word."""
        try:
            while True:
                opcode, payload = self.frame()
                if opcode == CLOSE:
                    return struct.unpack(">H", payload[:2])[0] if payload else 1005
        except Closed:
            return 1006

    def ended(self):
        """Waits until the peer has ended the stream; what came before is returned."""
        try:
            while True:
                self.fill(len(self.buffer) + 1)
        except Closed as closed:
            return closed.received

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
