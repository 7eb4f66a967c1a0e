"""Clips -> latents and CLIP embeddings: what training reads, so that it needs neither sound nor pictures.

Every part of the clips becomes one part of latents. Running again does what is missing or has changed. Several
processes share the parts by their place in the list. Each clip is brought to the same peak first: recordings differ
in level by 40 dB for reasons that no picture shows.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from diffaudio.corpus import store
from diffaudio.corpus.encode.rows import Encoders, EncodeSettings, encoded_rows
from diffaudio.corpus.prepare import run as prepare
from diffaudio.errors import UserError

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
"""


@dataclass(frozen=True)
class EncodeReport:
    """What an encoded corpus holds, and what this run took.

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
        corpus: folder that `prepare` has finished. Rows that are kept in it with a reason are left out.
        out: folder of the encoded corpus, made where it is missing.
        autoencoder: encodes the sound, resampled to its rate and mixed to its channels.
        clip: encodes the pictures.
        settings: what becomes of each clip.
        device: both models are moved there.
        batch_size: pieces of equal length, and pictures, that are encoded at once.
        num_threads: that read and lay out what comes next while the device computes.
        state: of the processes that share the work (`distributed.join_processes`); None is this one alone.
        progress: show a progress bar.

    Raises:
        ValueError: `corpus` is no finished corpus of clips, or `out` holds something else, or latents made by
            another autoencoder or CLIP, or with other settings.
    """
    settings = settings or EncodeSettings()
    if not store.read_manifest(corpus, prepare.FORMAT, prepare.VERSION)["finished"]:
        raise UserError(f"{corpus}: is not finished; run `diffaudio prepare` on it again first")
    rank, count = (state.process_index, state.num_processes) if state else (0, 1)
    encoders = Encoders(autoencoder.to(device).eval(), clip.to(device).eval(), device, batch_size, num_threads)
    manifest = _manifest(encoders, settings)
    _check(out, manifest)
    targets = {part: out / part.name.replace("clips", "latents", 1) for part in store.part_files(corpus, "clips")}
    missing = [part for part, target in targets.items() if not _is_encoded(part, target)]
    _wait(state)  # everybody looks before anybody begins, so that all know the same list
    if rank == 0:
        store.write_manifest(out, manifest)
    _wait(state)
    mine = missing[rank::count]
    clips_s, begin = sum(store.count_rows(part)[1] for part in mine), time.monotonic()
    with tqdm(total=round(clips_s), unit="s", disable=not progress) as bar:
        for part in mine:
            note = {"clips": part.name, "bytes": part.stat().st_size}
            store.write_part(targets[part], "latents", _rows(part, encoders, settings, bar), note)
    took_s = time.monotonic() - begin
    _wait(state)
    if rank == 0:
        manifest |= _totals(out) | {"finished": True}
        _write_card(out, manifest)
        store.write_manifest(out, manifest)
    _wait(state)
    manifest = store.read_manifest(out, FORMAT, VERSION)
    return EncodeReport(manifest, clips_s, took_s)


def _is_encoded(part: Path, target: Path) -> bool:
    """Whether a part was encoded as it is now: finding duplicates of new clips rewrites parts."""
    return target.exists() and store.read_note(target).get("bytes", part.stat().st_size) == part.stat().st_size


def _rows(part: Path, encoders: Encoders, settings: EncodeSettings, bar: Any) -> Iterator[dict[str, Any]]:
    """The rows of a part, told to the progress bar by the seconds of what was recorded."""
    clips = (row for rows in store.read_groups(part) for row in rows)
    for rows in encoded_rows(clips, encoders, settings):
        yield from rows
        bar.update(sum(row["duration_s"] for row in rows if row["copy"] == 0))


def _manifest(encoders: Encoders, settings: EncodeSettings) -> dict[str, Any]:
    """The manifest of a corpus that holds nothing yet."""
    autoencoder, clip = encoders.autoencoder, encoders.clip
    properties = ("name", "sample_rate", "audio_channels", "latent_channels", "latent_rate")
    made_by = {key: getattr(autoencoder, key) for key in properties} | {"weights": _fingerprint(autoencoder)}
    seen_by = {"name": clip.name, "embedding_dim": clip.embedding_dim, "weights": _fingerprint(clip)}
    head = {"format": FORMAT, "version": VERSION, "autoencoder": made_by, "clip": seen_by}
    return {**head, "settings": asdict(settings), "clips": 0, "seconds": 0.0, "finished": False}


def _check(out: Path, manifest: dict[str, Any]) -> None:
    """Make the folder, or see that what is there was made by the same models with the same settings."""
    if not (out / "manifest.json").is_file():
        store.make_folder(out)
        return
    before = store.read_manifest(out, FORMAT, VERSION)
    before["settings"] = asdict(EncodeSettings()) | before["settings"]  # older ones name fewer
    for key in ("autoencoder", "clip", "settings"):
        was, now = before[key], manifest[key]
        if was != now:
            names = [name for name in now if was.get(name) != now[name]]
            was, now = ({name: values.get(name) for name in names} for values in (was, now))
            raise UserError(
                f"{out}: was encoded with {key} {was}, now it is {now}; use the same, or write to another folder"
            )


def _fingerprint(model: nn.Module) -> str:
    """Tells models apart that have the same name, such as one trained again."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _totals(out: Path) -> dict[str, Any]:
    """Rows, copies among them, and seconds of both."""
    counts = [store.count_rows(part) for part in store.part_files(out, "latents")]
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
