"""From queries to files: code shared by `diffaudio generate` and sample/generate.py.

Each sound is written with a JSON sidecar of the same name that contains all its settings, the number of U-Net passes
(`passes`), the share of its spectrogram that was louder than any recording can be (`out_of_range`) and, under
`timing`, the run time of its batch; and with a spectrogram on request. If the sound exists, so do its companions. Its
seed alone determines the noise.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from diffaudio import __version__
from diffaudio.adapter_names import parse_adapter
from diffaudio.atomic_io import atomic_file
from diffaudio.checkpoint import load_weak_unet
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.file_names import shorten
from diffaudio.generation.design_checks import is_streamed
from diffaudio.generation.file_output import write_settled
from diffaudio.generation.sidecar import hashes_of, read_sidecar
from diffaudio.generation.sounds import Sounds, generate
from diffaudio.generation.timeline import parse_timeline
from diffaudio.media.file_extensions import VIDEO_CONTAINERS
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline, bundled_model
from diffaudio.queries.embedding import QueryEncoder
from diffaudio.queries.query import Query

__all__ = [
    "Batch",
    "Item",
    "batches",
    "choose_device",
    "choose_dtype",
    "is_generated",
    "load_pipeline",
    "process_device",
    "progress_callback",
    "query_encoder_for",
    "render",
    "sidecar",
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Item:
    """One sound to generate.

    Attributes:
        query: what it is generated from.
        path: its file, .wav or .flac, or a video with the picture of the query's own; the companions have the same name
            with .json and .png.
        label: its class, for evaluation.
        place: the index in a batch, and the size of the batch, in which the sound is to be made again; None is any.
    """

    query: Query
    seed: int
    path: Path
    label: str | None = None
    place: tuple[int, int] | None = None


@dataclass(frozen=True)
class Batch:
    """Sounds that are generated together, and the indices of those that are wanted."""

    items: Sequence[Item]
    wanted: Sequence[int]


def choose_device(name: str) -> torch.device:
    """Choose a device, and check that it is available.

    Args:
        name: 'auto' (CUDA, else MPS, else CPU), 'cpu', 'mps', 'cuda', or one GPU such as 'cuda:1'.

    Raises:
        ValueError: the device is not available.
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        there = ["cuda", *there, *(f"cuda:{index}" for index in range(gpus))]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        raise UserError(f"device '{name}' is not available here; choose from auto, {', '.join(there)}")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The U-Net's dtype; 'auto' is float16 on CUDA and float32 elsewhere.

    Raises:
        ValueError: the name is unknown, or the device is a CPU, which does not compute in float16.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UserError(f"dtype '{name}' is unknown; choose from auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise UserError("dtype 'float16' needs a GPU; on a CPU choose float32")
    return DTYPES[name]


def process_device(name: str, state: Any) -> torch.device:
    """The device of one of several processes launched together.

    Args:
        name: as for `choose_device`; 'auto' gives each process its own device.
        state: the result of `diffaudio.distributed.join_processes`.

    Raises:
        ValueError: the device is not available, or several processes would share it.
    """
    if state.num_processes > 1 and name not in ("auto", "cpu"):
        raise UserError(f"device '{name}' is one for {state.num_processes} processes; leave --device at auto")
    return torch.device(state.device or "cpu") if name == "auto" else choose_device(name)


def load_pipeline(
    model: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    lora: Sequence[str] = (),
    *,
    text_only: bool = False,
) -> DiffAudioPipeline:
    """Load a model (None: the bundled model) onto a device.

    Args:
        lora: adapters to add, see `parse_adapter`.
        text_only: leave out CLIP's image tower, which saves seconds.

    Raises:
        UserError: the model or an adapter cannot be loaded.
    """
    pipe = DiffAudioPipeline.from_pretrained(model or bundled_model(), dtype=dtype, text_only=text_only)
    for adapter in lora:
        pipe.load_lora(*parse_adapter(adapter))
    return pipe.to(device)


@contextmanager
def progress_callback(num_batches: int) -> Iterator[Callable[..., None]]:
    """A progress bar of sampling steps on a terminal, as `callback_on_step_end` for `num_batches` calls."""
    # the delay hides the bar until there is a step to show, so that it appears below any warning
    with tqdm(unit="step", delay=1e-3, leave=False, disable=not sys.stderr.isatty()) as bar:

        def on_step(pipe: DiffAudioPipeline, step: int, timestep: Any, latents: Any) -> None:
            bar.total = num_batches * pipe.num_timesteps
            bar.update()

        yield on_step


def sidecar(pipe: DiffAudioPipeline, item: Item, settings: GenerationSettings, encoder: QueryEncoder) -> dict[str, Any]:
    """All settings needed to reproduce a sound, and the bridge and templates that its texts passed."""
    label = {} if item.label is None else {"label": item.label}
    recordings = [] if settings.edit is None else settings.edit.recordings
    inputs = {"inputs": hashes_of(recordings)} if recordings else {}
    has_text = item.query.has_text or settings.negative_prompt is not None or bool(settings.layers)
    of_texts = encoder.describe() if has_text else dict.fromkeys(encoder.describe())
    return {
        "prompt": item.query.prompt,
        **label,
        "query": item.query.to_json(),
        "seed": item.seed,
        **settings.to_json(),
        **of_texts,
        **inputs,
        "sample_rate": pipe.autoencoder.sample_rate,
        "model": pipe.name_or_path,
        "device": pipe.device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "version": __version__,
    }


def is_generated(item: Item, settings: GenerationSettings, model: str | None, *, plot: bool = False) -> bool:
    """Whether the item's sound already exists and was generated with the same settings.

    Args:
        model: None accepts any.
        plot: whether a spectrogram is also to be written.

    Raises:
        UserError: an unrelated file would be overwritten, or the sound was generated with other settings.
    """
    companion = item.path.with_suffix(".json")
    if not item.path.exists():
        in_the_way = [companion, *([item.path.with_suffix(".png")] if plot else [])]
        # a run that was killed leaves the companions of the sound it was writing
        if any(path.exists() for path in in_the_way) and not _is_sidecar(companion):
            path = next(path for path in in_the_way if path.exists())
            raise UserError(f"{path}: would be overwritten, and is not of a generated sound; choose another folder")
        return False
    if not companion.is_file():
        raise UserError(f"{item.path}: exists without its {companion.name}; remove it, or write to another folder")
    found = read_sidecar(companion)
    found.setdefault("query", {"parts": [{"text": found["prompt"], "weight": 1.0}]})  # older versions had texts only
    wanted = {"query": item.query.to_json(), "seed": item.seed, **settings.to_json()}
    if model is not None:
        wanted["model"] = model
    changed = [
        f"{key} was {_described(key, found.get(key))}, now {_described(key, value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if changed:
        raise UserError(
            f"{item.path}: was made with other settings ({'; '.join(changed)}); use the same, or another folder"
        )
    return True


def _described(key: str, value: Any) -> str:
    if key == "query":
        with suppress(UserError):
            value = Query.from_json(value).name
    return shorten(str(value))


def _is_sidecar(file: Path) -> bool:
    try:
        return file.is_file() and bool(read_sidecar(file))
    except UserError:
        return False


def batches(
    items: Sequence[Item], settings: GenerationSettings, batch_size: int, *, by_kind: bool = False
) -> Iterator[Batch]:
    """Items in batches; one by one where a sound has a timeline, is streamed, or has a place in a batch.

    A sound is made again in its place: in a batch of that size, at that index, between copies of itself.

    Args:
        by_kind: separate queries with a text from others, for a U-Net that is conditioned on the bridge's noise level.
    """
    together = list[Item]()
    for item in items:
        size = 1 if item.place is None else item.place[1]
        alone = item.place is not None or is_streamed(settings) or parse_timeline(item.query.prompt or "") is not None
        other_kind = by_kind and bool(together) and together[0].query.has_text != item.query.has_text
        if together and (alone or other_kind or len(together) == batch_size):
            yield Batch(together, range(len(together)))
            together = []
        if alone:
            yield Batch([item] * size, [0 if item.place is None else item.place[0]])
        else:
            together.append(item)
    if together:
        yield Batch(together, range(len(together)))


def query_encoder_for(pipe: DiffAudioPipeline, settings: GenerationSettings) -> QueryEncoder:
    """What computes the embeddings of queries with these settings."""
    return pipe.query_encoder(
        bridge=settings.bridge, templates=settings.templates or None, image_bridge=settings.image_bridge
    )


def render(
    pipe: DiffAudioPipeline,
    items: Sequence[Item],
    settings: GenerationSettings,
    *,
    batch_size: int,
    query_embeds: Mapping[Query, torch.Tensor] | None = None,
    weak_unet: UNet1D | None = None,
    plot: bool = False,
    on_step: Callable[..., Any] | None = None,
) -> Iterator[Item]:
    """Generate sounds and write them, `batch_size` at a time; each is yielded once its files are written.

    Args:
        query_embeds: [embedding_dim] for each query, as returned by `QueryEncoder.encode_queries`; None computes them.
        weak_unet: U-Net of the settings' weaker model; None loads it if they name one.
        plot: also draw each sound's spectrogram.
        on_step: the pipeline's `callback_on_step_end`.

    Raises:
        ValueError: see `DiffAudioPipeline.__call__`.
    """
    if weak_unet is None and settings.weak_model is not None:
        weak_unet = load_weak_unet(settings.weak_model, pipe.components)
    encoder = query_encoder_for(pipe, settings)
    negative = encoder.encode_negative(prompt=settings.negative_prompt, image=settings.negative_image)
    has_levels = bool(pipe.unet.config["embedding_noise_level"])
    for batch in batches(items, settings, batch_size, by_kind=has_levels):
        began = time.perf_counter()
        sounds = generate(
            pipe,
            [item.query for item in batch.items],
            [item.seed for item in batch.items],
            settings,
            encoder=encoder,
            query_embeds=query_embeds,
            negative_prompt_embeds=negative,
            weak_unet=weak_unet,
            callback_on_step_end=on_step,
        )
        seconds = time.perf_counter() - began
        for index in batch.wanted:
            item = batch.items[index]
            sound, rate = sounds.of(index)
            file_rate = settings.file.sample_rate if settings.file else None
            description = sidecar(pipe, item, settings, encoder) | {"sample_rate": file_rate or rate}
            timing = {"batch_seconds": round(seconds, 4), "batch_size": len(batch.items), "batch_index": index}
            describe = partial(_with_facts, description, sounds, index, timing)
            _write(item, sound, describe, settings, rate, plot)
            yield item


def _with_facts(description: dict[str, Any], sounds: Sounds, index: int, timing: dict[str, Any]) -> dict[str, Any]:
    """A sidecar with what is known once a sound has been made."""
    share = round(sounds.output.out_of_range[index], 6)
    return description | {"passes": sounds.output.num_passes, "out_of_range": share, "timing": timing}


def _write(
    item: Item,
    sound: torch.Tensor | Iterator[torch.Tensor],
    describe: Callable[[], dict[str, Any]],
    settings: GenerationSettings,
    sample_rate: int,
    plot: bool,
) -> None:
    """Write the sound and its companions: all of them, or none if one cannot be written.

    Args:
        sound: [channels, samples], or an iterator over such pieces.
        describe: the sidecar, once the sound has been made.
        sample_rate: of the sound.
    """
    with ExitStack() as together:  # exits in reverse order, so the sound is renamed last
        target = together.enter_context(atomic_file(item.path))
        companion = together.enter_context(atomic_file(item.path.with_suffix(".json")))
        if plot:
            from diffaudio.media.spectrogram_plot import write_spectrogram  # matplotlib is slow to import

            assert isinstance(sound, torch.Tensor)
            picture = together.enter_context(atomic_file(item.path.with_suffix(".png")))
            write_spectrogram(picture, sound, sample_rate, title=f"{shorten(item.query.name)} (seed {item.seed})")
        if item.path.suffix.lower() not in VIDEO_CONTAINERS:
            write_settled(target, sound, sample_rate, settings)
        else:
            from diffaudio.media.dubbing import dub

            assert item.query.video is not None
            with TemporaryDirectory() as folder:
                write_settled(Path(folder, "sound.wav"), sound, sample_rate, settings)
                dub(item.query.video, Path(folder, "sound.wav"), target)
        description = json.dumps(describe(), indent=2, ensure_ascii=False)
        companion.write_text(description + "\n", encoding="utf-8")
