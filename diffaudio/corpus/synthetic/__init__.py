"""Videos from formulas: simple things that move and sound, with labels."""
