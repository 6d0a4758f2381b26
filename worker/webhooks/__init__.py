"""Dispatches the webhooks of ended jobs. Knows no Celery, no tensors and no images."""
