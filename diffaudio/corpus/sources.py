"""What a corpus is made of: media files, each with the stretches of it that are wanted."""

from dataclasses import dataclass

__all__ = ["Media", "Segment"]


@dataclass(frozen=True)
class Segment:
    """A stretch of a media file.

    Attributes:
        start_s: where it begins.
        end_s: where it ends; None is the end of the file.
        caption: what it is of, where somebody says.
    """

    start_s: float = 0.0
    end_s: float | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Media:
    """One media file, the unit of work: what makes a corpus works through these in the order of their names.

    Attributes:
        name: of the source in the corpus, the same wherever it lies: the path below the folder of all sources, or the
            address of a remote file.
        path: what to open: a local path, or an address that fsspec opens.
        segments: at least one, in order of time.
    """

    name: str
    path: str
    segments: tuple[Segment, ...] = (Segment(),)
