"""Formats of sound files by suffix, and what each can hold; without heavy imports, so that a command checks at once.

.wav   16 or 24 bits, or 32 as floating point, which keeps samples above full scale
.flac  16 or 24 bits
.ogg   Vorbis
.opus  Opus, at 8, 12, 16, 24 or 48 kHz
.mp3   MPEG layer III, at the rates of MPEG 1, 2 and 2.5
"""

from dataclasses import dataclass
from pathlib import Path

from diffaudio.errors import UserError

__all__ = ["FORMATS", "check_format"]


@dataclass(frozen=True)
class Format:
    """What libsndfile calls a format, with its subtype by bit depth, the default first."""

    name: str
    subtypes: dict[int | None, str]
    rates: tuple[int, ...] | None = None


FORMATS = {
    ".wav": Format("WAV", {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}),
    ".flac": Format("FLAC", {16: "PCM_16", 24: "PCM_24"}),
    ".ogg": Format("OGG", {None: "VORBIS"}),
    ".opus": Format("OGG", {None: "OPUS"}, (8000, 12000, 16000, 24000, 48000)),
    ".mp3": Format("MP3", {None: "MPEG_LAYER_III"}, (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
}


def check_format(path: Path, *, bit_depth: int | None = None, sample_rate: int | None = None) -> None:
    """Check that sound can be written to a file of this name, with this bit depth, and at this rate in Hz.

    Raises:
        UserError: it cannot.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        *others, last = FORMATS
        given = path.suffix or "a file without a suffix"
        raise UserError(f"{path}: cannot write {given}; choose {', '.join(others)} or {last}")
    depths = [depth for depth in FORMATS[suffix].subtypes if depth is not None]
    if bit_depth is not None and bit_depth not in depths:
        allowed = f"choose from {', '.join(map(str, depths))}" if depths else "it has none, leave it out"
        raise UserError(f"{path}: a bit depth of {bit_depth} does not suit {suffix}; {allowed}")
    rates = FORMATS[suffix].rates
    if sample_rate is not None and rates is not None and sample_rate not in rates:
        choices = ", ".join(map(str, rates))
        raise UserError(f"{path}: {suffix} cannot hold {sample_rate} Hz; choose a sample rate from {choices}")
