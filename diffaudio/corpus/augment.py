"""Augmentation: changes to a recording, or to a picture, that keep its content.

    x   waveforms [batch, samples] or [channels, samples], any level

Every change is a function with its strength in physical units; `augment_sound` and `augment_picture` draw which of them
a copy of a clip gets, and how strongly. All draws come from a CPU generator.

torchaudio's filters clip at [-1, 1]; its `pitch_shift` and `speed` build kernels of gigabytes for most ratios, and its
phase vocoder loses up to 10 dB of a steady tone. Only its `fftconvolve` is used here, and `resample` by whole percents.
"""

import contextlib
import math
from dataclasses import dataclass
from fractions import Fraction

import av
import av.filter
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from PIL import Image, ImageOps
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media.audio import crop_or_pad, resample

__all__ = [
    "HELPFUL",
    "AugmentSettings",
    "add_echo",
    "add_noise",
    "augment_picture",
    "augment_sound",
    "change_speed",
    "filter_smoothly",
    "random_crop_or_fill",
    "reverberate",
    "shift_pitch",
]

FILTER_BANDS = 8
ECHO_DB = (-12.0, -3.0)  # an echo's level, below the sound
REVERBERATION_DB = (-12.0, 0.0)  # energy of the room's response, below that of the sound itself


def _percents(ratio: float) -> range:
    """The whole percents from 1 / ratio to ratio."""
    return range(math.ceil(100 / ratio - 1e-9), math.floor(100 * ratio + 1e-9) + 1)


@dataclass(frozen=True)
class AugmentSettings:
    """The changes that a copy of a clip may get, and their largest strengths; 0 turns a change off.

    Attributes:
        probability: of each change in a copy, independently of the others.
        crop: largest share of the sound that is cut away, at either end.
        gain_db: largest change of level, up or down.
        filter_db: largest gain of a smooth random filter in any band, up or down.
        echo_s: longest delay of an echo.
        reverberation_s: longest reverberation time (60 dB).
        pitch_semitones: largest shift of the pitch, at the same duration.
        speed: largest relative change of speed, which changes pitch and duration with it.
        picture_crop: largest share of a picture's sides that is cut away.
        picture_flip: whether pictures are mirrored, left to right.
    """

    probability: float = 0.5
    crop: float = 0.0
    gain_db: float = 0.0
    filter_db: float = 0.0
    echo_s: float = 0.0
    reverberation_s: float = 0.0
    pitch_semitones: float = 0.0
    speed: float = 0.0
    picture_crop: float = 0.0
    picture_flip: bool = False

    def __post_init__(self) -> None:
        limits = {
            "probability": 1.0, "crop": 0.9, "gain_db": 40.0, "filter_db": 40.0, "echo_s": 2.0, "reverberation_s": 10.0,
            "pitch_semitones": 12.0, "speed": 0.5, "picture_crop": 0.9,
        }  # fmt: skip
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise UserError(f"{name} is {getattr(self, name)}; choose 0 to {limit:g}")
        for name, ratio in (("speed", 1 + self.speed), ("pitch_semitones", 2 ** (self.pitch_semitones / 12))):
            if getattr(self, name) and len(_percents(ratio)) == 1:
                raise UserError(f"{name} is {getattr(self, name)}, which has no effect: ratios are whole percents")

    @property
    def changes_sound(self) -> bool:
        """Whether a copy's sound can differ from the recording."""
        strengths = (self.crop, self.gain_db, self.filter_db, self.echo_s, self.reverberation_s)
        return self.probability > 0 and any((*strengths, self.pitch_semitones, self.speed))

    @property
    def changes_pictures(self) -> bool:
        """Whether a copy's pictures can differ from the clip's."""
        return self.probability > 0 and (self.picture_crop > 0 or self.picture_flip)


# Lowers the loss on held-out clips, and changes neither rooms nor levels, which a model would learn to generate.
HELPFUL = AugmentSettings(probability=1.0, speed=0.06, picture_crop=0.3, picture_flip=True)


def augment_sound(waveform: Tensor, sample_rate: int, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Change a sound at random, in physical order: the source, the room, the recording.

    All changes after the crop, except the gain, keep the peak.

    Args:
        waveform: [channels, samples].

    Returns:
        [channels, samples], fewer after a crop, and about samples / (1 ± speed) after a change of speed; the same
        tensor where nothing was changed.
    """

    def happens(strength: float) -> bool:
        return strength > 0 and uniform(0, 1) < settings.probability

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    def percent(ratio: float) -> int:
        choices = _percents(ratio)
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    if happens(settings.crop):  # before the peak is measured, so that a soft part stays soft
        waveform = _random_part(waveform, 1 - uniform(0, settings.crop), generator)
    x = waveform
    if happens(settings.speed):
        x = resample(x, percent(1 + settings.speed), 100)
    if happens(settings.pitch_semitones):
        x = shift_pitch(x, sample_rate, percent(2 ** (settings.pitch_semitones / 12)))
    if happens(settings.echo_s):
        x = add_echo(x, round(uniform(0, settings.echo_s) * sample_rate), uniform(*ECHO_DB))
    if happens(settings.reverberation_s):
        t60_s = uniform(0.2, 1) * settings.reverberation_s
        x = reverberate(x, sample_rate, t60_s, uniform(*REVERBERATION_DB), generator)
    if happens(settings.filter_db):
        x = filter_smoothly(x[None], settings.filter_db, generator)[0]
    if x is not waveform and (largest := x.abs().max()) > 0:
        x = x * (waveform.abs().max() / largest)
    if happens(settings.gain_db):
        x = x * 10 ** (uniform(-settings.gain_db, settings.gain_db) / 20)
    return x


def augment_picture(picture: Image.Image, settings: AugmentSettings, generator: torch.Generator) -> Image.Image:
    """A random crop of a picture with its aspect ratio, perhaps mirrored; the same picture where nothing changed."""
    crops, flips, share, left, top = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    if settings.picture_crop > 0 and crops < settings.probability:
        width, height = (max(1, round(side * (1 - settings.picture_crop * share))) for side in picture.size)
        x, y = round((picture.width - width) * left), round((picture.height - height) * top)
        picture = picture.crop((x, y, x + width, y + height))
    return ImageOps.mirror(picture) if settings.picture_flip and flips < settings.probability else picture


def shift_pitch(waveform: Tensor, sample_rate: int, percent: int) -> Tensor:
    """Scale the pitch to `percent` of what it was, at the same duration.

    FFmpeg's `atempo` makes the sound longer by joining segments of it where they match (WSOLA: Verhelst & Roelands
    1993, "An overlap-add technique based on waveform similarity for high quality time-scale modification of speech"),
    which keeps clicks and knocks as they are; resampling brings it back to its length.

    Args:
        waveform: [channels, samples]; one or two channels.
    """
    padded = F.pad(waveform, (0, sample_rate // 4))  # atempo returns nothing for less than two of its windows
    longer = _change_tempo(padded, sample_rate, 100 / percent)
    return crop_or_pad(resample(longer, percent, 100), waveform.shape[-1], 1)


def add_echo(waveform: Tensor, num_samples: int, gain_db: float) -> Tensor:
    """Add the sound itself, `num_samples` later and at `gain_db`; the part beyond the end is cut off.

    Args:
        waveform: [channels, samples].
    """
    return waveform + 10 ** (gain_db / 20) * F.pad(waveform, (num_samples, 0))[:, : waveform.shape[-1]]


def reverberate(waveform: Tensor, sample_rate: int, t60_s: float, gain_db: float, generator: torch.Generator) -> Tensor:
    """Add the impulse response of a room: noise that decays exponentially (Moorer 1979, Computer Music Journal 3(2)).

    Args:
        waveform: [channels, samples]; each channel has its own noise.
        t60_s: time in which the response falls by 60 dB.
        gain_db: energy of the response relative to that of the impulse.

    Returns:
        [channels, samples]; the part beyond the end is cut off.
    """
    num_taps = max(1, round(t60_s * sample_rate))
    decay = 10 ** (-3 * torch.arange(num_taps) / (t60_s * sample_rate))
    response = decay * torch.randn(len(waveform), num_taps, generator=generator)
    response = response / response.norm(dim=1, keepdim=True) * 10 ** (gain_db / 20)
    whole = -(-(waveform.shape[-1] + num_taps) // 4096) * 4096  # other lengths take ten times as long to transform
    response = F.pad(response, (0, whole + 1 - waveform.shape[-1] - num_taps))
    return waveform + AF.fftconvolve(waveform, response)[:, : waveform.shape[-1]]


def _change_tempo(waveform: Tensor, sample_rate: int, factor: float) -> Tensor:
    """[channels, samples] -> [channels, about samples / factor], at the same pitch."""
    num_channels, layout = len(waveform), "mono" if len(waveform) == 1 else "stereo"
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=sample_rate, format="flt", layout=layout, time_base=Fraction(1, sample_rate))
    graph.link_nodes(source, graph.add("atempo", f"{factor:.6f}"), graph.add("abuffersink")).configure()
    samples = np.ascontiguousarray(waveform.numpy().T.reshape(1, -1), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    graph.push(frame)
    graph.push(None)
    changed = []
    with contextlib.suppress(av.EOFError):
        while True:
            changed.append(graph.pull().to_ndarray())
    return torch.from_numpy(np.concatenate(changed, axis=1).reshape(-1, num_channels).T.copy())


def _random_part(waveform: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random segment of [channels, samples], of at least one sample."""
    num_samples = max(1, round(share * waveform.shape[-1]))
    start = int(torch.randint(waveform.shape[-1] - num_samples + 1, (), generator=generator))
    return waveform[:, start : start + num_samples]


def random_crop_or_fill(waveform: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """A random crop; a shorter sound is repeated from a random phase or, as often, put at a random place in silence.

    Args:
        waveform: [samples], at least one.

    Returns:
        [num_samples]
    """
    spare = len(waveform) - num_samples
    start = int(torch.randint(abs(spare) + 1, (), generator=generator))
    if spare >= 0:
        return waveform[start : start + num_samples]
    if torch.rand((), generator=generator) < 0.5:
        return F.pad(waveform, (start, -spare - start))
    return waveform.roll(start).repeat(-(-num_samples // len(waveform)))[:num_samples]


def change_speed(waveform: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Play faster or slower by up to `largest`, as a share; the pitch changes with it.

    Args:
        waveform: [samples].

    Returns:
        [about samples / (1 ± largest)]; linear interpolation, which attenuates the highest frequencies a little.
    """
    factor = 1 + largest * (2 * float(torch.rand((), generator=generator)) - 1)
    num_samples = max(1, round(len(waveform) / factor))
    return F.interpolate(waveform[None, None], size=num_samples, mode="linear", align_corners=True)[0, 0]


def filter_smoothly(x: Tensor, gain_db: float, generator: torch.Generator) -> Tensor:
    """Apply a random frequency response to each item: gains at points spaced evenly in Hz, linear between them.

    Args:
        x: [batch, samples], or [batch, channels, samples], where all channels get the same filter.
        gain_db: the gains lie between plus and minus this.
    """
    spectrum = torch.fft.rfft(x)
    gains_db = gain_db * (2 * torch.rand(len(x), 1, FILTER_BANDS, generator=generator) - 1)
    response_db = F.interpolate(gains_db, size=spectrum.shape[-1], mode="linear", align_corners=True)
    response_db = response_db if x.ndim == 3 else response_db[:, 0]
    return torch.fft.irfft(spectrum * 10 ** (response_db / 20), n=x.shape[-1])


def add_noise(x: Tensor, loudest_db: float, generator: torch.Generator) -> Tensor:
    """Add white noise, at a level from 60 dB below `loudest_db` up to it.

    Args:
        x: [batch, samples].
        loudest_db: standard deviation of the noise relative to the item's peak.
    """
    level_db = loudest_db - 60 * torch.rand(len(x), 1, generator=generator)
    return x + x.abs().amax(dim=1, keepdim=True) * 10 ** (level_db / 20) * torch.randn(x.shape, generator=generator)
