"""Network weights: where they come from, their file formats, and the verified cache.

Knows no training and no style transfer.
"""
