"""What a sound is generated from: texts, images and videos, and their embeddings."""
