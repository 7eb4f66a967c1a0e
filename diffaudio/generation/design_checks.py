"""Checks of sound design before anything heavy is imported: recordings, time ranges, layers, fades, formats."""

from collections.abc import Sequence
from pathlib import Path

from diffaudio.diffusion.edit_settings import check_spans, parse_span
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.generation.timeline import check_timeline, parse_layer, parse_timeline
from diffaudio.media.audio_formats import check_format
from diffaudio.media.file_extensions import VIDEO_CONTAINERS
from diffaudio.media.file_settings import FileSettings

__all__ = ["MAX_IN_MEMORY_S", "STREAMED_S", "check_design", "is_streamed", "recording_duration_s"]

STREAMED_S = 60.0  # longer sounds are written while they are made
MAX_IN_MEMORY_S = 600.0


def is_streamed(settings: GenerationSettings) -> bool:
    """Whether a sound is written while it is made, instead of being held in memory."""
    edit = settings.edit
    held = bool(settings.layers) or (edit is not None and (edit.loop or bool(edit.recordings)))
    return settings.duration_s > STREAMED_S and not held


def check_design(
    settings: GenerationSettings, prompts: Sequence[str | None], paths: Sequence[Path], *, plot: bool
) -> None:
    """Check that what is asked for can be done, and has an effect.

    Args:
        prompts: the text of each sound; None for what is no text.
        paths: its file.

    Raises:
        UserError: see the module.
    """
    duration_s, edit, file = settings.duration_s, settings.edit, settings.file or FileSettings()
    file.check_duration(duration_s)
    for layer in settings.layers:
        parse_layer(layer)
    if edit is not None:
        check_spans([parse_span(each) for each in edit.mask], duration_s)
        for recording in edit.recordings:
            if not recording.is_file():
                raise UserError(f"{recording}: there is no such sound file")
    for prompt in prompts:
        check_timeline(parse_timeline(prompt or "") or [], duration_s)
    for path in {each.suffix.lower(): each for each in paths}.values():
        if path.suffix.lower() not in VIDEO_CONTAINERS:
            check_format(path, bit_depth=file.bit_depth, sample_rate=file.sample_rate)
    if is_streamed(settings):
        if plot:
            raise UserError(f"spectrograms are drawn of up to {STREAMED_S:g} s; leave --plot out")
    elif duration_s > MAX_IN_MEMORY_S and not (edit is not None and edit.recordings):
        name = "layers are mixed" if settings.layers else "a loop is made"
        raise UserError(f"{name} in memory, up to {MAX_IN_MEMORY_S:g} s; give a shorter --duration")


def recording_duration_s(path: Path) -> float:
    """The duration of a sound file, found by reading it.

    Raises:
        MediaError: it cannot be read.
    """
    from diffaudio.media.audio_streams import stream_audio

    return sum(chunk.shape[1] / rate for rate, chunk in stream_audio(path))
