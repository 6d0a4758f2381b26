"""The Celery worker: claims jobs, runs them, stores the results. Shares only core with the API."""
