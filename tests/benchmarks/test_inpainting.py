"""A gap of a second in recordings that no model learned from, filled in several ways; some minutes.

    RECORDINGS=corpus uv run pytest tests/benchmarks/test_inpainting.py -m benchmark -s

RECORDINGS is a folder with labels.csv (file, label) and videos/; of its files, those in the tagger's held_out.json are
used, every STRIDE-th (default 3) and of 3 s or more, with STEPS steps (default 10). METHODS names some of the ways,
separated by commas; by default all. The table is in sample/SOUND_DESIGN.md.

recognised   of the recordings that YAMNet recognises (a class of their kind among its first five), the share that it
             still recognises with the gap filled; 95 % interval by Wilson
log-mel      the distance from the recording inside the gap, in dB, median: of the mean spectrum over the gap (root mean
             square over bands), and of the whole (over bands and time, where what varies least is nearest)
"""

import csv
import json
import math
import os
from pathlib import Path

import pytest
import torch
from exact import MODELS, Autoregressive, generators

from diffaudio import DiffAudioPipeline
from diffaudio.checkpoint import bundled_model
from diffaudio.diffusion import sampling
from diffaudio.diffusion.latent_edit import KeepGuide, LatentEdit
from diffaudio.errors import UserError
from diffaudio.evaluation.backbones import load_backbone
from diffaudio.media.audio import read_audio, resample
from diffaudio.media.crossfade import splice
from diffaudio.metrics.classification import is_in_top, label_key
from diffaudio.metrics.confidence import wilson
from diffaudio.models.tagger import bundled_tagger
from diffaudio.sound_design.recordings import encode_around, frames_in

pytestmark = pytest.mark.benchmark

GAP_S = 1.0  # in the middle
MIN_DURATION_S, MAX_DURATION_S = 3.0, 5.0
DB = 20 / math.log(10)
METHODS = ("recording", "kept", "text alone", "silence", "interpolation", "replacement", "resampled")


class Replaced(KeepGuide):
    """Plain replacement: at each evaluation, frames to keep are the recording with new noise (RePaint, eq. 8)."""

    def __call__(self, z, timestep, alpha, sigma):
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(round(1e6 * sigma)))
        return super().__call__(torch.where(self.generate, z, alpha * self.recording + sigma * noise), timestep, alpha,
                                sigma)  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return DiffAudioPipeline.from_pretrained(bundled_model())


@pytest.fixture(scope="module")
def recordings(pipe):
    """(file name, label, waveform of 3 to 5 s) of each."""
    folder = Path(os.environ["RECORDINGS"])
    held_out = set(json.loads((bundled_tagger() / "held_out.json").read_text())["held_out"])
    with (folder / "labels.csv").open(newline="") as file:
        rows = sorted((row["file"], row["label"]) for row in csv.DictReader(file) if row["file"] in held_out)
    found = []
    for name, label in rows[:: int(os.environ.get("STRIDE", "3"))]:
        waveform, _ = read_audio(folder / "videos" / name, sample_rate=pipe.autoencoder.sample_rate, channels=1)
        if waveform.shape[1] >= MIN_DURATION_S * pipe.autoencoder.sample_rate and waveform.abs().max() > 0:
            found.append((name, label, waveform[:, : round(MAX_DURATION_S * pipe.autoencoder.sample_rate)]))
    return found


def gap_of(waveform, sample_rate):
    """First sample of the gap, and the one after its last."""
    first = (waveform.shape[1] - round(GAP_S * sample_rate)) // 2
    return first, first + round(GAP_S * sample_rate)


def filled(pipe, method, label, waveform, monkeypatch):
    """The recording with its gap filled."""
    rate = pipe.autoencoder.sample_rate
    span = gap_of(waveform, rate)
    settings = {
        "num_inference_steps": int(os.environ.get("STEPS", "10")),
        "generator": torch.Generator().manual_seed(0),
    }
    if method == "recording":
        return waveform
    if method == "silence":
        return splice(waveform, torch.zeros_like(waveform), [span], seam=480)
    if method == "interpolation":  # of the latents on either side
        latents, gain = encode_around(pipe.autoencoder, waveform, [span])
        generate = frames_in([span], latents.shape[-1], rate / pipe.autoencoder.latent_rate)
        (frames,) = generate.nonzero(as_tuple=True)
        share = torch.linspace(0, 1, len(frames) + 2)[1:-1]
        before, after = latents[..., frames[0] - 1, None], latents[..., frames[-1] + 1, None]
        latents[..., frames] = torch.lerp(before, after, share)
        generated = pipe.autoencoder.decode(latents, num_samples=waveform.shape[1])[0] / gain
        return splice(waveform, generated, [span], seam=480)
    if method == "text alone":
        generated = pipe(label, audio_length_in_s=waveform.shape[1] / rate, loudness=None, **settings).audios[0]
        generated = generated * (waveform.abs().max() / generated.abs().max())
        return splice(waveform, generated, [span], seam=480)
    with monkeypatch.context() as patch:
        if method == "replacement":
            patch.setattr(sampling, "KeepGuide", Replaced)
        resamples = 2 if method == "resampled" else None
        mask = [tuple(each / rate for each in span)]
        return pipe(label, init_audio=waveform, mask=mask, resamples=resamples, **settings).audios[0]


def test_a_gap_of_a_second(pipe, recordings, monkeypatch):
    yamnet = load_backbone("yamnet")
    kinds = [yamnet.kinds.classes[label_key(label)] for _, label, _ in recordings]
    rate = pipe.autoencoder.sample_rate

    def log_mel(waveform):
        spectra = DB * pipe.autoencoder.log_mel(0.7 * waveform / waveform.abs().max())[0]
        return spectra[slice(*(each // pipe.autoencoder.hop_length for each in gap_of(waveform, rate)))]

    recognised, distances = {}, {}
    wanted = os.environ.get("METHODS", ",".join(METHODS)).split(",")
    if unknown := set(wanted) - set(METHODS):
        raise UserError(f"METHODS: {unknown} is unknown")
    for method in dict.fromkeys(["recording", *wanted]):
        sounds = [filled(pipe, method, label, waveform, monkeypatch) for _, label, waveform in recordings]
        _, logits = yamnet.embed([resample(sound[0], rate, yamnet.sample_rate) for sound in sounds])
        recognised[method] = is_in_top(logits, kinds, ignored=yamnet.kinds.ignored).bool()
        pairs = [
            (log_mel(sound), log_mel(original)) for sound, (_, _, original) in zip(sounds, recordings, strict=True)
        ]
        whole = torch.stack([(a - b).square().mean().sqrt() for a, b in pairs])
        distances[method] = torch.stack([(a.mean(0) - b.mean(0)).square().mean().sqrt() for a, b in pairs])
        before = recognised["recording"]
        hits, n = int((recognised[method] & before).sum()), int(before.sum())
        interval = wilson(hits / n, n)
        print(f"{method:14} recognised {hits / n:.3f} ({interval.low:.2f} to {interval.high:.2f}, n {n})  "
              f"log-mel {distances[method].median():.1f} and {whole.median():.1f} dB", flush=True)  # fmt: skip
    if "kept" in wanted and "text alone" in wanted:
        assert (recognised["kept"] & before).sum() >= 0.85 * before.sum()
        assert (distances["kept"] < distances["text alone"]).float().mean() > 0.5


def test_the_edge_of_a_gap_in_a_known_process():
    """Frames of variance 1, correlated by 0.9 a frame: correlation across the edge, and the extremes of the std."""
    num_sounds, num_frames = 2000, 48
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_sounds, 1, num_frames, generator=generator)
    recording = torch.randn(num_sounds, 1, num_frames, generator=generator)
    rho = Autoregressive.RHO
    for frame in range(1, num_frames):
        recording[..., frame] = rho * recording[..., frame - 1] + (1 - rho**2) ** 0.5 * recording[..., frame]
    generate = torch.arange(num_frames) >= num_frames // 2
    sampler = sampling.make_sampler("dpm++2m_sde", MODELS["flow"].config)
    for name, guide, resamples in (("replacement", Replaced, 1), *(("kept", KeepGuide, n) for n in (1, 2, 3, 4))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "KeepGuide", guide)
            x = sampling.sample(
                Autoregressive(), sampler, noise, torch.zeros(num_sounds, 2), num_inference_steps=25, guidance_scale=1,
                generators=generators(*range(num_sounds)),
                edit=LatentEdit(recording, generate=generate, resamples=resamples),
            )[:, 0]  # fmt: skip
        std = x.std(dim=0)
        correlation = (x[:, 1:] * x[:, :-1]).mean(dim=0) / (std[1:] * std[:-1])
        edge, inside = correlation[num_frames // 2 - 1], correlation[num_frames // 2 + 6 :].mean()
        print(f"{name:12} resamples {resamples}: {edge:.3f} across the edge, {inside:.3f} inside, std "
              f"{std[generate].min():.2f} to {std[generate].max():.2f}")  # fmt: skip
    assert edge > 0.8
