"""The code that the API, the workers and the command line share.

Only core/neural/ imports torch. The packages api, worker and cli import core, but not each other.
core uses no web framework and defines no Celery task. `lint-imports` (pyproject.toml) checks this.
"""
