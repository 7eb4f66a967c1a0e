"""Samplers, steps and guidance scales compared: the grid, its sounds, tables, plots and page."""
