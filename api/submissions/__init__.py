"""From a request body to a created job. Knows no route."""
