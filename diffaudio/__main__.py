"""`python -m diffaudio`, and so `accelerate launch -m diffaudio …` and `torchrun -m diffaudio …`."""

import sys

from diffaudio.cli.main import main

if __name__ == "__main__":  # worker processes import this module again
    sys.exit(main())
