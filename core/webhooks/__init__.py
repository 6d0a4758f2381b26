"""Webhooks: allowed URLs, the event body and its signature. Knows no network and no store."""
