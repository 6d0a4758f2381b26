"""Data sets of training pictures, and the configuration of a training run. Knows no tensors."""
