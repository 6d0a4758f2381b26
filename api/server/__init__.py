"""uvicorn's connection: limits on slow clients and on what is read ahead. Knows no route."""
