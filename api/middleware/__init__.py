"""Plain ASGI around the routes: authentication, host checks, headers, access log. Knows no route."""
