"""Bridges: from the embedding of a text to one that the U-Net was trained on, an image's."""
