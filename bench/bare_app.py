"""`python -m bench.bare_app PORT`: an ASGI application that only answers, as the limit for the API.

It runs under the same uvicorn, event loop and parser, with uvicorn's own protocol. Each answer has
the size of a job.
"""

import sys

import uvicorn
from starlette.types import Receive, Scope, Send

BODY = b"x" * 1200


async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - of ASGI
    """Answer any request."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
    )
