"""A server that breaks its promises on purpose: every check of the load generator must be seen to fail."""

import base64
import json
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Response

from .threaded import ThreadedServer

SUBPROTOCOL = "ringway.v1.json"


class HostileServer(ThreadedServer):
    """Speaks as much of the protocol as the load generator needs, from memory, and misbehaves once in so many messages.

    `lose`: acknowledges, and keeps something else in its place. `double`: keeps it twice. `swap`: puts the next
    one of the same sender ahead of it. `mute`: says nothing and keeps nothing. `again`: a message that comes again gets a number of
    its own.
    """

    def __init__(self, mischief, every=10):
        super().__init__()
        self.mischief = mischief
        self.every = every
        self.harmed = 0
        self.logs = {}
        self.known = {}
        self.sockets = {}
        self.held = {}
        self.messages = 0
        self.options = {"subprotocols": [SUBPROTOCOL], "process_request": self._page}

    # --------------------------------------------------------------------------------------------- the protocol

    @staticmethod
    def _user(request):
        payload = request.headers["Authorization"].split(".")[1]
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"]

    async def _serve(self, socket):
        user = self._user(socket.request)
        self.sockets[user] = [socket, 0]
        hello = {"type": "hello", "generation": "7", "beat_ms": 30_000, "offline_ms": 60_000, "class": "d1"}
        await socket.send(json.dumps(hello))
        async for text in socket:
            frame = json.loads(text)
            match frame["type"]:
                case "open":
                    opened = {"type": "opened", "user": user, "result": "snapshot", "change": "1.1", "conversations": []}
                    await socket.send(json.dumps(opened))
                case "send":
                    await self._store(user, frame)
                case "beat":
                    await socket.send(text)
                case "pull":
                    log = self.logs.get(frame["conv"], [])
                    page = {"type": "page", "conv": frame["conv"], "messages": log[frame["after"] :], "head": len(log)}
                    await socket.send(json.dumps(page))

    def _page(self, _, request):
        path = urlsplit(request.path)
        if not path.path.startswith("/v1/conversations/"):
            return None
        after = int(parse_qs(path.query)["after"][0])
        log = self.logs.get(path.path.split("/")[3], [])
        body = json.dumps({"messages": log[after:], "more": False}).encode()
        headers = Headers({"Content-Length": str(len(body)), "Connection": "close"})
        return Response(HTTPStatus.OK, "OK", headers, body)

    # ------------------------------------------------------------------------------------------ and its mischief

    async def _store(self, user, frame):
        self.messages += 1
        harm = self.messages % self.every == 0
        known = self.known.get((user, frame["id"]))
        if known and self.mischief != "again":
            return await self._stored(user, frame, known, dup=True)
        if self.mischief == "again" and known:
            self.harmed += 1
        if harm and self.mischief == "mute":
            self.harmed += 1
            return None
        if harm and self.mischief == "lose":
            self.harmed += 1
            return await self._keep(user, frame | {"body": "something else"})
        if self.mischief == "swap":
            held = self.held.pop(user, None)
            if held:
                self.harmed += 1
                await self._keep(user, frame)
                return await self._keep(user, held)
            if harm:
                self.held[user] = frame
                return None
        await self._keep(user, frame)
        if harm and self.mischief == "double":
            self.harmed += 1
            await self._keep(user, frame, says=False)

    async def _keep(self, user, frame, says=True):
        log = self.logs.setdefault(frame["conv"], [])
        message = {"seq": len(log) + 1, "from": user, "device": "1", "time": 1, "kind": "text", "body": frame["body"]}
        message["id"] = frame["id"]
        log.append(message)
        self.known[user, frame["id"]] = message["seq"]
        if says:
            await self._stored(user, frame, message["seq"])
        _, one, other = frame["conv"].split(".")
        peer = other if one == user else one
        if peer in self.sockets:
            entry = self.sockets[peer]
            entry[1] += 1
            await entry[0].send(json.dumps({"type": "message", "conv": frame["conv"], "n": entry[1]} | message))

    async def _stored(self, user, frame, seq, dup=False):
        stored = {"type": "stored", "id": frame["id"], "conv": frame["conv"], "seq": seq, "generation": "7", "time": 1}
        await self.sockets[user][0].send(json.dumps(stored | ({"dup": True} if dup else {})))
