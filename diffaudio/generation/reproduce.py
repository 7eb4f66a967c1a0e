"""Sounds made again, changed or varied, from the JSON beside them.

A sidecar holds all settings under the names of `GenerationSettings`, what the sound was generated from (`query`), the
hash of each file that was read (`inputs`), and the place of the sound in its batch (`timing`), on which the last bits
of its samples depend.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.generation.sidecar import hash_of, read_sidecar
from diffaudio.queries.query import Query

__all__ = ["Recipe", "read_recipe"]


@dataclass(frozen=True)
class Recipe:
    """What a sound was made from.

    Attributes:
        options: settings as in a YAML file of `diffaudio generate`.
        inputs: the SHA-256 hash of each file.
        place: the index of the sound in its batch, and the size of the batch.
    """

    file: Path
    query: Query
    seed: int
    options: dict[str, Any]
    inputs: dict[str, str]
    place: tuple[int, int]

    def check_inputs(self, needed: Iterable[Path]) -> None:
        """Check that files that are still needed have not changed.

        Raises:
            UserError: one has changed, or is missing.
        """
        for path in {str(path) for path in needed} & self.inputs.keys():
            if not Path(path).is_file():
                raise UserError(f"{path}: {self.file} was made from it, and it is no longer there")
            if hash_of(Path(path)) != self.inputs[path]:
                raise UserError(
                    f"{path}: has changed since {self.file} was made from it; restore it, or name another recording"
                )


def read_recipe(file: Path, *, variation: bool = False) -> Recipe:
    """Read the JSON beside a sound.

    Args:
        variation: whether the sound is to be varied; its seed then becomes `variation_seed`.

    Raises:
        UserError: the file is missing, damaged, or is not the companion of a sound; or it cannot be varied.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; name the .json file beside a sound")
    if file.suffix.lower() != ".json":
        raise UserError(f"{file}: is no .json file; name the one beside the sound")
    found = read_sidecar(file)
    described = found.get("query", {"parts": [{"text": found["prompt"], "weight": 1.0}]})
    if not isinstance(found["seed"], int):
        raise UserError(f"{file}: its seed is no whole number; it is damaged")
    query = Query.from_json(described, where=str(file))
    generation: dict[str, Any] = {
        each.name: found[each.name] for each in fields(GenerationSettings) if each.name in found
    }
    generation = {name: value for name, value in generation.items() if value is not None or name == "loudness"}
    guidance: dict[str, Any] = dict(generation.pop("guidance", {}))
    options: dict[str, Any] = {name: found[name] for name in ("model", "device", "dtype") if found.get(name)}
    if "zero_init" in guidance:  # an option of its own
        options["zero_init"] = guidance.pop("zero_init")
    for name in ("edit", "file"):
        if name in generation:
            section = generation[name]
            generation[name] = {key: value for key, value in section.items() if value not in (None, [], False)}
    if variation:
        generation["edit"] = generation.get("edit", {}) | {"variation_seed": _seed_to_vary(file, found)}
    timing = found.get("timing", {})
    return Recipe(
        file,
        query,
        found["seed"],
        options | {"generation": generation | ({"guidance": guidance} if guidance else {})},
        found.get("inputs") or {},
        (timing.get("batch_index", 0), timing.get("batch_size", 1)),
    )


def _seed_to_vary(file: Path, found: dict[str, Any]) -> int:
    edit = found.get("edit") or {}
    if edit.get("variation_seed") is not None:
        raise UserError(
            f"{file}: is a variation itself; vary the sound that it is made of, of seed {edit['variation_seed']}"
        )
    return found["seed"]
