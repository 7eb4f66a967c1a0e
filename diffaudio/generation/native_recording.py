"""Recordings around generated sound at their own rate and channels, which may be other than the model's."""

import torch
from torch import Tensor

from diffaudio.diffusion.edit_settings import parse_span
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.media.audio import crop_or_pad, mix_channels, read_audio, resample
from diffaudio.media.crossfade import MAX_SEAM_S, splice
from diffaudio.pipeline_inputs import at_loudness

__all__ = ["keeps_recording", "with_native_recording"]


def keeps_recording(settings: GenerationSettings) -> bool:
    """Whether parts of a recording come back as they were."""
    edit = settings.edit
    joins = edit is not None and (edit.continue_audio is not None or edit.lead_in_audio is not None)
    return edit is not None and (bool(edit.mask) or joins) and not settings.layers


def with_native_recording(sound: Tensor, sample_rate: int, settings: GenerationSettings) -> tuple[Tensor, int]:
    """A sound with the parts that are kept at the rate and channels of their files.

    What is generated is resampled, and the same on both sides of a stereo recording if the model is mono.

    Args:
        sound: [channels, samples], in which these parts are at the model's rate.

    Returns:
        [channels, samples] at the loudness of the settings, and its sample rate.
    """
    edit = settings.edit
    assert edit is not None
    read = {file: read_audio(file) for file in edit.recordings}
    rate = max(rate for _, rate in read.values())
    channels = max(len(sound), min(2, max(len(waveform) for waveform, _ in read.values())))
    if (rate, channels) != (sample_rate, len(sound)):
        num_samples = round(settings.duration_s * rate)
        native = {
            file: mix_channels(resample(waveform, own_rate, rate), channels)
            for file, (waveform, own_rate) in read.items()
        }
        recording, spans = torch.zeros(channels, num_samples), []
        if edit.init_audio is not None:
            recording = crop_or_pad(native[edit.init_audio], settings.duration_s, rate)
            spans = sorted((round(a * rate), round(b * rate)) for a, b in map(parse_span, edit.mask))
        else:
            first, last = 0, num_samples
            if edit.continue_audio is not None:
                first = native[edit.continue_audio].shape[1]
                recording[:, :first] = native[edit.continue_audio]
            if edit.lead_in_audio is not None:
                last = num_samples - native[edit.lead_in_audio].shape[1]
                recording[:, last:] = native[edit.lead_in_audio]
            spans = [(first, last)]
        generated = crop_or_pad(resample(sound, sample_rate, rate), settings.duration_s, rate)
        generated = generated.expand(channels, -1)
        sound, sample_rate = splice(recording, generated, spans, seam=int(MAX_SEAM_S * rate)), rate
    return (sound if settings.loudness is None else at_loudness(sound, settings.loudness, sample_rate)), sample_rate
