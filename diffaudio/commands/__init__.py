"""The subcommands of `diffaudio`, a module each; `run(arguments)` is called by `diffaudio.cli`."""
