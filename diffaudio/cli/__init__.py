"""The `diffaudio` command: one module per subcommand, with shared options in `options`."""
