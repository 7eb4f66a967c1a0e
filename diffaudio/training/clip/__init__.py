"""Training a small CLIP: its pictures, the model it starts from, its losses and its held-out measures."""
