"""Media files -> a corpus of clips."""
