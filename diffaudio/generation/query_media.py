"""The images and videos of queries, checked before torch is imported."""

from collections.abc import Iterable
from pathlib import Path

from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.queries.query import Query

__all__ = ["check_readable", "is_text_only"]


def is_text_only(queries: Iterable[Query], settings: GenerationSettings) -> bool:
    """Whether no image has to be encoded, also not one to guide away from."""
    parts = (part for query in queries for part in query.all_parts)
    return settings.negative_image is None and all(part.kind == "text" for part in parts)


def check_readable(queries: Iterable[Query], settings: GenerationSettings) -> None:
    """Read all images and videos once.

    Raises:
        UserError: one is missing, damaged, too large, or is no image or video.
    """
    files = {(part.kind, str(part.content)) for query in queries for part in query.all_parts if part.kind != "text"}
    if settings.negative_image is not None:
        files.add(("image", settings.negative_image))
    for kind, file in sorted(files):
        if not Path(file).exists():
            hint = f"; texts are given before --{kind}" if not Path(file).suffix else ""
            raise UserError(f"{file}: there is no such {kind} file{hint}")
    if not files:
        return

    from diffaudio.media.images import read_image, read_video

    for kind, file in sorted(files):
        (read_image if kind == "image" else read_video)(file)
