"""`diffaudio generate`: texts, images and videos -> sound files."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffaudio.cli.options import GENERATION_FLAGS, GENERATION_GROUPS, GenerationOptions, check_model
from diffaudio.config import Count, Seed, parse_command
from diffaudio.diffusion.settings import MAX_DURATION_S, GenerationSettings
from diffaudio.errors import UserError
from diffaudio.generation.output_paths import output_paths
from diffaudio.media.audio_formats import FORMATS
from diffaudio.media.file_extensions import VIDEO_CONTAINERS
from diffaudio.query import Part, Query, check_settings, interpolation, parse_queries

__all__ = ["run"]


FLAGS = GENERATION_FLAGS | {"prompts": ("prompt",), "output": ("-o", "--output")}

EPILOG = (
    "Several texts, images and videos generate a sound each. With weights after all of them, they are mixed into one "
    'sound: "a dog barking::0.7" "rain::0.3", or --image photo.jpg::0.5 --video clip.mp4::0.5.'
)


@dataclass(kw_only=True)
class Options(GenerationOptions):
    """The options of `diffaudio generate`.

    Attributes:
        prompts: description of the sound; several generate several sounds, or a mixture if they have weights.
        image: image file to generate from, instead of a text or mixed with it; an animation counts as a video.
        video: video file to generate from; the embeddings of its frames are averaged.
        interpolate: number of sounds from the first of two queries to the second, all from the same noise.
        output: sound file (.wav, .flac, .ogg, .opus or .mp3), or a folder for files named after the queries; folders
            are created as needed. With --video also a video file (.mp4, .mkv, …): the sound is put under the picture,
            which is copied unchanged, and is as long as the picture unless --duration is given.
        overwrite: replace existing files; otherwise, sounds in a folder get an unused name, and an existing file name
            is an error.
        seed: random seed of the first sound; each further sound uses the next integer (default: random, printed).
        takes: number of sounds per query.
    """

    prompts: list[str] = field(default_factory=list)
    image: list[str] = field(default_factory=list)
    video: list[str] = field(default_factory=list)
    interpolate: int | None = None
    output: Path = Path(".")
    overwrite: bool = False
    seed: Seed | None = None
    takes: Count = 1


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio generate",
        description="Make sounds from texts, images and videos.",
        epilog=EPILOG,
        flags=FLAGS,
        groups=GENERATION_GROUPS,
    )
    queries = _queries(given)
    settings = given.settings
    check_settings(queries, settings)
    check_model(given.model)
    check_model(settings.weak_model)
    sounds = _sounds(queries, given)
    _check_readable([part for query in queries for part in query.all_parts], settings)
    durations_s = dict.fromkeys(queries, settings.duration_s)
    is_video = given.output.suffix.lower() in VIDEO_CONTAINERS and not given.output.is_dir()
    if is_video:
        of_pictures = {query: _picture_duration_s(query, given.output) for query in queries}
        if not _has_duration(given, arguments):
            durations_s = of_pictures
            too_long = next((query for query in queries if durations_s[query] > MAX_DURATION_S), None)
            if too_long:
                raise UserError(
                    f"{too_long.video}: lasts {durations_s[too_long]:g} s, and a sound at most {MAX_DURATION_S:g} s; "
                    "give --duration"
                )
    paths = output_paths(
        [query.name for query, _ in sounds],
        given.output,
        plot=given.plot,
        overwrite=given.overwrite,
    )

    from tqdm import tqdm

    from diffaudio.generation.batch import (
        Item,
        choose_device,
        choose_dtype,
        load_pipeline,
        progress_callback,
        render,
    )

    device = choose_device(given.device)
    dtype = choose_dtype(given.dtype, device)
    items = [Item(query, seed, path) for (query, seed), path in zip(sounds, paths, strict=True)]
    pipe = load_pipeline(given.model, device, dtype)
    groups: dict[float, list[Item]] = {}
    for item in items:
        groups.setdefault(durations_s[item.query], []).append(item)
    num_batches = sum(-(-len(group) // given.batch_size) for group in groups.values())
    with progress_callback(num_batches) as on_step:
        for duration_s, group in groups.items():
            lasting = replace(settings, duration_s=duration_s)
            for item in render(pipe, group, lasting, batch_size=given.batch_size, plot=given.plot, on_step=on_step):
                tqdm.write(f"{item.path} ({duration_s:g} s, seed {item.seed})")


def _queries(given: Options) -> list[Query]:
    conditions = given.prompts, given.image, given.video
    if not any(conditions):
        raise UserError("command line: a prompt must be given, or --image or --video")
    if given.interpolate is not None:
        return interpolation(given.interpolate, *conditions)
    return parse_queries(*conditions)


def _sounds(queries: Sequence[Query], given: Options) -> list[tuple[Query, int]]:
    """Each sound's query and seed; those of an interpolation start from the same noise."""
    first = secrets.randbelow(2**31) if given.seed is None else given.seed
    if given.interpolate is not None:
        return [(query, (first + take) % 2**63) for take in range(given.takes) for query in queries]
    repeated = (query for query in queries for _ in range(given.takes))
    return [(query, (first + index) % 2**63) for index, query in enumerate(repeated)]


def _check_readable(parts: Iterable[Part], settings: GenerationSettings) -> None:
    """Read all images and videos once, before anything heavy is imported.

    Raises:
        UserError: one cannot be read.
    """
    files = {(part.kind, part.content) for part in parts if part.kind != "text"}
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


def _has_duration(given: Options, arguments: Sequence[str]) -> bool:
    is_changed = given.generation.duration_s != GenerationSettings.duration_s  # in a file of settings
    return is_changed or any(argument.partition("=")[0] == "--duration" for argument in arguments)


def _picture_duration_s(query: Query, output: Path) -> float:
    """The duration of the picture that a query's sound is put under.

    Raises:
        UserError: the query has no video or several, or the output cannot hold the picture.
    """
    if query.video is None:
        raise UserError(
            f"{output}: needs the picture of exactly one video, and '{query.name}' has none or several; add --video, "
            f"or write a sound ({', '.join(FORMATS)})"
        )

    from diffaudio.media.dubbing import check_dubbing

    return round(check_dubbing(query.video, output).duration_s, 3)
