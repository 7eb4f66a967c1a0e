"""`diffaudio tag`: sound files -> what a classifier finds in them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffaudio.cli.options import check_exists
from diffaudio.config import Count, parse_command

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio tag`.

    Attributes:
        files: sounds and videos, and folders of them.
        backbone: yamnet (521 classes of AudioSet) or tagger (the bundled model's kinds), both bundled; or the file of
            musicnn (mtt.npz or msd.npz), or of PANNs Cnn14, or the folder of a tagger.
        top: how many tags of each sound, most probable first.
        json: print JSON instead of a table.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
    """

    files: list[Path]
    backbone: str = "yamnet"
    top: Count = 5
    json: bool = False
    device: str = "auto"


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio tag",
        description="Name what is to be heard in sound files, by a classifier.",
        epilog="Scores lie between 0 and 1. AudioSet's classes and music tags overlap, so theirs do not sum to 1.",
        flags={"files": ("file",)},
    )
    check_exists(*given.files)

    from diffaudio.evaluation.backbones import load_backbone
    from diffaudio.evaluation.sound_files import SoundFile, Texts, find_sounds, read_sounds
    from diffaudio.evaluation.tags import tag_sounds
    from diffaudio.generation.batch import choose_device

    files: list[SoundFile] = []
    for path in given.files:
        files += find_sounds(path) if path.is_dir() else [SoundFile(path, str(path), Texts())]
    backbone = load_backbone(given.backbone, choose_device(given.device))
    results = []
    for file, (_, tags) in zip(files, tag_sounds(backbone, read_sounds(files), top=given.top), strict=True):
        results.append({"file": str(file.path), "backbone": backbone.name, "tags": [asdict(tag) for tag in tags]})
        if not given.json:
            for line in _table(results[-1]):
                print(line)
    if given.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))


def _table(result: dict[str, Any]) -> list[str]:
    """A line for the file, and one for each tag."""
    return [result["file"], *(f"  {each['score']:.3f}  {each['tag']}" for each in result["tags"])]
