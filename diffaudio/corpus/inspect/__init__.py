"""What is in a corpus: numbers, plots and a page."""
