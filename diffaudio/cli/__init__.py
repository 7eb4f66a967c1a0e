"""The `diffaudio` command: one module a subcommand, and what they share in `options`."""
