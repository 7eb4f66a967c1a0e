"""`diffaudio generate`: texts, images and videos -> sound files."""

import argparse
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffaudio.cli.light_imports import light_imports
from diffaudio.cli.options import (
    GENERATION_FLAGS,
    GENERATION_GROUPS,
    GenerationOptions,
    check_adapters,
    check_model,
    parse_generation,
)
from diffaudio.config import Count, Seed
from diffaudio.diffusion.settings import MAX_DURATION_S, GenerationSettings
from diffaudio.errors import UserError
from diffaudio.generation.design_checks import check_design
from diffaudio.generation.output_paths import output_paths
from diffaudio.generation.query_media import check_readable, is_text_only
from diffaudio.generation.reproduce import Recipe, read_recipe
from diffaudio.generation.timeline import join_timed, parse_timeline
from diffaudio.media.audio_formats import FORMATS
from diffaudio.media.file_extensions import VIDEO_CONTAINERS
from diffaudio.queries.query import Part, Query, check_settings, interpolation, parse_queries

__all__ = ["run"]


FLAGS = GENERATION_FLAGS | {"prompts": ("prompt",), "output": ("-o", "--output"), "from_sidecar": ("--from",)}
WITHOUT_EFFECT_ON_SOUND = {"--from", "-o", "--output", "--overwrite", "--plot"}

EPILOG = (
    "Several texts, images and videos generate a sound each. With weights after all of them, they are mixed into one "
    'sound: "a dog barking::0.7" "rain::0.3", or --image photo.jpg::0.5 --video clip.mp4::0.5. With time ranges in '
    'seconds they follow each other in one sound: "rain @0-8" "thunder @5-9".'
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
        from_sidecar: the .json file beside a sound, to make it again; other options change what they name.
        variation_of: the .json file beside a sound, to make one like it, by --amount.
    """

    prompts: list[str] = field(default_factory=list)
    image: list[str] = field(default_factory=list)
    video: list[str] = field(default_factory=list)
    interpolate: int | None = None
    output: Path = Path(".")
    overwrite: bool = False
    seed: Seed | None = None
    takes: Count = 1
    from_sidecar: Path | None = None
    variation_of: Path | None = None


def run(arguments: list[str]) -> None:
    recipe = _recipe(arguments)
    given = parse_generation(
        Options,
        arguments,
        recipe=recipe,
        program="diffaudio generate",
        description="Make sounds from texts, images and videos.",
        epilog=EPILOG,
        flags=FLAGS,
        groups=GENERATION_GROUPS,
    )
    queries = _queries(given, recipe)
    settings = given.settings
    if recipe is not None and settings.edit is not None:
        recipe.check_inputs(settings.edit.recordings)
    check_settings(queries, settings)
    check_model(given.model)
    check_model(settings.weak_model)
    check_adapters(settings.lora)
    sounds = _sounds(queries, given, recipe)
    check_readable(queries, settings)
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
    for duration_s in set(durations_s.values()):
        prompts = [query.prompt for query in queries if durations_s[query] == duration_s]
        check_design(replace(settings, duration_s=duration_s), prompts, paths, plot=given.plot)

    with light_imports():
        from tqdm import tqdm

        from diffaudio.generation.batch import (
            Item,
            batches,
            choose_device,
            choose_dtype,
            load_pipeline,
            progress_callback,
            render,
        )

    device = choose_device(given.device)
    dtype = choose_dtype(given.dtype, device)
    place = _place(recipe, given, arguments)
    items = [Item(query, seed, path, place=place) for (query, seed), path in zip(sounds, paths, strict=True)]
    pipe = load_pipeline(given.model, device, dtype, settings.lora, text_only=is_text_only(queries, settings))
    groups: dict[float, list[Item]] = {}
    for item in items:
        groups.setdefault(durations_s[item.query], []).append(item)
    num_batches = sum(len(list(batches(group, settings, given.batch_size))) for group in groups.values())
    num_batches *= 1 + len(settings.layers)
    with progress_callback(num_batches) as on_step:
        for duration_s, group in groups.items():
            lasting = replace(settings, duration_s=duration_s)
            for item in render(pipe, group, lasting, batch_size=given.batch_size, plot=given.plot, on_step=on_step):
                tqdm.write(f"{item.path} ({duration_s:g} s, seed {item.seed})")


def _recipe(arguments: list[str]) -> Recipe | None:
    """The recipe of the sound that --from or --variation-of names."""
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    found.add_argument("--from", dest="again", type=Path)
    found.add_argument("--variation-of", type=Path)
    try:
        known, _ = found.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error}") from None
    if known.again is not None and known.variation_of is not None:
        raise UserError("command line: --from and --variation-of contradict each other; choose one")
    file = known.again or known.variation_of
    return None if file is None else read_recipe(file, variation=known.again is None)


def _place(recipe: Recipe | None, given: Options, arguments: list[str]) -> tuple[int, int] | None:
    """The place in a batch in which a sound is made again; None where something was changed."""
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
    is_changed = flags - WITHOUT_EFFECT_ON_SOUND or given.prompts
    return None if recipe is None or is_changed else recipe.place


def _queries(given: Options, recipe: Recipe | None) -> list[Query]:
    conditions = given.prompts, given.image, given.video
    if not any(conditions):
        if recipe is not None:
            return [recipe.query]
        raise UserError("command line: a prompt must be given, or --image or --video")
    prompts = join_timed(given.prompts)
    if parse_timeline(prompts[0] if prompts else "") is not None:
        if given.image or given.video or given.interpolate is not None:
            raise UserError("prompts with time ranges are texts of one sound; leave out images and --interpolate")
        return [Query((Part("text", prompts[0]),))]
    if given.interpolate is not None:
        return interpolation(given.interpolate, *conditions)
    return parse_queries(*conditions)


def _sounds(queries: Sequence[Query], given: Options, recipe: Recipe | None) -> list[tuple[Query, int]]:
    """Each sound's query and seed; those of an interpolation start from the same noise."""
    first = secrets.randbelow(2**31) if given.seed is None else given.seed
    if given.seed is None and recipe is not None and given.variation_of is None:
        first = recipe.seed
    if given.interpolate is not None:
        return [(query, (first + take) % 2**63) for take in range(given.takes) for query in queries]
    repeated = (query for query in queries for _ in range(given.takes))
    return [(query, (first + index) % 2**63) for index, query in enumerate(repeated)]


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
