"""Picture files: limits, encoding, sandboxed decoding of untrusted files. Knows no tensors."""
