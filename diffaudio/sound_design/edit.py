"""Sound design in the pipeline: recordings become latents to start from or to keep, and come back around the result.

    init audio      the whole recording is the start (`strength`); with masks, only what lies in them is generated
    continue        a recording, then generated sound; lead-in: the other way round; both: a transition
    loop            circular windows, and a seam over the wrap
    longer sounds   blocks of `BLOCK_S`, each sampled in overlapping windows; a block continues the latents before it

Recordings are brought to the level of the training corpus, a peak of `PEAK`, and what is generated back to theirs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffaudio.diffusion.edit_settings import DEFAULT_STRENGTH, Span, check_edit, check_spans
from diffaudio.diffusion.latent_edit import LatentEdit
from diffaudio.diffusion.regions import Region, range_weights, windows, with_conditions
from diffaudio.diffusion.sampling import draw_noise
from diffaudio.errors import UserError
from diffaudio.media.audio import crop_or_pad
from diffaudio.media.crossfade import MAX_SEAM_S, close_loop, splice
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.models.autoencoders.windows import decode_windows
from diffaudio.sound_design.recordings import Recording, encode_around, frames_in, join_recordings, load_recording

__all__ = [
    "SoundEdit",
    "Timeline",
    "block_ranges",
    "check_ranges",
    "decode_edit",
    "plan_edit",
    "sample_blocks",
    "stream_edit",
]

WINDOW_S, OVERLAP_S, MARGIN_S = 60.0, 10.24, 3.84
BLOCK_S, CONTEXT_S = 600.0, 5.0
MAX_LOOP_S = 600.0
LOOP_SEAM_S = 0.05
LENGTH_TOLERANCE_S = 0.01  # by which files of one duration may differ, since their rates do
CROSSFADE_S = 0.5  # between queries
FULL_SCALE = 0.99


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

    @property
    def in_latents(self) -> LatentEdit:
        """How the latents are sampled, but for regions."""
        return LatentEdit(self.latents, self.strength, self.generate, self.resamples)

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
        # a loop is a whole number of frames, so what is left of the last one is cut off
        tolerance_s = 1 / autoencoder.latent_rate if loop and given_s > duration_s else LENGTH_TOLERANCE_S
        if abs(given_s - duration_s) > tolerance_s:
            hint = "cut it, or leave the duration out" if given_s > duration_s else "leave it out, or use continue"
            raise UserError(f"the init audio has {given_s:.2f} s where the duration is {duration_s:g} s; {hint}")
        recording = crop_or_pad(recording, duration_s, rate)
        spans = check_spans(mask, duration_s)
    elif joins:
        assert duration_s is not None
        recording, spans = join_recordings(autoencoder, duration_s, continue_audio, lead_in_audio)
    else:
        assert duration_s is not None
        return SoundEdit(round(duration_s * rate), loop=_checked_loop(autoencoder, duration_s) if loop else False)
    if loop:
        _checked_loop(autoencoder, duration_s)
    in_samples = tuple((round(start * rate), round(end * rate)) for start, end in spans)
    latents, gain = encode_around(autoencoder, recording, in_samples)
    return SoundEdit(
        num_samples=recording.shape[-1],
        recording=recording,
        spans=in_samples,
        latents=latents,
        generate=frames_in(in_samples, latents.shape[-1], rate / autoencoder.latent_rate) if spans else None,
        gain=gain,
        strength=(1.0 if spans else DEFAULT_STRENGTH) if strength is None else strength,
        resamples=resamples or 1,
        loop=loop,
    )


def block_ranges(edit: SoundEdit, autoencoder: Autoencoder, num_frames: int) -> list[tuple[int, int, bool]]:
    """First frame, the one after the last, and whether anything is generated, for each block of a sound."""
    rate = autoencoder.latent_rate
    is_whole = num_frames <= _on_grid(WINDOW_S * rate) or edit.loop
    block = num_frames if is_whole else _on_grid(BLOCK_S * rate)
    ranges = [(first, min(first + block, num_frames)) for first in range(0, num_frames, block)]
    return [(*each, edit.generate is None or bool(edit.generate[slice(*each)].any())) for each in ranges]


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
    window, overlap, context = (_on_grid(each * rate) for each in (WINDOW_S, OVERLAP_S, CONTEXT_S))
    if edit.loop and num_frames <= window:
        overlap = min(overlap, context)  # of its own end and beginning, on either side
    margin = min(_on_grid(MARGIN_S * rate), (overlap - 1) // 2)
    ahead: Tensor | None = None  # noise of the next block that was needed already
    before: Tensor | None = None  # the last latents and noise, which the next block continues
    noise_before: Tensor | None = None
    for first, last, is_generated in block_ranges(edit, autoencoder, num_frames):
        # what follows is sampled too, so that the end of a block is no end of the sound
        end = min(last + context, num_frames)
        if latents is not None:
            noise = latents[..., first:end]
        else:
            num_ahead = 0 if ahead is None else ahead.shape[-1]
            drawn = draw_noise((autoencoder.latent_channels, end - first - num_ahead), generators)
            noise = drawn if ahead is None else torch.cat([ahead, drawn], dim=-1)
        ahead = noise[..., last - first :]
        recording = None if edit.latents is None else edit.latents[..., first:end]
        generate = None if edit.generate is None else edit.generate[first:end]
        if not is_generated:
            assert recording is not None
            done = recording[..., : last - first].expand(len(noise), -1, -1)
        else:
            num_known = 0
            if before is not None and noise_before is not None:
                num_known = before.shape[-1]
                new = torch.zeros_like(noise) if recording is None else recording.expand(len(noise), -1, -1)
                recording = torch.cat([before, new.to(before)], dim=-1)
                new_frames = torch.ones(end - first, dtype=torch.bool) if generate is None else generate
                generate = torch.cat([torch.zeros(num_known, dtype=torch.bool), new_frames])
                noise = torch.cat([noise_before, noise], dim=-1)
            regions = windows(noise.shape[-1], size=window, overlap=overlap, margin=margin, loop=edit.loop)
            if timeline is not None:
                regions = _conditioned(regions, timeline, noise.shape[-1], first - num_known, rate)
            elif len(regions) == 1 and not edit.loop:
                regions = []
            done = run(noise, LatentEdit(recording, edit.strength, generate, edit.resamples, regions))
            done = done[..., num_known : num_known + last - first]
        num_ahead = ahead.shape[-1]
        before = done[..., -context:].cpu()
        noise_before = noise[..., noise.shape[-1] - num_ahead - before.shape[-1] : noise.shape[-1] - num_ahead].cpu()
        yield done


def decode_edit(autoencoder: Autoencoder, latents: Tensor, edit: SoundEdit) -> tuple[Tensor, Tensor]:
    """Decode latents at once, or in windows where they are long.

    Returns:
        [batch, channels, num_samples], and the share out of range, [batch].
    """
    if edit.loop:
        return _decode_loop(autoencoder, latents, edit.num_samples)
    if latents.shape[-1] <= _on_grid(WINDOW_S * autoencoder.latent_rate):
        return autoencoder.decode_bounded(latents, num_samples=edit.num_samples)
    shares: list[Tensor] = []
    pieces = list(decode_windows(autoencoder, latents, num_samples=edit.num_samples, shares=shares))
    return torch.cat(pieces, dim=-1), torch.stack(shares).mean(dim=0)


def stream_edit(
    autoencoder: Autoencoder, blocks: Iterator[Tensor], edit: SoundEdit, shares: list[Tensor]
) -> Iterator[Tensor]:
    """Decode blocks of latents while they are made: pieces [batch, channels, samples].

    Args:
        shares: a list to which the share out of range of each piece is added, [batch].
    """
    with torch.no_grad():
        for piece in decode_windows(autoencoder, blocks, num_samples=edit.num_samples, shares=shares):
            if not piece.isfinite().all():
                raise UserError("the autoencoder made samples that are not finite (NaN or infinity); check its weights")
            yield piece.cpu()


def check_ranges(ranges: Sequence[Span], num_prompts: int, edit: SoundEdit, autoencoder: Autoencoder) -> list[Span]:
    """The time range of each prompt of a sound.

    Raises:
        UserError: there are not as many as prompts, one is empty or outside of the sound, or they leave a gap.
    """
    if len(ranges) != num_prompts:
        raise UserError(f"{len(ranges)} time ranges for {num_prompts} prompts; give one each")
    duration_s = edit.num_samples / autoencoder.sample_rate
    for start, end in ranges:
        if not 0 <= start < end <= duration_s + LENGTH_TOLERANCE_S:
            raise UserError(
                f"the time range {start:g} to {end:g} s does not lie in the sound, which has {duration_s:g} s"
            )
    rate = autoencoder.latent_rate
    range_weights(ranges, autoencoder.num_latent_frames(duration_s), latent_rate=rate, crossfade_s=CROSSFADE_S)
    return list(ranges)


def _decode_loop(autoencoder: Autoencoder, latents: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
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


def _checked_loop(autoencoder: Autoencoder, duration_s: float) -> bool:
    frames = duration_s * autoencoder.latent_rate
    if abs(frames - round(frames)) > 1e-3:
        lower, higher = (f(frames) / autoencoder.latent_rate for f in (math.floor, math.ceil))
        raise UserError(
            f"a loop of {duration_s:g} s is not a whole number of the model's frames; choose {lower:g} or {higher:g} s"
        )
    if duration_s > MAX_LOOP_S:
        raise UserError(f"a loop of {duration_s:g} s is too long; choose up to {MAX_LOOP_S:g} s")
    return True


def _on_grid(frames: float) -> int:
    """A multiple of 8 frames, so that every window meets the U-Net's levels in the same way."""
    return max(8, 8 * round(frames / 8))
