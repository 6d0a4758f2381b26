"""Copies the job store and the blobs to a folder and back. Knows no HTTP and no Celery."""
