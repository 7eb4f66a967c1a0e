"""Which of AudioSet's classes stand for the kinds of sound that labels name: the table in configs/audioset."""

from functools import cache
from pathlib import Path

import yaml

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Kinds
from diffaudio.metrics.classification import label_key

__all__ = ["are_audiosets", "find_bundled", "read_kinds"]

TABLE = "configs/audioset/kinds.yaml"


def read_kinds(labels: list[str]) -> Kinds:
    """The table of kinds in configs/audioset, as numbers of the classes `labels`.

    Raises:
        ValueError: it names a class that there is not.
    """
    path = find_bundled(TABLE)
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    numbers = {name: index for index, name in enumerate(labels)}
    unknown = {name for names in [*described["kinds"].values(), described["generic"]] for name in names} - set(labels)
    if unknown:
        raise UserError(f"{path}: {min(unknown)} is not a class of the class map")
    classes = {label_key(kind): [numbers[name] for name in names] for kind, names in described["kinds"].items()}
    return Kinds(classes, [numbers[name] for name in described["generic"]])


def are_audiosets(labels: list[str]) -> bool:
    """Whether a classifier's classes have AudioSet's names, so that the table can be used with it."""
    described = yaml.safe_load(find_bundled(TABLE).read_text(encoding="utf-8"))
    return {name for names in [*described["kinds"].values(), described["generic"]] for name in names} <= set(labels)


@cache
def find_bundled(path: str) -> Path:
    """A file that comes with diffaudio: in the installed package, or in the repository beside it."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package, package.parent):
        if (folder / path).is_file():
            return folder / path
    raise UserError(f"this installation of diffaudio lacks {path}; install it again, or name another backbone")
