"""Autoencoders of other libraries, adapted to our interface."""
