"""From media files to what training reads: prepare, encode, datasets, and the store that all of them share."""
