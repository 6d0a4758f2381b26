"""Files to pictures and back: formats, limits, and decoding untrusted files in a sandbox. Knows no tensors."""
