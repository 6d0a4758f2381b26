"""API keys: who may use the service, and with which priority. It does not depend on HTTP."""
