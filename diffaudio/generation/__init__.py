"""Lists of prompts, made into files of sound in batches."""
