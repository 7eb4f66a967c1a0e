"""Bridges in CLIP's space: how close the texts that a bridge maps come to the pictures that they describe.

    t_k   mapped embedding of the text of kind k   [kinds, dim]
    m_i   embedding of clip i's pictures           [clips, dim]
    k(i)  kind of clip i

mean_distance      | mean_i t_k(i) - mean_i m_i |, the modality gap (Liang et al. 2022, arXiv:2203.02053, section 4.2)
pair_cosine        mean_i t_k(i) . m_i
recall_1, _5       share of texts for which one of the 1 or 5 nearest clips is of their kind
kind_accuracy      share of clips whose nearest text is that of their kind

For pictures as queries, t_k(i) is the embedding of another clip of the same kind and of another source: what two
pictures of one thing have in common. The recall then leaves out clips of the query's own source.
"""

import torch
from torch import Tensor

from diffaudio.evaluation.bridges.queries import Queries
from diffaudio.evaluation.table import Table

__all__ = ["measure_pictures", "measure_texts", "pair_cosines"]

COUNTS = (1, 5)


def measure_texts(texts: Tensor, queries: Queries, table: Table) -> None:
    """Measure texts as queries.

    Args:
        texts: t, [kinds, dim], unit norm, in the order of the queries' labels.
    """
    _add_pairs(texts[queries.kinds], queries.pictures, table)
    present = queries.kinds.unique()
    similarity = texts[present] @ queries.pictures.T
    for count in COUNTS:
        nearest = similarity.topk(min(count, len(queries)), dim=1).indices
        table.add_share(f"recall_{count}", (queries.kinds[nearest] == present[:, None]).any(dim=1).double())
    nearest_text = (queries.pictures @ texts.T).argmax(dim=1)
    table.add_share("kind_accuracy", (nearest_text == queries.kinds).double())


def measure_pictures(queries: Queries, table: Table, *, seed: int, mapped: Tensor | None = None) -> None:
    """Measure pictures as queries, by other clips of the same kind.

    Args:
        mapped: [clips, dim], the pictures' embeddings after a bridge, where one maps pictures too.
    """
    mapped = queries.pictures if mapped is None else mapped
    partners = queries.partners(seed)
    paired = partners >= 0
    if not paired.any():
        table.left_out["pair_cosine"] = "no kind has clips of two sources"
        return
    _add_pairs(mapped[partners[paired]], queries.pictures[paired], table)
    numbers = {source: number for number, source in enumerate(dict.fromkeys(queries.sources))}
    source = torch.tensor([numbers[each] for each in queries.sources])
    similarity = mapped @ queries.pictures.T
    similarity[source[:, None] == source] = -torch.inf
    for count in COUNTS:
        nearest = similarity[paired].topk(min(count, len(queries)), dim=1)
        right = (queries.kinds[nearest.indices] == queries.kinds[paired, None]) & nearest.values.isfinite()
        table.add_share(f"recall_{count}", right.any(dim=1).double())


def pair_cosines(texts: Tensor, queries: Queries) -> Tensor:
    """t_k(i) . m_i, [clips]."""
    return (texts[queries.kinds] * queries.pictures).sum(dim=1)


def _add_pairs(matched: Tensor, pictures: Tensor, table: Table) -> None:
    def distance(clips: Tensor) -> float:
        return float((matched[clips].mean(dim=0) - pictures[clips].mean(dim=0)).norm())

    table.add_whole("mean_distance", distance, len(pictures), bounds=(0, float("inf")))
    table.add_mean("pair_cosine", (matched * pictures).sum(dim=1))
