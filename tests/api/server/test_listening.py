"""The sockets of an API process."""

import asyncio
import socket

import uvicorn
import uvloop

from api.__main__ import listen

CLIENTS = 128


async def _ignore(*_: object) -> None:
    pass


def test_a_crowd_of_clients_is_accepted_within_a_few_rounds_of_the_event_loop() -> None:
    """The loop accepts one per round and socket; what waits in the kernel may give up."""
    accepted: list[asyncio.BaseTransport] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    async def run() -> int:
        listeners = listen(uvicorn.Config(_ignore, host="127.0.0.1", port=0))
        loop, rounds = asyncio.get_running_loop(), 0
        servers = [
            await loop.create_server(Protocol, sock=listener, backlog=CLIENTS)
            for listener in listeners
        ]
        address = listeners[0].getsockname()
        # The kernel accepts them while the loop does not run.
        clients = [socket.create_connection(address) for _ in range(CLIENTS)]
        while len(accepted) < CLIENTS:
            await asyncio.sleep(0)
            rounds += 1
        for transport in accepted:
            transport.close()
        for client in clients:
            client.close()
        for server in servers:
            server.close()
            await server.wait_closed()
        return rounds

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = runner.run(run())
    assert rounds <= CLIENTS / 4
