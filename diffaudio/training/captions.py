"""Labelled baseline: a corpus whose clips come with captions, to train a U-Net on text instead of pictures.

This is CLIPSonic's CLIP-TTA (Dong et al. 2023, arXiv:2306.09635, section 4): the same network, conditioned on the CLIP
embedding of a clip's caption. At query time the text embedding is used as it is, so the model needs no bridge. It shows
what labels are worth; diffaudio's own models are trained without any.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip, check_templates, fill

__all__ = ["CaptionSettings", "CaptionedDataset", "captions_of", "check_captions", "read_captions"]

CORPUS = "corpus"


@dataclass
class CaptionSettings:
    """Captions to train on instead of pictures: a labelled baseline.

    Attributes:
        source: a CSV file with a row for each caption, or "corpus" for the captions that the corpus itself holds; None
            trains on pictures.
        file_column: the column that names the clip's source file.
        text_column: the column with the caption.
        templates: sentences with {} as the placeholder of the caption, such as "the sound of {}"; one is drawn at each
            step. Empty uses CLIP's own.
    """

    source: str | None = None
    file_column: str = "file"
    text_column: str = "label"
    templates: list[str] = field(default_factory=list)


def check_captions(settings: CaptionSettings, bridge_kind: str) -> None:
    """Reject settings that have no effect, or a bridge that would displace text embeddings.

    Raises:
        ValueError: see above.
    """
    unset = CaptionSettings()
    if settings.source is None:
        for name in ("file_column", "text_column", "templates"):
            if getattr(settings, name) != getattr(unset, name):
                raise UserError(f"captions.{name} has no effect without captions.source; leave it out")
        return
    check_templates(settings.templates or ["{}"], "captions: ")
    if settings.source == CORPUS and (settings.file_column, settings.text_column) != (
        unset.file_column,
        unset.text_column,
    ):
        raise UserError("captions.file_column and captions.text_column have no effect with the corpus' own captions")
    if bridge_kind != "none":
        raise UserError(
            f"bridge.kind {bridge_kind} maps texts to pictures, but with captions the U-Net is trained on texts; "
            "set bridge.kind to none"
        )


def read_captions(path: Path, file_column: str, text_column: str) -> dict[str, list[str]]:
    """The captions of each file in a CSV table.

    Raises:
        ValueError: the table cannot be read, lacks a column or has an empty caption.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"captions.source: {path} cannot be read: {reason}") from None
    for column in (file_column, text_column):
        if column not in columns:
            raise UserError(f"captions.source: {path} has no column '{column}'; it has {', '.join(columns) or 'none'}")
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        text = (row[text_column] or "").strip()
        if not text:
            raise UserError(f"captions.source: {path}, line {number}: the caption is empty")
        captions.setdefault((row[file_column] or "").strip(), []).append(text)
    return captions


def captions_of(dataset: LatentDataset, settings: CaptionSettings) -> list[list[str]]:
    """The captions of each recording of a corpus, in the order of its clips.

    Raises:
        ValueError: a clip has none, or the table cannot be read.
    """
    table = None
    if settings.source != CORPUS:
        table = read_captions(Path(str(settings.source)), settings.file_column, settings.text_column)
    found, missing = [], []
    for row in dataset.describe_all("source", "caption"):
        source, caption = row["source"], row["caption"]
        if table is None:
            texts = [caption] if caption and caption.strip() else []
        else:
            texts = table.get(source) or table.get(Path(source).name) or []
        found.append(texts)
        missing += [] if texts else [source]
    if missing:
        raise UserError(
            f"captions.source: {settings.source} has no caption for {len(missing)} of {len(dataset)} clips, such as "
            f"{missing[0]}; add them, or prepare the corpus without these files"
        )
    return found


class CaptionedDataset(LatentDataset):
    """An encoded corpus in which text embeddings of captions take the place of the pictures' embeddings.

    Args:
        clip: encodes the captions.
        settings: where the captions are.
        folders, split: as for `LatentDataset`.

    Raises:
        ValueError: a clip has no caption, or what `LatentDataset` raises.
    """

    def __init__(self, clip: Clip, settings: CaptionSettings, *folders: str | Path, **split: Any) -> None:
        super().__init__(*folders, **split)
        captions = captions_of(self, settings)
        templates = tuple(settings.templates) or clip.templates
        texts = sorted({fill(template, text) for of_clip in captions for text in of_clip for template in templates})
        encoded = torch.cat([clip.encode_text(texts[i : i + 64]).cpu() for i in range(0, len(texts), 64)])
        number = {text: index for index, text in enumerate(texts)}
        self._texts = encoded.half().numpy()
        self._numbers = [[number[fill(t, text)] for text in of_clip for t in templates] for of_clip in captions]
        copies = np.diff(self.starts)
        self.rows["pictures"] = np.repeat([len(numbers) for numbers in self._numbers], copies)
        # where an embedding begins in its part is of no use here, so the field says which clip a row belongs to
        self.rows["embeddings"] = np.repeat(np.arange(len(self)), copies)

    def _embeddings(self, row: Any) -> np.ndarray:
        return self._texts[self._numbers[int(row["embeddings"])]]
