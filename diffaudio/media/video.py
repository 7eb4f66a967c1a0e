"""The pictures of video files at given times."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from diffaudio.media.container import SEEK_S, MediaError, OpenMedia, open_media
from diffaudio.media.video_track import VideoTrack

__all__ = ["read_frames"]


def read_frames(
    path: str | Path, times_s: Sequence[float], *, max_side: int | None = None
) -> list[tuple[float, Image.Image]]:
    """Decode the pictures that are on screen at the given times.

    Args:
        times_s: in any order.
        max_side: larger pictures are brought to this longest side; smaller ones stay as they are.

    Returns:
        Each picture once, as RGB and upright, with the time at which it appears, in order of time. Times after
        the end of the picture give nothing.

    Raises:
        MediaError: the file cannot be read, has no picture track, or nothing of it decodes.
    """
    found: dict[float, Image.Image] = {}

    def take(time_s: float, picture: Image.Image | None) -> None:
        if picture is not None:
            found[time_s] = picture

    with open_media(path) as media:
        if media.video is None:
            raise MediaError(f"{path}: has no picture track")
        track = VideoTrack(media.video, media.begin_s, max_side)
        for time_s in times_s:
            track.request(time_s, take)
        _follow(media, track)
        if times_s and not track.decoded_any:
            raise MediaError(f"{path}: no picture decodes")
    return sorted(found.items())


def _follow(media: OpenMedia, track: VideoTrack) -> None:
    """Read on until all that is wanted has been seen, passing over what lies between."""
    packets = media.packets(media.video)
    sought_s: float | None = None
    while (wanted_s := track.next_requested_s) is not None:
        packet = next(packets, None)
        if packet is None:
            break
        time_s = media.time_s(packet)
        if time_s is not None and wanted_s > time_s + SEEK_S and sought_s != wanted_s:
            sought_s = wanted_s
            if media.seek(wanted_s, media.video):
                track.reset()
                continue
        track.feed(packet)
    track.finish()
