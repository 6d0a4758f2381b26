"""Files on disk: blobs by digest, checkpoints, atomic writes. Knows neither jobs nor pictures."""
