"""Audio, video and image files: decoding, writing, streaming in chunks, spectrogram plots."""
