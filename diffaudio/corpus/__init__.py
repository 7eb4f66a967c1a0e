"""From media files to what training reads: prepare, encode, dataset, and the store that all three share."""
