"""A TCP proxy that injects faults: it resets, swallows, delays or cuts what passes through it."""

import asyncio
import random
import socket
import struct
import threading
from contextlib import suppress
from typing import Literal

from cli.local_service import free_port

Fault = Literal["none", "reset", "swallow", "slow", "cut", "refuse"]
FAULTS: tuple[Fault, ...] = ("reset", "swallow", "slow", "cut", "refuse")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards its own port to the target port on this host. A context manager."""

    def __init__(self, seed: int, target: int = 0) -> None:
        self.port, self.target = free_port(), target
        self.fault: Fault = "none"
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def inject(self, fault: Fault) -> None:
        """Apply this fault from now on. `reset` and `refuse` also reset open connections."""
        self.fault = fault
        if fault in ("reset", "refuse"):
            self._loop.call_soon_threadsafe(self._reset_all)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self.port)
        )
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._reset_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault in ("reset", "refuse"):
            _reset(writer)
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(
                "127.0.0.1", self.target
            )
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, upstream_writer}
        try:
            await asyncio.gather(
                self._pump(reader, upstream_writer), self._pump(upstream_reader, writer)
            )
        finally:
            for side in (writer, upstream_writer):
                self._writers.discard(side)
                side.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                # Nothing arrives and nothing is refused; the data goes through after the fault.
                while self.fault == "swallow":
                    await asyncio.sleep(0.05)
                if self.fault == "slow":
                    await asyncio.sleep(0.3)
                if self.fault == "cut" and self._rng.random() < 0.3:
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    _reset(writer)
                    return
                writer.write(data)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
        )
    writer.transport.abort()
