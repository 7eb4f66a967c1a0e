"""Compare samplers, numbers of steps and guidance scales on a prompt list, shared over any number of processes.

    accelerate launch sample/sweep.py --prompts prompts.txt --samplers ddim,heun --steps 10,25 --out sweep
    accelerate launch --num_processes 4 sample/sweep.py …

It is `diffaudio sweep`, as a script for a launcher.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; OpenMP reads it when torch is loaded

from diffaudio.cli.sweep import run
from diffaudio.errors import report_errors

if __name__ == "__main__":
    sys.exit(report_errors(lambda: run(sys.argv[1:])))
