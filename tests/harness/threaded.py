"""A WebSocket server in a thread of the test's own."""

import asyncio
import threading

from websockets.asyncio.server import serve

from . import places


class ThreadedServer:
    """Serves `_serve` on a free port for as long as the `with` lasts; `options` are those of `websockets`."""

    options = {}

    def __init__(self):
        self.port = places.free_port()
        self.loop = asyncio.new_event_loop()
        self.started = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._run(),))

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}"

    def __enter__(self):
        self.thread.start()
        assert self.started.wait(20)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.ending.set_result, None)
        self.thread.join()

    async def _run(self):
        self.ending = self.loop.create_future()
        async with serve(self._serve, "127.0.0.1", self.port, compression=None, **self.options):
            self.started.set()
            await self.ending
