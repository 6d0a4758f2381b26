"""Changes to uvicorn's connections: limits for slow clients, backpressure, files. No route here."""
