"""From queries to files: code shared by `diffaudio generate` and sample/generate.py.

Each sound is written with a JSON sidecar of the same name that contains all its settings, the number of U-Net passes
(`passes`), the share of its spectrogram that was louder than any recording can be (`out_of_range`) and, under
`timing`, the run time of its batch; and with a spectrogram on request. If the sound exists, so do its companions. Its
seed alone determines the noise.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from diffaudio import __version__
from diffaudio.atomic_io import atomic_file
from diffaudio.checkpoint import load_weak_unet
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.file_names import shorten
from diffaudio.media.audio import write_audio
from diffaudio.media.file_extensions import VIDEO_CONTAINERS
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline, bundled_model
from diffaudio.pipeline_inputs import embedding_noise_level
from diffaudio.query import Query
from diffaudio.query_embedding import QueryEncoder

__all__ = [
    "Item",
    "choose_device",
    "choose_dtype",
    "is_generated",
    "load_pipeline",
    "pipeline_arguments",
    "process_device",
    "progress_callback",
    "query_encoder_for",
    "read_sidecar",
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
    """

    query: Query
    seed: int
    path: Path
    label: str | None = None


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


def load_pipeline(model: str | Path | None, device: torch.device, dtype: torch.dtype) -> DiffAudioPipeline:
    """Load a model (None: the bundled model) onto a device."""
    return DiffAudioPipeline.from_pretrained(model or bundled_model(), dtype=dtype).to(device)


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
    """All settings needed to reproduce a sound, and what the model's own bridge and templates were."""
    label = {} if item.label is None else {"label": item.label}
    return {
        "prompt": item.query.prompt,
        **label,
        "query": item.query.to_json(),
        "seed": item.seed,
        **settings.to_json(),
        **encoder.describe(),
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


def read_sidecar(file: Path) -> dict[str, Any]:
    """The settings in the sidecar of a generated sound.

    Raises:
        UserError: the file is damaged, or is not the companion of a sound.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{file}: is not valid JSON; remove it together with its sound") from None
    if not isinstance(found, dict) or not {"prompt", "seed"} <= found.keys():
        raise UserError(f"{file}: is not the companion of a generated sound; remove it, or write to another folder")
    return found


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


def pipeline_arguments(settings: GenerationSettings) -> dict[str, Any]:
    """The arguments of a pipeline call for these settings, except those that `query_encoder_for` takes, and the weaker
    model, which must be loaded first.
    """
    return {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "guidance": settings.guidance,
        "audio_length_in_s": settings.duration_s,
        "sampler": settings.sampler,
        "spacing": settings.spacing,
        "eta": settings.eta,
        "loudness": settings.loudness,
    }


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
    for batch in _batches(items, batch_size, by_kind=has_levels):
        queries = [item.query for item in batch]
        level = None
        if has_levels:
            level = embedding_noise_level(None, encoder.bridge, pipe.unet, of_text=queries[0].has_text)
        began = time.perf_counter()
        if query_embeds is None:
            embeddings = encoder.encode_queries(queries, warn_if_far=True)
        else:
            embeddings = torch.stack([query_embeds[query] for query in queries])
        output = pipe(
            prompt_embeds=embeddings,
            negative_prompt_embeds=negative,
            embedding_noise=level,
            **pipeline_arguments(settings),
            weak_unet=weak_unet,
            generator=[torch.Generator().manual_seed(item.seed) for item in batch],
            callback_on_step_end=on_step,
        )
        waveforms = output.audios.cpu()  # waits for the device
        timing = {"batch_seconds": round(time.perf_counter() - began, 4), "batch_size": len(batch)}
        for item, waveform, share in zip(batch, waveforms, output.out_of_range, strict=True):
            facts = {"passes": output.num_passes, "out_of_range": round(share, 6), "timing": timing}
            _write(item, waveform, sidecar(pipe, item, settings, encoder) | facts, plot)
            yield item


def _batches(items: Sequence[Item], batch_size: int, *, by_kind: bool) -> Iterator[Sequence[Item]]:
    """Consecutive items.

    Args:
        by_kind: separate queries with a text from others, for a U-Net that is conditioned on the bridge's noise level.
    """
    for _, group in itertools.groupby(items, key=lambda item: by_kind and item.query.has_text):
        same = list(group)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


def _write(item: Item, waveform: torch.Tensor, description: dict[str, Any], plot: bool) -> None:
    """Write the sound and its companions: all of them, or none if one cannot be written."""
    sample_rate = description["sample_rate"]
    with ExitStack() as together:  # exits in reverse order, so the sound is renamed last
        sound = together.enter_context(atomic_file(item.path))
        companion = together.enter_context(atomic_file(item.path.with_suffix(".json")))
        if plot:
            from diffaudio.media.spectrogram_plot import write_spectrogram  # matplotlib is slow to import

            picture = together.enter_context(atomic_file(item.path.with_suffix(".png")))
            write_spectrogram(picture, waveform, sample_rate, title=f"{shorten(item.query.name)} (seed {item.seed})")
        companion.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if item.path.suffix.lower() not in VIDEO_CONTAINERS:
            write_audio(sound, waveform, sample_rate)
            return
        from diffaudio.media.dubbing import dub

        assert item.query.video is not None
        with TemporaryDirectory() as folder:
            write_audio(Path(folder, "sound.wav"), waveform, sample_rate)
            dub(item.query.video, Path(folder, "sound.wav"), sound)
