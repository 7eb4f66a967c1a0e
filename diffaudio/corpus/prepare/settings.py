"""What `prepare` can be told about clips."""

from dataclasses import dataclass

from diffaudio.corpus.prepare.quality_filters import FilterSettings
from diffaudio.errors import UserError

__all__ = ["PrepareSettings"]

MAX_SOURCES_PER_PART = 10_000  # times 4 KB, which is the longest path


@dataclass(frozen=True)
class PrepareSettings(FilterSettings):
    """How media become clips, and which are left out.

    Attributes:
        clip_s: longest clip; longer files are cut into several.
        hop_s: from the beginning of one clip to the next; None is `clip_s`, without gap or overlap.
        min_clip_s: shorter files are dropped, and shorter ends of longer files left out.
        sample_rate: of the clips, in Hz.
        channels: 1 or 2.
        frames_per_clip: pictures taken of each clip, evenly over its time.
        frame_size: longest side of a picture at most, in pixels.
        sources_per_part: media files that go into one Parquet file, at most 10,000; it names them in its metadata.
        keep_dropped: keep clips that a filter condemns, marked with the reason.
    """

    clip_s: float = 10.0
    hop_s: float | None = None
    min_clip_s: float = 0.8
    sample_rate: int = 24000
    channels: int = 1
    frames_per_clip: int = 4
    frame_size: int = 224
    sources_per_part: int = 64
    keep_dropped: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clip_s", "min_clip_s", "sample_rate", "frames_per_clip", "frame_size", "sources_per_part"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.hop_s is not None and self.hop_s <= 0:
            raise UserError(f"hop_s is {self.hop_s}; it must be above 0, or None for clip_s")
        if self.min_clip_s > self.clip_s:
            raise UserError(f"min_clip_s is {self.min_clip_s}, above clip_s, which is {self.clip_s}")
        if self.min_motion > 0 and self.frames_per_clip == 1:
            raise UserError(
                f"min_motion is {self.min_motion}, which compares pictures, but frames_per_clip is 1; take 2 or more"
            )
        if self.sources_per_part > MAX_SOURCES_PER_PART:
            raise UserError(
                f"sources_per_part is {self.sources_per_part}; it must be at most {MAX_SOURCES_PER_PART}, "
                "for Parquet reads no metadata beyond 100 MB"
            )
        if self.channels not in (1, 2):
            raise UserError(f"channels is {self.channels}; choose 1 (mono) or 2 (stereo)")
