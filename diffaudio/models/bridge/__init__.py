"""Bridges: mapping a text embedding to an image embedding, the kind that the U-Net was trained on."""
