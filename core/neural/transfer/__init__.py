"""Neural style transfer after Gatys, Ecker and Bethge (2015).

It reads no weight files: it takes a loaded network.
"""
