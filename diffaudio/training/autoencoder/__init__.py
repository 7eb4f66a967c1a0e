"""What `train/autoencoder.py` is made of, beside its loop: building, fitting, objective, validation."""
