"""An MCP server as a thin client of an Impasto service. Uses impasto.Client alone."""
