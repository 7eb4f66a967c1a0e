"""Clips as waveforms for training: decoded once, then mapped into memory.

    samples.s16     all clips one after the other, [channels, samples] each, 16 bits, full scale at 1
    index.parquet   id, source, first value and number of samples of each clip
    made_from.json  names and checksums of the corpus' parts, sample rate, channels and peak

Without it each crop would decode a FLAC, resample it, and read a row group of Parquet. An hour takes 173 MB a channel
at 24 kHz, on disk; processes share what the system holds of it in memory.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from diffaudio.atomic_io import atomic_folder
from diffaudio.corpus import store
from diffaudio.corpus.augment import AugmentSettings, augment_sound
from diffaudio.corpus.datasets.sound_folder import is_sound_folder, read_windows, sound_files
from diffaudio.corpus.datasets.splits import is_held_out
from diffaudio.errors import UserError
from diffaudio.media.audio import decode_flac, mix_channels, resample, scale_to_peak

__all__ = ["WaveformDataset", "decode_corpus", "draw_crops", "read_waveforms", "waveform_parts"]

FULL_SCALE = 32767


def read_waveforms(
    corpus: Path, parts: Sequence[Path], *, sample_rate: int, audio_channels: int, peak: float
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """The usable clips of some parts of a corpus, in the form that training reads.

    Args:
        corpus: folder of clips, made by `diffaudio prepare`, or of sound files.
        parts: see `waveform_parts`.
        peak: each clip is scaled so that its largest sample is this, as `diffaudio encode` does.

    Yields:
        id and source of a clip, and its waveform [audio_channels, samples].

    Raises:
        ValueError: the folder is no corpus of clips.
    """
    if is_sound_folder(corpus):
        for path in parts:
            source = path.relative_to(corpus).as_posix()
            for start_s, waveform, rate in read_windows(path):
                waveform = resample(mix_channels(waveform, audio_channels), rate, sample_rate)
                yield {"id": f"{source}@{start_s:g}", "source": source}, scale_to_peak(waveform, peak)
        return
    store.read_manifest(corpus, *store.FORMATS["clips"])
    for part in parts:
        for rows in store.read_groups(part, ["id", "source", "audio"]):
            for row in rows:
                waveform, rate = decode_flac(row.pop("audio"))
                waveform = resample(mix_channels(waveform, audio_channels), rate, sample_rate)
                yield row, scale_to_peak(waveform, peak)


def waveform_parts(corpus: Path) -> list[Path]:
    """What `read_waveforms` reads, in order: the parts of a corpus of clips, or the files of a folder of sounds.

    Raises:
        UserError: the folder is no corpus of clips and holds no sound.
    """
    if is_sound_folder(corpus):
        return sound_files(corpus)
    store.read_manifest(corpus, *store.FORMATS["clips"])
    return store.part_files(corpus, "clips")


def decode_corpus(
    corpus: Path, folder: Path, *, sample_rate: int, audio_channels: int, peak: float, progress: bool = False
) -> None:
    """Decode all clips of a corpus into `folder`, unless it holds them already; the module's header lists the files.

    Args:
        corpus: folder of clips, made by `diffaudio prepare`, or of sound files.
        peak: each clip is scaled so that its largest sample is this.
        progress: whether to show a bar.

    Raises:
        ValueError: the folder is no corpus of clips, or holds none.
    """
    parts = waveform_parts(corpus)
    made_from = {
        "parts": [[part.relative_to(corpus).as_posix(), store.checksum(part)] for part in parts],
        "sample_rate": sample_rate, "audio_channels": audio_channels, "peak": peak,
    }  # fmt: skip
    note = folder / "made_from.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == made_from:
        return
    rows: list[dict[str, Any]] = []
    with atomic_folder(folder) as temporary:
        with (temporary / "samples.s16").open("wb") as file:
            first = 0
            settings: dict[str, Any] = {"sample_rate": sample_rate, "audio_channels": audio_channels, "peak": peak}
            clips = read_waveforms(corpus, parts, **settings)
            for row, waveform in tqdm(clips, desc="decoding", unit="clip", disable=not progress):
                file.write((waveform.clamp(-1, 1) * FULL_SCALE).round().short().numpy().tobytes())
                rows.append(row | {"first": first, "num_samples": waveform.shape[1]})
                first += waveform.numel()
        if not rows:
            raise UserError(f"{corpus}: holds no clips of sound; see its dropped.csv, or the warnings above")
        pq.write_table(pa.Table.from_pylist(rows), temporary / "index.parquet")
        (temporary / "made_from.json").write_text(json.dumps(made_from), encoding="utf-8")


class WaveformDataset:
    """The clips that `decode_corpus` wrote; `dataset[i]` is one of them, [audio_channels, samples] float32.

    Args:
        folder: that `decode_corpus` wrote.
        held_out: share of the sources that are held out from training; see `splits.is_held_out`.
        split: which side to open.

    Attributes:
        sample_rate: in Hz.
        audio_channels: 1 or 2.
        ids, sources: of each clip.

    Raises:
        ValueError: this side holds no clips.
    """

    def __init__(self, folder: Path, *, held_out: float = 0.0, split: Literal["train", "held_out"] = "train") -> None:
        made_from = json.loads((folder / "made_from.json").read_text(encoding="utf-8"))
        self.sample_rate: int = made_from["sample_rate"]
        self.audio_channels: int = made_from["audio_channels"]
        index = pq.read_table(folder / "index.parquet")
        sources: list[str] = index["source"].to_pylist()
        sides = np.array([is_held_out(source, held_out) for source in sources]) == (split == "held_out")
        if not sides.any() and split == "train":
            raise UserError(f"held_out {held_out:g} leaves no clips to train on; lower it")
        if not sides.any():
            raise UserError(f"held_out {held_out:g} holds out none of {len(set(sources))} sources; raise it")
        index = index.filter(pa.array(sides))
        self.ids: list[str] = index["id"].to_pylist()
        self.sources: list[str] = index["source"].to_pylist()
        self._firsts, self._sizes = index["first"].to_numpy(), index["num_samples"].to_numpy()
        self._samples = np.memmap(folder / "samples.s16", np.int16, mode="r")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, clip: int) -> Tensor:
        return self.segment(clip, 0, self.num_samples(clip))

    def num_samples(self, clip: int) -> int:
        """Length of a clip."""
        return int(self._sizes[clip])

    def segment(self, clip: int, start: int, num_samples: int) -> Tensor:
        """[audio_channels, num_samples] of a clip from sample `start` on; fewer where the clip ends earlier."""
        first, size = int(self._firsts[clip]), int(self._sizes[clip])
        whole = self._samples[first : first + self.audio_channels * size].reshape(self.audio_channels, size)
        return torch.from_numpy(whole[:, start : start + num_samples].astype(np.float32)) / FULL_SCALE


def draw_crops(
    dataset: WaveformDataset,
    clips: Sequence[int] | np.ndarray,
    *,
    num_samples: int,
    generator: torch.Generator,
    augment: AugmentSettings | None = None,
) -> Tensor:
    """A random segment of each clip; a shorter clip is put at a random place in silence.

    Args:
        clips: indices into the dataset.
        generator: a CPU generator; what is drawn depends on nothing else.
        augment: how the segments are augmented.

    Returns:
        [clips, audio_channels, num_samples]
    """
    num_source = num_samples
    if augment and augment.changes_sound:  # a segment that is played faster has to be longer before
        num_source = round(num_samples * (1 + augment.speed)) + 1 if augment.speed else num_samples
    crops = []
    for clip in map(int, clips):
        x = dataset.segment(clip, _below(dataset.num_samples(clip) - num_source + 1, generator), num_source)
        if augment and augment.changes_sound:
            x = augment_sound(x, dataset.sample_rate, augment, generator)[:, :num_samples]
        start = _below(num_samples - x.shape[1] + 1, generator)
        crops.append(F.pad(x, (start, num_samples - x.shape[1] - start)))
    return torch.stack(crops)


def _below(limit: int, generator: torch.Generator) -> int:
    """A whole number from 0 to below `limit`; 0 where there is none."""
    return int(torch.randint(max(1, limit), (), generator=generator))
