"""A corpus of clips -> latents and embeddings."""
