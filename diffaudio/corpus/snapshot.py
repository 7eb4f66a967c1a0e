"""A corpus of either kind as it is now, finished or not, opened for reading only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffaudio.corpus import latent_shards, store
from diffaudio.errors import UserError

__all__ = ["Corpus", "open_corpus"]


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk.

    Attributes:
        kind: "clips" or "latents".
        manifest: the content of manifest.json.
        parts: paths of the finished parts, in order.
    """

    folder: Path
    kind: str
    manifest: dict[str, Any]
    parts: list[Path]

    @property
    def finished(self) -> bool:
        """Whether all parts were written."""
        return bool(self.manifest.get("finished"))

    @property
    def made_by(self) -> str:
        """The command that makes such a corpus, and continues it."""
        return store.MADE_BY[store.FORMATS[self.kind][0]]

    def read_note(self, part: Path) -> dict[str, Any]:
        """The note that a part was written with.

        Raises:
            ValueError: the part is damaged.
        """
        return {"clips": store, "latents": latent_shards}[self.kind].read_note(part)


def open_corpus(folder: Path) -> Corpus:
    """Read the manifest of a corpus of either kind, and list its parts.

    Raises:
        ValueError: `folder` does not exist or is no corpus, or its manifest is damaged or of a version not read here.
    """
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "there is no such folder"
        raise UserError(f"{folder}: {what}; name the folder of a corpus")
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: is no corpus, manifest.json is missing; to look at media files, make a corpus of them with "
            "`diffaudio prepare`, whose dropped.csv says what is wrong with which"
        )
    try:
        format = json.loads(path.read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; run the command that made the corpus again") from error
    kinds = {name: (kind, version) for kind, (name, version) in store.FORMATS.items()}
    if format not in kinds:
        raise UserError(
            f"{folder}: is of format '{format}'; name a corpus that `diffaudio prepare` or `diffaudio encode` made"
        )
    kind, version = kinds[format]
    return Corpus(folder, kind, store.read_manifest(folder, format, version), store.part_files(folder, kind))
