"""Metrics: pure functions of embeddings, posteriors and waveforms.

frechet, kernel, prdc         distances between two sets of embeddings
classification, similarity    what a classifier, or a text, has to do with each sound
audio_checks                  silence, clipping, loudness, repeated clips
confidence                    how sure each number is
reconstruction                distances between two waveforms
"""
