"""The process that decoder.py starts: restricts itself, then decodes files from a connection.

The protocol consists of frames of `multiprocessing.connection`, each a length and so many bytes:

    process   {"filtered": bool}, once: the process is ready; whether system calls are filtered
    parent    a request, the file in several frames, and an empty frame
    process   {"size": [width, height], "mode": "RGB" or "RGBA", "warnings": [sentence],
              "reduction": see `codec.REDUCTION`}, and, if requested, one frame of pixels (row by
              row);
              or {"refusal": name of the error, "message": its message, "reason": its reason}

The keys of a request, all optional: `pixels` (send them), `background`, `any_size`, `keep_alpha`,
`mask`, `inspected` and `min_side_px` (as in `codec.decode`), `refuse_black` (refuse a black mask),
`max_width` (scale a wider picture to so many px), `square` (side and way to resize).
"""

import json
import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from core import errors
from core.images import codec, sandbox


def serve(
    connection: Connection, memory_bytes: int, cpu_seconds: int, threads: bool = False
) -> None:
    """Restrict this process, then answer requests until the parent closes the connection."""
    sandbox.close_descriptors(connection.fileno())
    is_filtered = sandbox.restrict_process(memory_bytes, cpu_seconds, threads=threads)
    with suppress(EOFError, OSError):
        _send_header(connection, {"filtered": is_filtered})
        while True:
            request = json.loads(connection.recv_bytes())
            data = b"".join(iter(connection.recv_bytes, b""))
            # A job reads a file that was inspected before.
            doubts: list[str] | None = None if request.get("pixels") else []
            try:
                picture = _decode(request, data, doubts)
            except errors.BadInput as error:
                refusal = {
                    "refusal": type(error).__name__,
                    "message": error.message,
                    "reason": error.reason,
                }
                _send_header(connection, refusal)
                continue
            header = {
                "size": picture.size,
                "mode": picture.mode,
                "warnings": doubts or [],
                "reduction": picture.info.get(codec.REDUCTION, 1),
            }
            _send_header(connection, header)
            if request.get("pixels"):
                connection.send_bytes(picture.tobytes())


def _decode(request: dict[str, Any], data: bytes, doubts: list[str] | None) -> Image.Image:
    if "square" in request:
        return codec.decode_square(data, *request["square"])
    picture = codec.decode(
        data,
        request.get("background", "auto"),
        any_size=request.get("any_size", False),
        keep_alpha=request.get("keep_alpha", False),
        mask=request.get("mask", False),
        inspected=request.get("inspected", False),
        min_side_px=request.get("min_side_px"),
        doubts=doubts,
    )
    if request.get("refuse_black"):
        codec.check_mask(picture)
    max_width = request.get("max_width") or picture.width
    return picture if picture.width <= max_width else codec.scale_to_width(picture, max_width)


def _send_header(connection: Connection, header: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(header).encode())


def main() -> None:
    """Serve on the socket at standard input.

    Arguments: memory in bytes, CPU time in seconds, and `threads` if threads are allowed.
    """
    memory_bytes, cpu_seconds = map(int, sys.argv[1:3])
    serve(Connection(os.dup(0)), memory_bytes, cpu_seconds, "threads" in sys.argv[3:])


if __name__ == "__main__":
    main()
