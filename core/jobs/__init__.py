"""The job models, and the store on Redis that changes them. Knows no HTTP, Celery or tensors."""
