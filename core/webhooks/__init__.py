"""Webhooks: which URLs are allowed, what is sent, and its signature. Knows no network and no store."""
