"""Data sets of training pictures, and the configuration of a training. Knows no tensors."""
