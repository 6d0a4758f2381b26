"""Changes to uvicorn's connections: slow-client limits, backpressure. It knows no route."""
