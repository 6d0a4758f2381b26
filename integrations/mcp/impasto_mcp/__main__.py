"""`impasto-mcp`: serves MCP on standard input and output."""

import argparse
import sys
from pathlib import Path

from impasto import Client, errors
from impasto_mcp.folders import Folders
from impasto_mcp.server import create_server


def main() -> None:
    """Serve until standard input is closed."""
    parser = argparse.ArgumentParser(
        prog="impasto-mcp",
        description="An MCP server for the Impasto service at IMPASTO_URL (key: IMPASTO_KEY).",
    )
    parser.add_argument(
        "--folder",
        action="append",
        required=True,
        type=Path,
        help="a folder whose pictures an agent may read; repeat it for several",
    )
    parser.add_argument(
        "--output", type=Path, help="the folder for results; if missing, the first --folder"
    )
    given = parser.parse_args()
    try:
        folders = Folders(given.folder, given.output or given.folder[0])
        with Client(retry_seconds=10) as client:
            create_server(client, folders).run("stdio")
    except (OSError, errors.ImpastoError) as error:
        sys.exit(f"impasto-mcp: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
