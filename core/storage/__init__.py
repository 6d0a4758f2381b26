"""Files on disk: blobs by digest, checkpoints, atomic writes. Knows no jobs and no pictures."""
