"""Turns a request body into a created job or batch. Knows no route."""
