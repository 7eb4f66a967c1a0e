"""Sound and pictures in files: decoding, writing, long sound in pieces, spectrograms."""
