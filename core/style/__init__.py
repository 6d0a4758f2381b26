"""The parameters of a stylization, its scales, the presets, VGG's layers, the operator's limits.

Knows no tensors and no jobs.
"""
