"""ASGI middleware: authentication, host checks, headers, access log. It knows no route."""
