"""Output paths of `diffaudio generate`, chosen and checked before anything is generated, hence without importing torch.

A sound's companions, its settings (.json) and spectrogram (.png), share its name. Files are overwritten only on
request.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffaudio.errors import UserError
from diffaudio.file_names import slug
from diffaudio.media.audio_formats import FORMATS, check_format
from diffaudio.media.file_extensions import VIDEO_CONTAINERS

__all__ = ["output_paths"]

SUFFIXES = tuple(FORMATS)


def output_paths(
    queries: Sequence[str],
    output: Path,
    *,
    plot: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """The file of each sound.

    In a folder, files are named after the queries, with a number if the name is already in use: rain.wav, rain-2.wav, …
    A file name is used as given; several sounds of one query are numbered, and sounds of several queries include the
    query in their names: rain.wav, rain-2.wav, or out-rain.wav, out-a-dog.wav.

    Args:
        queries: the text of each sound, or the name of its query; a repeated one is another sound.
        output: a sound file with a suffix in `FORMATS`, a video with one in `VIDEO_CONTAINERS`, or a folder. Folders
            are created as needed.
        plot: whether spectrograms are also written.
        overwrite: replace existing files. Otherwise, sounds in a folder get an unused name, and an existing file is an
            error.

    Raises:
        UserError: an unsupported suffix, an existing file, or a folder that is not writable.
    """
    is_folder = output.is_dir() or not output.suffix
    folder, suffix = (output, ".wav") if is_folder else (output.parent, output.suffix)
    if not is_folder and suffix.lower() not in VIDEO_CONTAINERS:
        check_format(output)
    _make_folder(folder)
    if is_folder:
        names = [slug(query) for query in queries]
    elif len(set(queries)) == 1:
        names = [output.stem] * len(queries)
    else:
        names = [f"{output.stem}-{slug(query)}" for query in queries]

    companions = [".json", *([".png"] if plot else [])]
    endings = [*SUFFIXES, *companions] if is_folder else [suffix, *companions]
    existing = set() if overwrite else {path.name.casefold() for path in folder.iterdir()}
    used, paths = set[str](), list[Path]()
    for name in names:
        number, stem = 1, name
        while stem.casefold() in used or (is_folder and any(f"{stem}{end}".casefold() in existing for end in endings)):
            number += 1
            stem = f"{name}-{number}"
        used.add(stem.casefold())
        for end in [] if is_folder else endings:
            if f"{stem}{end}".casefold() in existing:
                raise UserError(
                    f"{folder / f'{stem}{end}'}: exists; add --overwrite to replace it, or choose another name"
                )
        paths.append(folder / f"{stem}{suffix}")
    return paths


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: is no folder; choose another place") from None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part"):  # permissions alone do not say it
            pass
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be written to ({error.strerror})") from None
