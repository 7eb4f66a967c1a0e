"""Clips -> latents and CLIP embeddings: what training reads, so that it needs neither sound nor pictures.

Every part of the clips becomes one part of latents, which notes the checksum of the clips it was made from. Running
again encodes the parts that are missing or whose clips have changed, and deletes those whose clips are gone. Several
processes share the parts by their place in the list. Each clip is brought to the same peak first: recordings differ
in level by 40 dB for reasons that no picture shows.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffaudio.atomic_io import atomic_file
from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.encode.rows import Encoders, EncodeSettings, encoded_rows
from diffaudio.corpus.prepare import run as prepare
from diffaudio.corpus.weights_digest import describe_weights
from diffaudio.errors import UserError
from diffaudio.folder_lock import locked_folder

__all__ = ["EncodeReport", "EncodeSettings", "encode"]

FORMAT, VERSION = store.FORMATS["latents"]
CARD = """\
{clips} rows ({seconds:.0f} seconds of sound), encoded by `diffaudio encode` with the autoencoder {autoencoder}
({channels} channels, {rate:g} frames a second) and the CLIP {clip} (embeddings of {dim} numbers). The settings stand in
manifest.json.

| column | |
| --- | --- |
| id | of the clip |
| source, start_s, duration_s | the file it was cut from, and where, in seconds |
| caption | of the source, where one was given |
| copy | 0 as it was recorded, 1 and more augmented |
| num_latent_frames, num_pictures | how many of each |
| latents | {channels} channels, one after the other, of num_latent_frames numbers each |
| embeddings | of each picture |

The parts are Arrow streams, which are read where they lie, without a copy:

```python
datasets.load_from_disk("FOLDER")  # or Dataset.from_file("FOLDER/latents-00000.arrow") for one part
table = pyarrow.ipc.open_stream(pyarrow.memory_map("FOLDER/latents-00000.arrow")).read_all()
table.to_pandas()
duckdb.sql("select source, count(*) from halves group by source")  # with halves = table.drop_columns(["latents",
# "embeddings"]), as DuckDB knows no half precision; cast them to float32 to read them there
```
"""
LOCK_PATIENCE_S = 5.0  # a run that was just killed may take a moment to end


@dataclass(frozen=True)
class EncodeReport:
    """An encoded corpus, and what this run did.

    Attributes:
        manifest: of the corpus.
        clips_s: seconds of clips that this process encoded in this run, copies not counted.
        took_s: seconds that it took.
    """

    manifest: dict[str, Any]
    clips_s: float
    took_s: float


def encode(
    corpus: Path,
    out: Path,
    *,
    autoencoder: Any,
    clip: Any,
    settings: EncodeSettings | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    num_threads: int = 1,
    state: Any = None,
    progress: bool = True,
) -> EncodeReport:
    """Encode a corpus of clips; one begun in `out` is continued.

    Args:
        corpus: folder that `prepare` has finished. Rows that it keeps although a filter rejected them are left out.
        out: folder of the encoded corpus, made where it is missing, and locked while this runs.
        autoencoder: encodes the sound, resampled to its rate and mixed to its channels.
        clip: encodes the pictures.
        settings: how clips become rows.
        device: both models are moved there.
        batch_size: pieces of equal length, and pictures, that are encoded at once.
        num_threads: that read and augment the next clips while the device computes.
        state: of the processes that share the work (`distributed.join_processes`); None is this one alone.
        progress: show a progress bar.

    Raises:
        ValueError: `corpus` is no finished corpus of clips or is damaged; `out` holds something else, or latents made
            by another autoencoder or CLIP, or with other settings, or another process is writing to it; or latents or
            embeddings of a clip are not finite.
    """
    settings = settings or EncodeSettings()
    if not store.read_manifest(corpus, prepare.FORMAT, prepare.VERSION)["finished"]:
        raise UserError(f"{corpus}: is not finished; run `diffaudio prepare` on it again first")
    rank, count = (state.process_index, state.num_processes) if state else (0, 1)
    encoders = Encoders(autoencoder.to(device).eval(), clip.to(device).eval(), device, batch_size, num_threads)
    manifest = _manifest(encoders, settings)
    _check(out, manifest)
    is_main = rank == 0
    with locked_folder(out, "diffaudio encode", patience_s=LOCK_PATIENCE_S) if is_main else contextlib.nullcontext():
        targets = _targets(corpus, out)
        missing = [(part, target) for part, target in targets.items() if not _is_encoded(part, target)]
        _wait(state)  # all processes look before one begins, so that all have the same list
        if is_main:
            _check(out, manifest)  # again, as another process may have written here before the lock was taken
            store.write_manifest(out, manifest)
            for part in set(store.part_files(out, "latents")) - set(targets.values()):
                part.unlink()
        _wait(state)
        clips_s, took_s = _encode_parts(missing[rank::count], encoders, settings, progress)
        _wait(state)
        if is_main:
            _finish(out, manifest)
        _wait(state)
    return EncodeReport(store.read_manifest(out, FORMAT, VERSION), clips_s, took_s)


def _targets(corpus: Path, out: Path) -> dict[Path, Path]:
    """The part of latents that each part of the clips becomes."""
    suffix = store.SUFFIXES["latents"]
    parts = store.part_files(corpus, "clips")
    return {part: out / f"{part.stem.replace('clips', 'latents', 1)}{suffix}" for part in parts}


def _is_encoded(part: Path, target: Path) -> bool:
    """Whether a part was encoded from the clips as they are now: finding duplicates of new clips rewrites parts."""
    return target.exists() and latent_shards.read_note(target).get("checksum") == store.checksum(part)


def _encode_parts(
    parts: list[tuple[Path, Path]], encoders: Encoders, settings: EncodeSettings, progress: bool
) -> tuple[float, float]:
    """Encode these parts; returns the seconds of sound that were encoded, and those that it took."""
    clips_s, begin = sum(store.count_rows(part)[1] for part, _ in parts), time.monotonic()
    layout = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}, {rate_fmt}]"
    with tqdm(total=clips_s, unit="s", bar_format=layout, disable=not progress) as bar:
        for part, target in parts:
            note = {"clips": part.name, "checksum": store.checksum(part)}
            latent_shards.write_part(target, _rows(part, encoders, settings, bar), note)
    return clips_s, time.monotonic() - begin


def _rows(part: Path, encoders: Encoders, settings: EncodeSettings, bar: Any) -> Iterator[dict[str, Any]]:
    """The rows of a part; the progress bar counts the seconds of the recordings."""
    clips = (row for rows in store.read_groups(part) for row in rows)
    for rows in encoded_rows(clips, encoders, settings):
        yield from rows
        bar.update(sum(row["duration_s"] for row in rows if row["copy"] == 0))


def _finish(out: Path, manifest: dict[str, Any]) -> None:
    """Write what describes the whole corpus: card, `datasets`' own two files, and the finished manifest."""
    manifest = manifest | _totals(out) | {"finished": True}
    _write_card(out, manifest)
    parts = store.part_files(out, "latents")
    names = "".join(f"{part.name} {latent_shards.read_note(part)['checksum']}\n" for part in parts)
    state = {  # what `datasets.load_from_disk` reads; `_fingerprint` names its cached results
        "_data_files": [{"filename": part.name} for part in parts],
        "_fingerprint": hashlib.blake2b((names + json.dumps(manifest)).encode(), digest_size=8).hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    for name, content in (("state.json", state), ("dataset_info.json", {})):
        with atomic_file(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    store.write_manifest(out, manifest)


def _manifest(encoders: Encoders, settings: EncodeSettings) -> dict[str, Any]:
    """The manifest of a corpus that holds nothing yet."""
    autoencoder, clip = encoders.autoencoder, encoders.clip
    properties = ("name", "sample_rate", "audio_channels", "latent_channels", "latent_rate")
    made_by = {key: getattr(autoencoder, key) for key in properties} | describe_weights(autoencoder)
    encoded_by = {"name": clip.name, "embedding_dim": clip.embedding_dim} | describe_weights(clip)
    head = {"format": FORMAT, "version": VERSION, "autoencoder": made_by, "clip": encoded_by}
    return {**head, "settings": asdict(settings), "clips": 0, "seconds": 0.0, "finished": False}


def _check(out: Path, manifest: dict[str, Any]) -> None:
    """Make the folder, or check that its corpus was encoded by the same models with the same settings."""
    if not (out / "manifest.json").is_file():
        store.make_folder(out)
        return
    before = store.read_manifest(out, FORMAT, VERSION)
    for key in ("autoencoder", "clip", "settings"):
        was, now = before[key], manifest[key]
        if "half_weights" not in was:  # of an older version, which wrote `weights` only
            now = {name: value for name, value in now.items() if name != "half_weights"}
        if was != now:
            names = [name for name in now if was.get(name) != now[name]]
            was, now = ({name: values.get(name) for name in names} for values in (was, now))
            raise UserError(
                f"{out}: was encoded with {key} {was}, now it is {now}; use the same, or write to another folder"
            )


def _totals(out: Path) -> dict[str, Any]:
    """Number of rows, augmented copies included, and their seconds."""
    counts = [latent_shards.count_rows(part) for part in store.part_files(out, "latents")]
    return {"clips": sum(n for n, _ in counts), "seconds": round(sum(s for _, s in counts), 3)}


def _write_card(out: Path, manifest: dict[str, Any]) -> None:
    autoencoder, clip = manifest["autoencoder"], manifest["clip"]
    text = CARD.format(
        clips=manifest["clips"],
        seconds=manifest["seconds"],
        autoencoder=autoencoder["name"],
        channels=autoencoder["latent_channels"],
        rate=autoencoder["latent_rate"],
        clip=clip["name"],
        dim=clip["embedding_dim"],
    )
    store.write_card(out, "latents", "Latents of sound, with CLIP embeddings of its pictures", text)


def _wait(state: Any) -> None:
    if state is not None:
        state.wait_for_everyone()
