"""The evaluation of samples that are made while training: `diffaudio evaluate` in a process of its own.

The network that measures must stay an independent judge: what trains imports nothing of it, and gets back nothing but
numbers for the log. Its own process also keeps it out of the memory of the device that trains.
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

__all__ = ["evaluate_samples"]

TIMEOUT_S = 1800.0


def evaluate_samples(
    folder: Path, *, reference: Path | None = None, labels: Path | None = None, timeout_s: float = TIMEOUT_S
) -> dict[str, float]:
    """Measure a folder of samples with the default backbone, on the CPU.

    The report and its page are written beside the folder, as FOLDER.json and FOLDER.html.

    Args:
        folder: sounds, each with a sidecar that names its prompt.
        reference: folder of recordings to compare with.
        labels: CSV of the recordings' labels.

    Returns:
        The metrics of the samples, by name. None, and a warning that says why, where it fails: a run that has trained
        for days does not end over its log.
    """
    report = folder.with_name(f"{folder.name}.json")
    arguments = ["evaluate", str(folder), "--output", str(report), "--device", "cpu"]
    if reference is not None:
        arguments += ["--reference", str(reference), "--no-real-row"]
    if labels is not None:
        arguments += ["--labels", str(labels)]
    # this process' own path, since a script in a repository need not have the package installed
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from diffaudio.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,  # Ctrl-C is for the run, which finishes its step
        )
    except subprocess.TimeoutExpired:
        reason = f"it took more than {timeout_s:g} s"
    else:
        if done.returncode == 0:
            metrics = json.loads(report.read_text(encoding="utf-8"))["rows"][0]["metrics"]
            return {metric["name"]: metric["value"] for metric in metrics}
        reason = next(reversed(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
    warnings.warn(f"{folder}: the samples were not evaluated: {reason}", stacklevel=2)
    return {}
