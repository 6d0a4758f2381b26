"""The files of the page as they are served: bundled, compressed, versioned. It knows no route."""
