"""Ten minutes of rain: time, memory, and whether anything happens where windows and blocks meet; some minutes.

    uv run pytest tests/benchmarks/test_long_sound.py -m benchmark -s

STEPS is the number of sampling steps (default 10), MINUTES the duration (default 10), DTYPE that of the U-Net, THREADS
their number (default 2). The speed counts everything but the start of Python and the loading of the model, which are
measured by a sound of one second. The table is in sample/SOUND_DESIGN.md.

At every edge of a window, the change of level (dB, between the 0.5 s before and after) and of the mean log-mel spectrum
(dB, root mean square over bands) is compared with the same at places in the middle of windows. p is that of the
Mann-Whitney test that they are the same; drift is the difference between the last and the first quarter.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy.stats import mannwhitneyu

from diffaudio.media.audio import read_audio
from diffaudio.sound_design import edit

pytestmark = pytest.mark.benchmark

DURATION_S = 60 * float(os.environ.get("MINUTES", "10"))
BESIDE_S = 0.5


def generate(duration_s, path):
    """Wall time and CPU time in seconds, and the peak of memory in bytes."""
    threads = os.environ.get("THREADS", "2")
    command = [sys.executable, "-m", "diffaudio", "generate", "rain", "--duration", str(duration_s), "--seed", "0",
               "--steps", os.environ.get("STEPS", "10"), "--dtype", os.environ.get("DTYPE", "auto"),
               "-o", str(path), "--overwrite"]  # fmt: skip
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": threads})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu_s, after.ru_maxrss * 1024


def window_edges():
    """Times at which windows begin or end, or blocks meet, in seconds."""
    hop = edit.WINDOW_S - edit.OVERLAP_S
    edges = set[float]()
    for block in range(int(DURATION_S // edit.BLOCK_S) + 1):
        first = block * edit.BLOCK_S - (edit.CONTEXT_S if block else 0)
        edges.add(block * edit.BLOCK_S)
        for window in range(1, int(edit.BLOCK_S / hop) + 1):
            edges |= {first + window * hop, first + window * hop + edit.OVERLAP_S}
    return sorted(each for each in edges if 1 < each < DURATION_S - 1)


def changes(waveform, sample_rate, places_s):
    """Change of level and of the spectrum at each place, in dB: [places] each."""
    side = round(BESIDE_S * sample_rate)
    window = torch.hann_window(1024)
    levels, spectra = [], []
    for place_s in places_s:
        place = round(place_s * sample_rate)
        sides = waveform[place - side : place], waveform[place : place + side]
        before, after = (10 * (each.square().mean() + 1e-12).log10() for each in sides)
        levels.append((after - before).abs())
        powers = [torch.stft(each, 1024, 256, window=window, return_complex=True).abs().square().mean(dim=1)
                  for each in sides]  # fmt: skip
        bands = [10 * (power[1:].unflatten(0, (32, -1)).mean(dim=1) + 1e-9).log10() for power in powers]
        spectra.append((bands[1] - bands[0]).square().mean().sqrt())
    return torch.stack(levels), torch.stack(spectra)


def test_ten_minutes_of_rain(tmp_path):
    path = Path(os.environ.get("KEEP", tmp_path / "rain.flac"))
    start_s, start_cpu_s, _ = generate(1, tmp_path / "start.flac")
    wall_s, cpu_s, memory = generate(DURATION_S, path)
    print(f"\n{DURATION_S:g} s: {wall_s:.0f} s, of these {start_s:.0f} s before the first step; "
          f"CPU {cpu_s:.0f} s, of these {start_cpu_s:.0f} s; {memory / 2**30:.2f} GiB")  # fmt: skip
    print(f"times real time: {DURATION_S / (wall_s - start_s):.1f} by the clock, "
          f"{DURATION_S / (cpu_s - start_cpu_s):.1f} per core")  # fmt: skip
    waveform, rate = read_audio(path)
    edges = window_edges()
    middles = [each for each in torch.arange(2, DURATION_S - 2, 1.7).tolist() if min(abs(each - e) for e in edges) > 3]
    at_edges, inside = changes(waveform[0], rate, edges), changes(waveform[0], rate, middles)
    for name, here, there in zip(("level", "spectrum"), at_edges, inside, strict=True):
        p = mannwhitneyu(here.numpy(), there.numpy()).pvalue
        inside_text = f"{there.mean():.2f} dB at {len(there)} places inside"
        print(f"{name}: {here.mean():.2f} dB at {len(here)} edges, {inside_text}, p {p:.2f}")
        assert p > 0.01
    quarter = waveform.shape[1] // 4
    drift = [10 * part.square().mean().log10() for part in (waveform[0, :quarter], waveform[0, -quarter:])]
    print(f"drift of level: {float(drift[1] - drift[0]):+.2f} dB")
    assert memory < 2 * 10**9
