"""Sound design in the pipeline: recordings become latents to start from or to keep, and come back around the result.

    init audio      the whole recording is the start (`strength`); with masks, only what lies in them is generated
    continue        a recording, then generated sound; lead-in: the other way round; both: a transition
    loop            circular windows, and a seam over the wrap
    longer sounds   blocks of `BLOCK_S`, each sampled in overlapping windows; a block continues the latents before it

Recordings are brought to the level of the training corpus, a peak of `PEAK`, and what is generated back to theirs.
What lies in a mask has no effect on the result: before encoding it is replaced by its mirrored surroundings, so that
windows of the autoencoder which reach into it find nothing strange.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffaudio.diffusion.edit_settings import DEFAULT_STRENGTH, Span, check_edit, check_spans
from diffaudio.diffusion.latent_edit import LatentEdit
from diffaudio.diffusion.regions import Region, range_weights, windows, with_conditions
from diffaudio.diffusion.sampling import draw_noise
from diffaudio.errors import UserError
from diffaudio.media.audio import PEAK, crop_or_pad, read_audio
from diffaudio.media.crossfade import MAX_SEAM_S, close_loop, splice
from diffaudio.models.autoencoders import Autoencoder

__all__ = ["BLOCK_S", "SoundEdit", "Timeline", "decode_loop", "plan_edit", "sample_blocks"]

WINDOW_S, OVERLAP_S = 30.0, 2.5
BLOCK_S, CONTEXT_S = 120.0, 5.0
LOOP_SEAM_S = 0.05
LENGTH_TOLERANCE_S = 0.01  # by which files of one duration may differ, since their rates do
CROSSFADE_S = 0.5  # between queries
FULL_SCALE = 0.99

Recording = Tensor | np.ndarray | Path | str


@dataclass(frozen=True)
class Timeline:
    """Queries with time ranges in one sound: `embeddings` [1, embedding_dim] each, `ranges` in seconds."""

    embeddings: Sequence[Tensor]
    ranges: Sequence[Span]


@dataclass(frozen=True)
class SoundEdit:
    """What a sound is made from, at the rate and in the latents of an autoencoder.

    Attributes:
        num_samples: of the sound.
        recording: [channels, samples]; None for a sound from noise.
        spans: samples to generate, (first, one after the last) each; none where there is no mask.
        latents: of the recording, [1, latent_channels, frames].
        generate: bool [frames]; None generates all frames.
        gain: from the recording to the level of its latents.
    """

    num_samples: int
    recording: Tensor | None = None
    spans: tuple[tuple[int, int], ...] = ()
    latents: Tensor | None = None
    generate: Tensor | None = None
    gain: float = 1.0
    strength: float = 1.0
    resamples: int = 1
    loop: bool = False

    def finish(self, generated: Tensor, sample_rate: int) -> Tensor:
        """Generated sound [channels, samples] at the level of the recording, and around it what is kept."""
        if self.recording is None:
            return generated
        generated = generated / self.gain
        if not self.spans:
            return generated
        peak = generated.abs().max()
        generated = generated * (FULL_SCALE / peak).clamp(max=1) if peak > 0 else generated
        return splice(self.recording.to(generated), generated, self.spans, seam=int(MAX_SEAM_S * sample_rate))


def plan_edit(
    autoencoder: Autoencoder,
    *,
    duration_s: float | None,
    init_audio: Recording | None = None,
    strength: float | None = None,
    mask: Sequence[Span] = (),
    continue_audio: Recording | None = None,
    lead_in_audio: Recording | None = None,
    loop: bool = False,
    resamples: int | None = None,
) -> SoundEdit:
    """What a sound of this duration is made from, see `EditSettings`.

    Args:
        duration_s: None takes that of the init audio.

    Raises:
        UserError: a recording cannot be used, does not fit the duration, or `check_edit` rejects the combination.
    """
    joins = [name for name, x in (("continue", continue_audio), ("lead-in", lead_in_audio)) if x is not None]
    check_edit(init=init_audio is not None, strength=strength, spans=mask, joins=joins, loop=loop, resamples=resamples)
    rate = autoencoder.sample_rate
    if init_audio is not None:
        recording = load_recording(init_audio, autoencoder, "init audio")
        given_s = recording.shape[-1] / rate
        duration_s = given_s if duration_s is None else duration_s
        if abs(given_s - duration_s) > LENGTH_TOLERANCE_S:
            hint = "cut it, or leave the duration out" if given_s > duration_s else "leave it out, or use continue"
            raise UserError(f"the init audio has {given_s:.2f} s where the duration is {duration_s:g} s; {hint}")
        recording = crop_or_pad(recording, duration_s, rate)
        spans = check_spans(mask, duration_s)
    elif joins:
        assert duration_s is not None
        recording, spans = _joined(autoencoder, duration_s, continue_audio, lead_in_audio)
    else:
        assert duration_s is not None
        return SoundEdit(round(duration_s * rate), loop=_checked_loop(autoencoder, duration_s) if loop else False)
    if loop:
        _checked_loop(autoencoder, duration_s)
    in_samples = tuple((round(start * rate), round(end * rate)) for start, end in spans)
    latents, gain = _encoded(autoencoder, recording, in_samples)
    return SoundEdit(
        num_samples=recording.shape[-1],
        recording=recording,
        spans=in_samples,
        latents=latents,
        generate=_frames_in(in_samples, latents.shape[-1], rate / autoencoder.latent_rate) if spans else None,
        gain=gain,
        strength=(1.0 if spans else DEFAULT_STRENGTH) if strength is None else strength,
        resamples=resamples or 1,
        loop=loop,
    )


def load_recording(recording: Recording, autoencoder: Autoencoder, name: str) -> Tensor:
    """A recording at the autoencoder's rate and channels: [audio_channels, samples] float32.

    Args:
        recording: a file, or samples [audio_channels, samples] at the autoencoder's rate.
        name: of the argument, for errors.

    Raises:
        UserError: it cannot be read, has another shape, is shorter than a latent frame, or holds NaN or infinity.
    """
    channels, rate = autoencoder.audio_channels, autoencoder.sample_rate
    if isinstance(recording, (str, Path)):
        name = str(recording)
        waveform, _ = read_audio(recording, sample_rate=rate, channels=channels)
    else:
        waveform = torch.as_tensor(recording, dtype=torch.float32).cpu()
        if waveform.ndim != 2 or waveform.shape[0] != channels:
            raise UserError(f"{name} is {list(waveform.shape)}; expected [{channels}, samples] at {rate} Hz")
    frame_s = 1 / autoencoder.latent_rate
    if waveform.shape[-1] < round(frame_s * rate):
        raise UserError(
            f"{name}: has {waveform.shape[-1] / rate:.3f} s of sound; {frame_s:.2g} s, a frame of the model, are needed"
        )
    if not waveform.isfinite().all():
        raise UserError(f"{name}: holds samples that are NaN or infinite; repair it first")
    return waveform


def sample_blocks(
    run: Callable[[Tensor, LatentEdit], Tensor],
    edit: SoundEdit,
    autoencoder: Autoencoder,
    num_frames: int,
    *,
    generators: list[torch.Generator],
    latents: Tensor | None = None,
    timeline: Timeline | None = None,
) -> Iterator[Tensor]:
    """Sample latents of any length, block by block; memory depends on the block.

    Args:
        run: samples the latents of a block from noise [batch, latent_channels, frames] and a `LatentEdit`.
        generators: one an item.
        latents: initial noise of the whole sound; None draws that of each block.

    Yields:
        [batch, latent_channels, frames of a block]
    """
    rate = autoencoder.latent_rate
    window, overlap, block, context = (_on_grid(each * rate) for each in (WINDOW_S, OVERLAP_S, BLOCK_S, CONTEXT_S))
    if num_frames <= window or edit.loop:
        block = num_frames
    before: Tensor | None = None  # the last noise and latents, which the next block continues
    noise_before: Tensor | None = None
    for first in range(0, num_frames, block):
        last = min(first + block, num_frames)
        if latents is not None:
            noise = latents[..., first:last]
        else:
            noise = draw_noise((autoencoder.latent_channels, last - first), generators)
        recording = None if edit.latents is None else edit.latents[..., first:last]
        generate = None if edit.generate is None else edit.generate[first:last]
        if generate is not None and not generate.any():
            assert recording is not None
            done = recording.expand(len(noise), -1, -1)
        else:
            num_known = 0
            if before is not None and noise_before is not None:
                num_known = before.shape[-1]
                new = torch.zeros_like(noise) if recording is None else recording.expand(len(noise), -1, -1)
                recording = torch.cat([before, new.to(before)], dim=-1)
                new_frames = torch.ones(last - first, dtype=torch.bool) if generate is None else generate
                generate = torch.cat([torch.zeros(num_known, dtype=torch.bool), new_frames])
                noise = torch.cat([noise_before, noise], dim=-1)
            regions = windows(noise.shape[-1], size=window, overlap=overlap, loop=edit.loop)
            if timeline is not None:
                regions = _conditioned(regions, timeline, noise.shape[-1], first - num_known, rate)
            elif len(regions) == 1 and not edit.loop:
                regions = []
            done = run(noise, LatentEdit(recording, edit.strength, generate, edit.resamples, regions))[..., num_known:]
        before, noise_before = done[..., -context:].cpu(), noise[..., -context:].cpu()
        yield done


def decode_loop(autoencoder: Autoencoder, latents: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Decode latents whose end continues with their beginning.

    Returns:
        [batch, channels, num_samples], and the share out of range, [batch].
    """
    frame = round(autoencoder.sample_rate / autoencoder.latent_rate)
    num_frames, seam = latents.shape[-1], round(LOOP_SEAM_S * autoencoder.sample_rate)
    context = min(autoencoder.reach.decode, num_frames) + math.ceil(seam / frame)
    around = torch.arange(-context, num_frames + context) % num_frames
    extended, share = autoencoder.decode_bounded(latents[..., around.to(latents.device)])
    extended = extended[..., context * frame :]
    return torch.stack([close_loop(each, num_samples, seam=seam) for each in extended]), share


def _conditioned(
    regions: list[Region], timeline: Timeline, num_frames: int, first_frame: int, latent_rate: float
) -> list[Region]:
    weights = range_weights(
        timeline.ranges, num_frames, latent_rate=latent_rate, crossfade_s=CROSSFADE_S, first_frame=first_frame
    )
    return with_conditions(regions, timeline.embeddings, weights)


def _joined(
    autoencoder: Autoencoder, duration_s: float, begin: Recording | None, end: Recording | None
) -> tuple[Tensor, list[Span]]:
    """A sound that begins and ends with recordings, silent between, and the span between."""
    rate, channels = autoencoder.sample_rate, autoencoder.audio_channels
    num_samples = round(duration_s * rate)
    sound = torch.zeros(channels, num_samples)
    first, last = 0, num_samples
    if begin is not None:
        recording = load_recording(begin, autoencoder, "continue")
        first = recording.shape[-1]
        sound[:, :first] = recording[:, :num_samples]
    if end is not None:
        recording = load_recording(end, autoencoder, "lead-in")
        last = num_samples - recording.shape[-1]
        if last >= first:
            sound[:, last:] = recording
    if first >= last:
        raise UserError(
            f"the duration is {duration_s:g} s and the recordings have {(first + num_samples - last) / rate:.2f} s, "
            "so that nothing is left to generate; give a longer duration"
        )
    return sound, [(first / rate, last / rate)]


def _encoded(autoencoder: Autoencoder, recording: Tensor, spans: Sequence[tuple[int, int]]) -> tuple[Tensor, float]:
    """Latents [1, latent_channels, frames] of what is kept of a recording, and the gain that it was encoded with."""
    kept = _mirrored_into(recording, spans)
    peak = float(kept.abs().max())
    gain = PEAK / peak if peak > 0 else 1.0
    device = next(iter(autoencoder.buffers()), next(iter(autoencoder.parameters()), torch.zeros(0))).device
    return autoencoder.encode((kept * gain)[None].to(device)).float().cpu(), gain


def _mirrored_into(recording: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The recording with each span replaced by what lies before and after it, mirrored and crossfaded."""
    result = recording.clone()
    edges = [0, *(edge for span in spans for edge in span), recording.shape[-1]]
    for index, (start, end) in enumerate(spans):
        before, after = recording[:, edges[2 * index] : start], recording[:, end : edges[2 * index + 3]]
        length = end - start
        share = torch.linspace(0, 1, length) if before.shape[-1] and after.shape[-1] else torch.ones(length)
        result[:, start:end] = 0
        if before.shape[-1]:
            result[:, start:end] += _mirrored(before.flip(-1), length) * share.flip(-1)
        if after.shape[-1]:
            result[:, start:end] += _mirrored(after, length).flip(-1) * share
    return result


def _mirrored(nearest_first: Tensor, length: int) -> Tensor:
    """Samples by their distance from an edge, there and back again where they do not suffice."""
    period = torch.cat([nearest_first, nearest_first.flip(-1)], dim=-1)
    return period[:, torch.arange(length) % period.shape[-1]]


def _frames_in(spans: Sequence[tuple[int, int]], num_frames: int, samples_per_frame: float) -> Tensor:
    """The frames that hold any sample of the spans: bool [num_frames]."""
    generate = torch.zeros(num_frames, dtype=torch.bool)
    for start, end in spans:
        generate[math.floor(start / samples_per_frame) : math.ceil(end / samples_per_frame)] = True
    return generate


def _checked_loop(autoencoder: Autoencoder, duration_s: float) -> bool:
    frames = duration_s * autoencoder.latent_rate
    if abs(frames - round(frames)) > 1e-3:
        lower, higher = (f(frames) / autoencoder.latent_rate for f in (math.floor, math.ceil))
        raise UserError(
            f"a loop of {duration_s:g} s is not a whole number of the model's frames; choose {lower:g} or {higher:g} s"
        )
    if duration_s > BLOCK_S * 5:
        raise UserError(f"a loop of {duration_s:g} s is too long; choose up to {BLOCK_S * 5:g} s")
    return True


def _on_grid(frames: float) -> int:
    """A multiple of 8 frames, so that every window meets the U-Net's levels in the same way."""
    return max(8, 8 * round(frames / 8))
