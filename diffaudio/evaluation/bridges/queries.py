"""The queries that bridges are compared by: labelled clips, each asked for by its label's words and by its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.evaluation.reference import choose_evenly
from diffaudio.evaluation.sound_files import Texts
from diffaudio.seeding import seeded_generator

__all__ = ["Queries", "labelled_queries"]


@dataclass(frozen=True)
class Queries:
    """Clips with a label.

    Attributes:
        labels: the distinct labels, sorted.
        kinds: [clips], the number of each clip's label.
        pictures: [clips, dim], the mean embedding of each clip's pictures, unit norm.
        names: of the clips: source file and start.
        sources: source file of each.
    """

    labels: list[str]
    kinds: Tensor
    pictures: Tensor
    names: list[str]
    sources: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def label(self, index: int) -> str:
        """Of one clip."""
        return self.labels[int(self.kinds[index])]

    def choose(self, count: int, seed: int) -> "Queries":
        """`count` of the clips, of all labels as evenly as can be; all where there are fewer."""
        chosen = choose_evenly([self.label(index) for index in range(len(self))], count, seed)
        return Queries(
            self.labels,
            self.kinds[chosen],
            self.pictures[chosen],
            [self.names[index] for index in chosen],
            [self.sources[index] for index in chosen],
        )

    def partners(self, seed: int) -> Tensor:
        """[clips]: for each clip the index of another one of its label, of another source where there is one; or -1."""
        generator = seeded_generator(seed, "partners")
        partners = torch.full((len(self),), -1)
        for index in range(len(self)):
            others = [
                other
                for other in (self.kinds == self.kinds[index]).nonzero().flatten().tolist()
                if self.sources[other] != self.sources[index]
            ]
            if others:
                partners[index] = others[int(torch.randint(len(others), (), generator=generator))]
        return partners


def labelled_queries(dataset: LatentDataset, texts: Mapping[str, Texts]) -> Queries:
    """The clips of an encoded corpus that have a label, with the embeddings of their pictures.

    Args:
        texts: labels by file name without suffix, as `read_texts` gives them.

    Raises:
        ValueError: no clip has a label, or all have the same.
    """
    found: list[tuple[int, str, str, str]] = []
    for clip, row in enumerate(dataset.describe_all("source", "start_s")):
        source = Path(row["source"])
        of_source = texts.get(source.with_suffix("").as_posix()) or texts.get(source.stem)
        label = of_source and (of_source.label or of_source.prompt)
        if label:
            found.append((clip, label, f"{source.as_posix()} {row['start_s']:g} s", row["source"]))
    labels = sorted({label for _, label, _, _ in found})
    if len(labels) < 2:
        named = ", ".join(map(str, dataset.folders))
        raise UserError(f"{named}: the table of labels gives its clips {len(labels)} labels; at least 2 are needed")
    pictures = [dataset[clip]["embeddings"].mean(dim=0) for clip, _, _, _ in found]
    return Queries(
        labels,
        torch.tensor([labels.index(label) for _, label, _, _ in found]),
        F.normalize(torch.stack(pictures), dim=-1),
        [name for _, _, name, _ in found],
        [source for _, _, _, source in found],
    )
