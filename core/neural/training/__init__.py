"""Trains a VGG classifier on a data set, on one device or several. Knows no style transfer."""
