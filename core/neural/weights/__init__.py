"""The files of networks: where they come from, their formats, and the verified cache. Knows no training."""
