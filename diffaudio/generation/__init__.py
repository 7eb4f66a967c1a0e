"""From prompts to sound files, in batches."""
