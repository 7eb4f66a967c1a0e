"""`diffaudio evaluate kinds`: recordings, round trip and generated sounds of every kind, in a table and on a page."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import (
    GENERATION_FLAGS,
    GENERATION_GROUPS,
    GenerationOptions,
    check_adapters,
    check_exists,
    check_model,
)
from diffaudio.config import Count, Seed, parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from diffaudio.evaluation.embed import Sound
    from diffaudio.evaluation.sound_files import SoundFile

__all__ = ["run"]


@dataclass(kw_only=True)
class Options(GenerationOptions):
    """The options of `diffaudio evaluate kinds`.

    Attributes:
        recordings: folder of labelled recordings, sounds or videos, searched recursively.
        labels: CSV with the columns file and label, for the recordings.
        output: folder for the sounds, the table (kinds.md, kinds.json) and the page (index.html); new or empty.
        per_kind: how many recordings of each kind, at most.
        takes: how many sounds are generated of each kind.
        backbone: the classifier: yamnet or tagger (both bundled), or another that `diffaudio evaluate` takes.
        kinds: evaluate only these labels (default: all).
        seed: random seed of the choice of recordings, and of the first sound; each further sound uses the next integer.
    """

    recordings: Path
    labels: Path | None = None
    output: Path
    per_kind: Count = 4
    takes: Count = 1
    backbone: str = "yamnet"
    kinds: list[str] = field(default_factory=list)
    seed: Seed = 0


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio evaluate kinds",
        description="How often a classifier recognises recordings, the same after the autoencoder's round trip, and "
        "what the model generates: one table for all kinds, and a page to listen to them side by side.",
        epilog="The prompt of a generated sound is its kind's name.",
        flags=GENERATION_FLAGS | {"recordings": ("recordings",), "output": ("-o", "--output")},
        groups=GENERATION_GROUPS,
    )
    check_exists(given.recordings, given.labels)
    check_model(given.model)
    settings = given.settings
    check_adapters(settings.lora)
    if given.output.exists() and (not given.output.is_dir() or any(given.output.iterdir())):
        raise UserError(f"{given.output}: holds something already; name a folder that is new or empty")

    from diffaudio.evaluation.backbones import load_backbone
    from diffaudio.evaluation.embed import Embedder
    from diffaudio.evaluation.kinds import SoundSet, choose_recordings, write_recordings, write_results
    from diffaudio.generation.batch import choose_device, choose_dtype, load_pipeline

    device = choose_device(given.device)
    backbone = load_backbone(given.backbone, device)
    if backbone.labels is None:
        raise UserError(f"{backbone.name}: is no classifier whose classes have names; choose yamnet or tagger")
    chosen = choose_recordings(_find_recordings(given), given.per_kind, seed=given.seed)
    pipe = load_pipeline(given.model, device, choose_dtype(given.dtype, device), settings.lora)
    recordings, reconstructed = write_recordings(chosen, pipe.autoencoder, given.output)
    generated = _generate(given, pipe, sorted({str(file.texts.label) for file in chosen}))
    embedder = Embedder([backbone])
    sets = {
        column: SoundSet(embedder.embed(_with_progress(files, column)), [file.path for file in files])
        for column, files in (("recordings", recordings), ("round_trip", reconstructed), ("generated", generated))
    }
    facts = {
        "model": given.model or "bundled model", "backbone": backbone.name, "recordings per kind": given.per_kind,
        "takes": given.takes, "seed": given.seed, "sampler": settings.sampler, "steps": settings.steps,
        "guidance scale": settings.guidance_scale,
    }  # fmt: skip
    print(write_results(given.output, sets, backbone.name, facts), end="")
    print(f"{given.output / 'kinds.md'}, {given.output / 'index.html'}: to read and to listen")


def _find_recordings(given: Options) -> "list[SoundFile]":
    """The recordings of the kinds that were asked for."""
    from diffaudio.evaluation.sound_files import find_sounds, read_texts

    files = find_sounds(given.recordings, read_texts(given.labels) if given.labels else {})
    if not given.kinds:
        return files
    unknown = set(given.kinds) - {str(file.texts.label) for file in files}
    if unknown:
        raise UserError(f"--kinds: no recording is labelled {min(unknown)!r}")
    return [file for file in files if file.texts.label in given.kinds]


def _generate(given: Options, pipe: Any, kinds: list[str]) -> "list[SoundFile]":
    """Some sounds of each kind, with the kind's name as the prompt."""
    from diffaudio.evaluation.kinds import file_of
    from diffaudio.evaluation.sound_files import SoundFile, Texts
    from diffaudio.generation.batch import Item, progress_callback, render
    from diffaudio.queries.query import Part, Query

    wanted = [(kind, take) for kind in kinds for take in range(given.takes)]
    items = []
    for index, (kind, take) in enumerate(wanted):
        path, seed = file_of(given.output, "generated", kind, take + 1), (given.seed + index) % 2**63
        items.append(Item(Query((Part("text", kind),)), seed, path, kind))
    (given.output / "generated").mkdir(parents=True, exist_ok=True)
    with progress_callback(-(-len(items) // given.batch_size)) as on_step:
        for _ in render(pipe, items, given.settings, batch_size=given.batch_size, plot=given.plot, on_step=on_step):
            pass
    return [SoundFile(item.path, f"generated/{item.path.stem}", Texts(item.label, item.label)) for item in items]


def _with_progress(files: "Sequence[SoundFile]", what: str) -> "Iterator[Sound]":
    from tqdm import tqdm

    from diffaudio.evaluation.sound_files import read_sounds

    bar = {"desc": what, "unit": "sound", "leave": False, "delay": 1e-3, "disable": not sys.stderr.isatty()}
    return iter(tqdm(read_sounds(files), total=len(files), **bar))
