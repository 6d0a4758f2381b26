"""The Celery worker: hears the doorbell, claims a job, paints it, publishes it. Meets the API only in core."""
