"""Metrics: pure functions of embeddings, logits and waveforms.

frechet, kernel, prdc   distances between two sets of embeddings
classification          accuracy, recognition, divergences and inception score of a classifier's logits
similarity              cosines between sounds and texts, and between takes
audio_checks            silence, clipping, loudness, repeated recordings
confidence              95 % intervals
reconstruction          distances between two waveforms
"""
