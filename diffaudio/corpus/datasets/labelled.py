"""Clips in memory with labels: from a list, or by CLIP on their frames.

Taggers, which evaluation uses, are trained on them; nothing that generates sound reads labels.
"""

import io
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffaudio.corpus import store
from diffaudio.corpus.datasets.splits import is_held_out
from diffaudio.errors import UserError
from diffaudio.media.audio import decode_flac, mix_channels, read_audio, resample
from diffaudio.media.file_extensions import MEDIA_SUFFIXES
from diffaudio.tables import read_csv

__all__ = [
    "OUTLIER_KIND",
    "LabelledClips",
    "label_by_clip",
    "read_labelled_clips",
    "read_labels",
    "split_by_source",
    "with_outliers",
]

OUTLIER_KIND = "none of these"
AUDIO_SUFFIXES = (".aac", ".aif", ".aiff", ".flac", ".mp3", ".oga", ".opus", ".wav", *MEDIA_SUFFIXES)


@dataclass
class LabelledClips:
    """Clips with their classes.

    Attributes:
        kinds: names of the classes.
        sources: the file each clip was cut from.
        waveforms: [samples] each, float16 (115 MB an hour at 16 kHz).
        targets: [clips, kinds], probabilities of the classes; rows sum to 1.
        sample_rate: in Hz.
    """

    kinds: list[str]
    sources: list[str]
    waveforms: list[Tensor]
    targets: Tensor
    sample_rate: int

    def __len__(self) -> int:
        return len(self.sources)

    def subset(self, indices: list[int]) -> "LabelledClips":
        """The clips at these indices."""
        sources, waveforms = [self.sources[i] for i in indices], [self.waveforms[i] for i in indices]
        return replace(self, sources=sources, waveforms=waveforms, targets=self.targets[indices])


def read_labels(path: Path) -> dict[str, str]:
    """File -> label, from a CSV with columns `file` and `label`.

    Raises:
        ValueError: it is not there, lacks a column, or names a file twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such list of labels")
    with path.open("rb") as file:
        columns, lines = read_csv(file, str(path))
        missing = [column for column in ("file", "label") if column not in columns]
        if missing:
            raise UserError(f"{path}: column '{missing[0]}' is missing; wanted are 'file' and 'label'")
        rows = [(row["file"], row["label"]) for _, row in lines]
    twice = [name for name, count in Counter(name for name, _ in rows).items() if count > 1]
    if twice:
        raise UserError(f"{path}: '{twice[0]}' is there more than once; leave one row a file")
    return dict(rows)


def read_labelled_clips(corpus: Path, labels: dict[str, str], *, sample_rate: int) -> LabelledClips:
    """The clips whose source has a label.

    Raises:
        ValueError: the folder is no corpus of clips, or none of its sources has a label.
    """
    rows = [row for row in _read_sounds(corpus, sample_rate) if row[0] in labels]
    if not rows:
        example = next(iter(labels), "none at all")
        raise UserError(f"{corpus}: none of the labelled files (such as {example}) is a source of this corpus")
    kinds = sorted({labels[source] for source, _ in rows})
    truth = torch.tensor([kinds.index(labels[source]) for source, _ in rows])
    targets = F.one_hot(truth, len(kinds)).float()
    sources, waveforms = [source for source, _ in rows], [waveform for _, waveform in rows]
    return LabelledClips(kinds, sources, waveforms, targets, sample_rate)


@torch.no_grad()
def label_by_clip(corpus: Path, clip: Any, kinds: list[str], *, sample_rate: int, temperature: float) -> LabelledClips:
    """All clips, with the probabilities of the classes by CLIP, averaged over their frames.

    Args:
        clip: a `Clip`.
        kinds: names of the classes, as prompts for CLIP.
        temperature: divides the similarities before the softmax.
    """
    texts = clip.encode_text(kinds)
    sources, targets = [], []
    for part in _clip_parts(corpus):
        for rows in store.read_groups(part, ["source", "frames"]):
            for row in rows:
                pictures = [Image.open(io.BytesIO(frame["image"])) for frame in row["frames"]]
                similarity = clip.encode_image(pictures) @ texts.T
                targets.append((similarity / temperature).softmax(dim=1).mean(dim=0).cpu())
                sources.append(row["source"])
    waveforms = [waveform for _, waveform in _read_sounds(corpus, sample_rate)]
    return LabelledClips(kinds, sources, waveforms, torch.stack(targets), sample_rate)


def with_outliers(clips: LabelledClips, folder: Path) -> LabelledClips:
    """Add the recordings of a folder as examples of one more kind, the last one: `OUTLIER_KIND`.

    Args:
        folder: sounds and videos of none of the kinds, searched recursively.

    Raises:
        ValueError: the folder is not there or holds no sound, one of them cannot be read, or a label has that name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of outliers")
    if OUTLIER_KIND in clips.kinds:
        raise UserError(f"'{OUTLIER_KIND}' is the name of the kind for outliers; give that label another name")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()]
    if not paths:
        raise UserError(f"{folder}: holds no sound; looked for {', '.join(AUDIO_SUFFIXES)}")
    waveforms = []
    for path in paths:
        waveform, rate = read_audio(path)
        waveforms.append(resample(mix_channels(waveform, 1), rate, clips.sample_rate)[0].half())
    targets = F.pad(clips.targets, (0, 1))
    outliers = F.one_hot(torch.full((len(paths),), len(clips.kinds)), len(clips.kinds) + 1).to(targets)
    return LabelledClips(
        [*clips.kinds, OUTLIER_KIND],
        [*clips.sources, *(path.relative_to(folder).as_posix() for path in paths)],
        [*clips.waveforms, *waveforms],
        torch.cat([targets, outliers]),
        clips.sample_rate,
    )


def split_by_source(clips: LabelledClips, held_out: float) -> tuple[LabelledClips, LabelledClips]:
    """Split into training and held-out clips; all clips of a source are on the same side.

    Args:
        held_out: share of the sources; see `splits.is_held_out`.
    """
    sides = [is_held_out(source, held_out) for source in clips.sources]
    train, out = ([i for i, side in enumerate(sides) if side is is_out] for is_out in (False, True))
    return clips.subset(train), clips.subset(out)


def _clip_parts(corpus: Path) -> list[Path]:
    store.read_manifest(corpus, *store.FORMATS["clips"])
    return store.part_files(corpus, "clips")


def _read_sounds(corpus: Path, sample_rate: int) -> list[tuple[str, Tensor]]:
    """Source and mono waveform [samples] of each clip."""
    sounds = []
    for part in _clip_parts(corpus):
        for rows in store.read_groups(part, ["source", "audio"]):
            for row in rows:
                waveform, rate = decode_flac(row["audio"])
                sounds.append((row["source"], resample(mix_channels(waveform, 1), rate, sample_rate)[0].half()))
    if not sounds:
        raise UserError(f"{corpus}: the corpus holds no clips")
    return sounds
