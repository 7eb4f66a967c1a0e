"""The frames of video files at given times, decoded in this process."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from diffaudio.media.container import SEEK_S, MediaError, OpenMedia, open_media
from diffaudio.media.video_decoder import Take, VideoTrack

__all__ = ["read_frames", "video_duration_s"]

FURTHER_BACK_S = (10.0, 60.0)  # where to start decoding before a frame if the key frame before it was not one
TOGETHER_S = 30.0  # frames that are no further apart are read in one pass


def read_frames(
    path: str | Path, times_s: Sequence[float], *, max_side: int | None = None
) -> list[tuple[float, Image.Image]]:
    """Decode the frames that are on screen at the given times.

    Args:
        times_s: in any order.
        max_side: larger frames are reduced to this longest side.

    Returns:
        Each picture once, as RGB and upright, with the time at which it appears, in order of time. Times after
        the end of the picture give nothing.

    Raises:
        MediaError: the file cannot be read, has no picture track, or nothing of it decodes.
    """
    found: dict[float, Image.Image] = {}
    with open_media(path) as media:
        check_has_video(media, path)
        missed_s, decoded_any = _read(media, times_s, max_side, found)
    while missed_s:
        together_s = [time_s for time_s in missed_s if time_s <= missed_s[0] + TOGETHER_S]
        missed_s = missed_s[len(together_s) :]
        decoded_any = _read_from_further_back(path, together_s, max_side, found) or decoded_any
    if times_s and not decoded_any:
        raise MediaError(f"{path}: no picture decodes")
    return sorted(found.items())


def check_has_video(media: OpenMedia, path: str | Path) -> None:
    """Raise an error if a file has no video that can be decoded; it names an unknown codec."""
    if media.video is None and media.info.unknown_video_codec:
        raise MediaError(f"{path}: its picture is coded as {media.info.unknown_video_codec}, which cannot be decoded")
    if media.video is None:
        raise MediaError(f"{path}: has no picture track")


def video_duration_s(path: str | Path) -> float:
    """The duration of a file's video track, from the beginning of the file, by its packets; nothing is decoded.

    Raises:
        MediaError: the file cannot be read, or has no video track.
    """
    with open_media(path) as media:
        check_has_video(media, path)
        end_s = 0.0
        for packet in media.packets(media.video):
            time_s = media.time_s(packet)
            if time_s is not None:
                end_s = max(end_s, time_s + float((packet.duration or 0) * packet.time_base))
        return end_s


def _read(
    media: OpenMedia,
    times_s: Sequence[float],
    max_side: int | None,
    found: dict[float, Image.Image],
    *,
    from_s: float | None = None,
    skips: bool = True,
    accepts_all: bool = False,
) -> tuple[list[float], bool]:
    """Add pictures to `found`; gives the times that need what lies before, and whether anything was decoded.

    Args:
        from_s: where to begin; None is where the file is.
        skips: whether flags of key frames are believed.
        accepts_all: take the first picture that decodes even where it refers to others.
    """
    times_of: dict[Take, float] = {}
    missed_s: list[float] = []

    def request(time_s: float) -> None:
        def take(shown_s: float, picture: Image.Image | None) -> None:
            if picture is not None:
                found[shown_s] = picture

        times_of[take] = time_s
        track.request(time_s, take)

    def miss(take: Take) -> None:
        missed_s.append(times_of[take])

    track = VideoTrack(media.video, media.begin_s, max_side, on_miss=None if accepts_all else miss, skips=skips)
    for time_s in times_s:
        request(time_s)
    if from_s is not None and from_s > 0 and media.seek(from_s, media.video):
        track.reset()
    _follow(media, track)
    return sorted(missed_s), track.decoded_any


def _read_from_further_back(
    path: str | Path, times_s: Sequence[float], max_side: int | None, found: dict[float, Image.Image]
) -> bool:
    """Decode everything from further back, in the end from the beginning of the file."""
    decoded_any = False
    for back_s in FURTHER_BACK_S:
        if times_s and times_s[0] > back_s:
            with open_media(path) as media:
                from_s = times_s[0] - back_s
                times_s, decoded = _read(media, times_s, max_side, found, from_s=from_s, skips=False)
            decoded_any = decoded_any or decoded
    if times_s:
        with open_media(path) as media:
            decoded_any = _read(media, times_s, max_side, found, skips=False, accepts_all=True)[1] or decoded_any
    return decoded_any


def _follow(media: OpenMedia, track: VideoTrack) -> None:
    """Read until all requests are answered, skipping packets between them."""
    packets = media.packets(media.video)
    sought_s: float | None = None
    while (next_s := track.next_requested_s) is not None:
        packet = next(packets, None)
        if packet is None:
            break
        time_s = media.time_s(packet)
        if track.skips and time_s is not None and next_s > time_s + SEEK_S and sought_s != next_s:
            sought_s = next_s
            if media.seek(next_s, media.video):
                track.reset()
                continue
        track.feed(packet)
    track.finish()
