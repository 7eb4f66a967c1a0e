"""The mathematics between noise and latents: objectives, guidance and samplers."""
