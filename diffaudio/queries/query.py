"""Queries: what a sound is generated from. Texts, images and videos, alone, mixed by weights or interpolated.

    rain                                  a text
    a dog barking::0.7   rain::0.3        two parts of one mixture, each with its weight
    a dog barking::0.7 rain::0.3          the same mixture, written as one text

Weights are numbers above 0; only their ratios matter. The module imports no torch, so that a command can check its
queries at once; `diffaudio.queries.embedding` computes their embeddings.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from diffaudio.diffusion.settings import GenerationSettings, check_prompt
from diffaudio.errors import UserError

__all__ = [
    "Kind",
    "Part",
    "Query",
    "check_settings",
    "interpolation",
    "mixture",
    "parse_parts",
    "parse_queries",
    "queries_of",
]

Kind = Literal["text", "image", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SEPARATOR = "::"


@dataclass(frozen=True)
class Part:
    """A part of a query.

    Attributes:
        content: a text; for an image or a video a file, or anything that `diffaudio.media.images` reads.
        weight: its share of the mixture, relative to the weights of the other parts.

    Raises:
        UserError: the text is empty, or the weight is not a finite number above 0.
    """

    kind: Kind
    content: Any
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"a query cannot contain a '{self.kind}'; choose from {', '.join(KINDS)}")
        if self.kind == "text":
            check_prompt(self.content)
        if not 0 < self.weight < math.inf:
            raise UserError(f"the weight of a query's {self.kind} is {self.weight}; a number above 0 is needed")

    @property
    def name(self) -> str:
        """The text, or the name of the file."""
        if self.kind == "text":
            return self.content
        return Path(self.content).stem if isinstance(self.content, str | Path) else self.kind


@dataclass(frozen=True)
class Query:
    """What one sound is generated from: the weighted mean of the embeddings of its parts.

    Attributes:
        to: the parts of a second mixture; the query then lies between the two.
        position: 0 (the first mixture) to 1 (the second), along the great circle between their embeddings.

    Raises:
        UserError: there are no parts, or the position has no effect or is out of range.
    """

    parts: tuple[Part, ...]
    to: tuple[Part, ...] = ()
    position: float = 0.0

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("the query is empty; give a text, an image or a video")
        if not 0 <= self.position <= 1:
            raise UserError(f"the position of an interpolation is {self.position}; it must be 0 to 1")
        if self.position and not self.to:
            raise UserError("the position has no effect without a second mixture to interpolate to")

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The parts of both mixtures."""
        return (*self.parts, *self.to)

    @property
    def has_text(self) -> bool:
        return any(part.kind == "text" for part in self.all_parts)

    @property
    def prompt(self) -> str | None:
        """The text of a query that is a single text, otherwise None."""
        (first, *others) = self.all_parts
        return first.content if first.kind == "text" and not others else None

    @property
    def video(self) -> Path | None:
        """The file of the only video in the query; None if there is no video or there are several."""
        videos = [part.content for part in self.all_parts if part.kind == "video"]
        return Path(videos[0]) if len(videos) == 1 and isinstance(videos[0], str | Path) else None

    @property
    def name(self) -> str:
        """A description for people, and for file names."""
        ends = [" + ".join(part.name for part in parts) for parts in (self.parts, self.to) if parts]
        return " to ".join(ends)

    def to_json(self) -> dict[str, Any]:
        """The query as JSON; `from_json` restores it. Images and videos must be files."""
        described: dict[str, Any] = {"parts": [_part_to_json(part) for part in self.parts]}
        if self.to:
            described |= {"to": [_part_to_json(part) for part in self.to], "position": self.position}
        return described

    @classmethod
    def from_json(cls, described: Any, where: str = "query") -> "Query":
        """Restore a query from JSON.

        Args:
            where: prefix of the error message.

        Raises:
            UserError: it is not the description of a query.
        """
        try:
            to = tuple(_part_from_json(part) for part in described.get("to", ()))
            return cls(tuple(_part_from_json(part) for part in described["parts"]), to, described.get("position", 0.0))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            detail = f" ({error})" if isinstance(error, UserError) else ""
            raise UserError(f"{where}: is not the description of a query{detail}") from None


def queries_of(
    prompt: Any = None, image: Any = None, video: Any = None, weights: Sequence[float] | None = None
) -> list[Query]:
    """The queries of a call of the pipeline.

    Args:
        prompt: a text or a `Query`, or a list of them; each is a query.
        image: an image or a list of them; each is a query.
        video: one video, a query.
        weights: of all texts, images and the video, in this order; they then are the parts of a single query.

    Raises:
        UserError: nothing or several of them are given without weights, a list is empty, a text is empty, or the
            number of weights is another than that of the parts.
    """
    conditions = {"prompt": prompt, "image": image, "video": video}
    names = [name for name, value in conditions.items() if value is not None]
    if weights is None and len(names) != 1:
        hint = "; to mix them, give their weights" if names else ""
        raise UserError(
            f"give one of {', '.join([*conditions, 'prompt_embeds'])}, not {' and '.join(names) or 'none'}{hint}"
        )
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [] if prompt is None else [prompt]
    images = image if isinstance(image, list) else [] if image is None else [image]
    if prompt is not None and not prompts:
        raise UserError("the list of prompts is empty")
    if image is not None and not images:
        raise UserError("the list of pictures is empty")
    contents = _in_order(prompts, images, [] if video is None else [video])
    if weights is None:
        return [each if isinstance(each, Query) else Query((Part(kind, each),)) for each, kind in contents]
    if len(weights) != len(contents):
        raise UserError(f"{len(weights)} weights for {len(contents)} texts, images and videos; give one for each")
    if any(isinstance(each, Query) for each, _ in contents):
        raise UserError("weights mix texts, images and a video; a Query has its own weights")
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise UserError(f"weights are {list(weights)}; give a number above 0 for each") from None
    pairs = zip(contents, numbers, strict=True)
    return [Query(tuple(Part(kind, content, weight) for (content, kind), weight in pairs))]


def check_settings(queries: Sequence[Query], settings: GenerationSettings) -> None:
    """Reject settings that have no effect on these queries.

    Raises:
        UserError: there is no text that a bridge or templates could change, or no image that an image bridge could.
    """
    kinds = {part.kind for query in queries for part in query.all_parts}
    kinds |= {"text"} if settings.negative_prompt is not None or settings.layers else set()
    kinds |= {"image"} if settings.negative_image is not None else set()
    if "text" not in kinds and (settings.templates or settings.bridge is not None):
        name = "templates have" if settings.templates else f"bridge '{settings.bridge}' has"
        raise UserError(f"{name} no effect without a text; leave it out")
    if kinds == {"text"} and settings.image_bridge is not None:
        raise UserError(f"image bridge '{settings.image_bridge}' has no effect without an image or a video")


def mixture(texts: Iterable[str] = (), images: Iterable[str] = (), videos: Iterable[str] = ()) -> Query:
    """One query of all of these, each "content::weight"; without any weights, all have the same.

    Raises:
        UserError: there is nothing, a weight cannot be parsed, or some parts have a weight and others do not.
    """
    return _mixture([_Parsed(argument, kind) for argument, kind in _in_order(texts, images, videos)])


def parse_queries(texts: Sequence[str] = (), images: Sequence[str] = (), videos: Sequence[str] = ()) -> list[Query]:
    """The queries of a command line: one for each text, image and video, or one mixture of all if they have weights.

    Raises:
        UserError: a weight cannot be parsed, or some parts have a weight and others do not.
    """
    parsed = [_Parsed(argument, kind) for argument, kind in _in_order(texts, images, videos)]
    if any(each.has_weights for each in parsed):
        return [_mixture(parsed)]
    return [Query(each.parts) for each in parsed]


def interpolation(
    count: int, texts: Sequence[str] = (), images: Sequence[str] = (), videos: Sequence[str] = ()
) -> list[Query]:
    """`count` queries at equal distances from one to another, both included; each end may be a mixture in one text.

    Raises:
        UserError: `count` is below 2, or there are not two queries.
    """
    ends = [_mixture([_Parsed(argument, kind)]) for argument, kind in _in_order(texts, images, videos)]
    if len(ends) != 2:
        raise UserError(f"an interpolation goes from one query to another, but {len(ends)} were given; give two")
    if count < 2:
        raise UserError(f"an interpolation of {count} has no two ends; give 2 or more")
    first, last = ends
    return [Query(first.parts, last.parts, index / (count - 1)) for index in range(count)]


def parse_parts(argument: str, kind: Kind = "text") -> tuple[Part, ...]:
    """Parse "content::weight", "content" with a weight of 1, or a text of several such parts.

    Raises:
        UserError: a content is empty, a weight is not a number above 0, or a part of several lacks its weight.
    """
    return _Parsed(argument, kind).parts


class _Parsed:
    """An argument's parts, and whether they were given weights."""

    def __init__(self, argument: str, kind: Kind) -> None:
        self.argument = argument
        self.has_weights = SEPARATOR in argument
        if not self.has_weights:
            pairs = [(argument, "1")]
        elif kind == "text":
            pairs = _split(argument)
        else:
            content, _, weight = argument.rpartition(SEPARATOR)
            pairs = [(content, weight)]
        self.parts = tuple(_part(argument, kind, content, weight) for content, weight in pairs)


def _in_order(texts: Iterable[Any], images: Iterable[Any], videos: Iterable[Any]) -> list[tuple[Any, Kind]]:
    return [(each, kind) for kind, group in zip(KINDS, (texts, images, videos), strict=True) for each in group]


def _mixture(parsed: Sequence[_Parsed]) -> Query:
    weighted = next((each for each in parsed if each.has_weights), None)
    lacking = next((each for each in parsed if not each.has_weights), None)
    if weighted and lacking:
        raise UserError(
            f"'{weighted.argument}' has a weight and '{lacking.argument}' has none; give every part of a mixture its "
            f"weight, such as '{lacking.argument}{SEPARATOR}1', or none at all"
        )
    return Query(tuple(part for each in parsed for part in each.parts))


def _split(text: str) -> list[tuple[str, str]]:
    """Content and weight of each part of "a dog::0.7 rain::0.3"."""
    pairs, end = list[tuple[str, str]](), 0
    for match in re.finditer(rf"{SEPARATOR}(\S*)\s*", text):
        pairs.append((text[end : match.start()], match[1]))
        end = match.end()
    if text[end:].strip() and pairs[-1][1]:  # an empty weight has an error of its own
        raise UserError(
            f"'{text}': '{text[end:].strip()}' has no weight; write '{SEPARATOR}' and a number above 0 after each part"
        )
    return pairs


def _part(argument: str, kind: Kind, content: str, weight: str) -> Part:
    if not content.strip():
        if SEPARATOR not in argument and kind == "text":
            check_prompt(argument)  # says that a prompt is empty
        raise UserError(f"'{argument}': the {kind} is empty; write it before '{SEPARATOR}' and its weight")
    try:
        value = float(weight)
    except ValueError:
        raise UserError(
            f"'{argument}': the weight '{weight}' is not a number; write the {kind}, '{SEPARATOR}' and a number above 0"
        ) from None
    if not 0 < value < math.inf:
        raise UserError(f"'{argument}': the weight is {weight}; a number above 0 is needed")
    return Part(kind, content.strip() if SEPARATOR in argument and kind == "text" else content, value)


def _part_to_json(part: Part) -> dict[str, Any]:
    return {part.kind: str(part.content), "weight": part.weight}


def _part_from_json(described: dict[str, Any]) -> Part:
    kind: Any
    (kind,) = described.keys() - {"weight"}
    if not isinstance(described[kind], str):
        raise TypeError
    return Part(kind, described[kind], float(described["weight"]))
