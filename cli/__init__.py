"""The third way in: the command `impasto`. Meets api and worker only in core."""
