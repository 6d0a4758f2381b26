"""The command line `impasto`. Shares code with api and worker only through core."""
