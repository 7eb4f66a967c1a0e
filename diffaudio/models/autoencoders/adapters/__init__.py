"""Autoencoders of other libraries behind our interface."""
