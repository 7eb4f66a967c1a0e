"""Folders of sound, made into reports: embedding, measuring, backbones, round trips through autoencoders."""
