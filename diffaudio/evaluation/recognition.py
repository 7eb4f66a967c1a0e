"""Whether a classifier recognises each sound as what it should be, and how often by kind.

Three sets are compared: recordings, their reconstruction by a model's autoencoder, and what the model generates. What
the first are recognised less than always is the classifier's; what the second are less than the first is the
autoencoder's; the rest is that of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffaudio.evaluation.backbones.base import Kinds
from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.measure import TOP
from diffaudio.metrics.classification import is_in_top, label_of_text
from diffaudio.metrics.confidence import wilson

__all__ = ["Recognised", "by_kind", "is_recognised", "markdown_table"]


@dataclass(frozen=True)
class Recognised:
    """How many of n sounds are recognised."""

    count: int
    n: int

    def __str__(self) -> str:
        return f"{self.count} of {self.n}"

    def with_interval(self) -> str:
        """The share with its interval of 95 % (Wilson)."""
        if self.n == 0:
            return "none"
        interval = wilson(self.count / self.n, self.n)
        return f"{self.count / self.n:.2f} ({interval.low:.2f} to {interval.high:.2f}) of {self.n}"


def is_recognised(embedded: AudioEmbeddings, backbone: str) -> list[bool | None]:
    """For each sound, whether it is recognised as its label or prompt; None where the classifier has no such kind.

    Args:
        backbone: name of a classifier whose classes have names. One with a table of kinds is right with one of the
            kind's classes among the first five, others with the most probable class.
    """
    kinds, top = embedded.kinds.get(backbone), TOP
    if kinds is None:
        kinds, top = Kinds({each: [index] for index, each in enumerate(embedded.classes[backbone])}, []), 1
    names, logits = list(kinds.classes), embedded.logits[backbone]
    results: list[bool | None] = []
    for index, text in enumerate(embedded.wanted()):
        place = label_of_text(text, names)
        right = kinds.classes[names[place]] if place >= 0 else []
        row = logits[index : index + 1]
        results.append(bool(is_in_top(row, [right], ignored=kinds.ignored, top=top)[0]) if right else None)
    return results


def by_kind(embedded: AudioEmbeddings, backbone: str) -> dict[str, Recognised]:
    """By label, or prompt where there is none; sounds of kinds that the classifier does not know are left out."""
    found: dict[str, list[bool]] = {}
    for kind, right in zip(embedded.wanted(), is_recognised(embedded, backbone), strict=True):
        if kind is not None and right is not None:
            found.setdefault(kind, []).append(right)
    return {kind: Recognised(sum(found[kind]), len(found[kind])) for kind in sorted(found)}


def markdown_table(sets: Mapping[str, Mapping[str, Recognised]], kinds: Sequence[str]) -> str:
    """A line for each kind and a last one for all, a column for each set.

    Args:
        sets: by the name of the column, the result of `by_kind`.
    """
    lines = [f"| kind | {' | '.join(sets)} |", f"|---|{'---|' * len(sets)}"]
    for kind in kinds:
        cells = [str(found[kind]) if kind in found else "–" for found in sets.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    totals = [
        Recognised(sum(each.count for each in found.values()), sum(each.n for each in found.values()))
        for found in sets.values()
    ]
    lines.append(f"| **all** | {' | '.join(total.with_interval() for total in totals)} |")
    return "\n".join(lines) + "\n"
