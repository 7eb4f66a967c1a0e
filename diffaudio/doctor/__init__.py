"""What is missing or slow on a machine; `diffaudio doctor` shows it."""
