"""What a stylization is: its parameters, the presets, and the names of VGG's layers. Knows no tensors and no jobs."""
