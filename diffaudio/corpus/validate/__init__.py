"""Is a corpus what it says it is? Rows, parts, the whole."""
