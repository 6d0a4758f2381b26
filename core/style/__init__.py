"""The parameters of a stylization, the presets, and the names of VGG's layers.

Knows no tensors and no jobs.
"""
