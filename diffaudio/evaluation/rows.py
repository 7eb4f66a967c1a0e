"""From sounds to the rows of a report.

embedder = Embedder([TaggerBackbone(bundled_tagger())])
reference = Reference(embedder.embed(recordings))                 # once
row = evaluate_sounds(sounds, embedder, reference, name="ddim, 25 steps, scale 3")
rows = [row, real_row(reference, like=row_heard), shuffled_row(row_heard, reference)]
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from diffaudio.evaluation.backbones import backbone_info, load_backbone, metric_part, sha256
from diffaudio.evaluation.embed import AudioEmbeddings, Embedder, Sound
from diffaudio.evaluation.measure import (
    Reference,
    Table,
    accuracy,
    distances,
    divergence,
    faults,
    inception,
    likeness_to_text,
    variety,
)
from diffaudio.evaluation.report import Report, Row
from diffaudio.metrics.classification import label_key

__all__ = ["RESAMPLES", "evaluate_sounds", "evaluated_row", "load_embedder", "make_report", "real_row", "shuffled_row"]

RESAMPLES = 200


def load_embedder(
    backbones: Sequence[str | Path], clip: str | Path | None = None, *, device: torch.device | str = "cpu"
) -> Embedder:
    """Load what to hear with.

    Args:
        backbones: see `load_backbone`.
        clip: a folder, an `hf-hub:` id, or open_clip's name and tag as `ViT-B-32/openai`; None: no CLIP-space score.

    Raises:
        ValueError: one of them is not there, cannot be loaded, or comes twice.
    """
    from diffaudio.models.clip import Clip  # open_clip takes its time to import

    loaded = [load_backbone(name, device) for name in backbones]
    if clip is None:
        return Embedder(loaded)
    checkpoint = None
    if Path(clip).is_dir() or str(clip).startswith("hf-hub:"):
        encoder = Clip.from_pretrained(clip, device=str(device))
        checkpoint = sha256(Path(clip) / "open_clip_model.safetensors") if Path(clip).is_dir() else None
    else:
        name, _, tag = str(clip).partition("/")
        encoder = Clip.from_pretrained(name, tag or None, device=str(device))
    return Embedder(loaded, clip=encoder, clip_name=metric_part(encoder.name), clip_checkpoint=checkpoint)


def evaluate_sounds(
    sounds: Iterable[Sound],
    embedder: Embedder,
    reference: Reference | None = None,
    *,
    name: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Row:
    """Hear sounds and measure them.

    Args:
        reference: embedded by the same embedder; None leaves out what needs one.
        name: of the row.
        seed, resamples: of the intervals.

    Raises:
        ValueError: there is no sound, or one is damaged.
    """
    return evaluated_row(embedder.embed(sounds), reference, name=name, seed=seed, resamples=resamples)


def evaluated_row(
    embedded: AudioEmbeddings,
    reference: Reference | None = None,
    *,
    name: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Row:
    """Measure sounds that were embedded."""
    table = Table(seed, resamples)
    if reference is not None:
        distances(embedded, reference, table)
        divergence(embedded, reference, table)
    inception(embedded, table)
    accuracy(embedded, table)
    likeness_to_text(embedded, table)
    variety(embedded, table)
    faults(embedded, table)
    return _row(name, "evaluated", embedded, table)


def real_row(
    reference: Reference, *, like: AudioEmbeddings, name: str, seed: int = 0, resamples: int = RESAMPLES
) -> Row:
    """What recordings reach that are as many as the sounds `like`, so that few of them bias the numbers alike.

    As many, at most half of the reference, are drawn at random, of the same labels as far as there are any, and
    held against the others. What needs no such comparison (accuracy, likeness to texts, faults) is told of all.
    """
    table = Table(seed, resamples)
    recordings = reference.recordings
    drawn = _draw(recordings, like, table.generator("real"))
    taken = set(drawn)
    rest = [index for index in range(len(recordings)) if index not in taken]
    others = Reference(recordings.pick(rest), fewest=len(rest))
    distances(recordings.pick(drawn), others, table)
    divergence(recordings.pick(drawn), others, table)
    inception(recordings.pick(drawn), table)
    accuracy(recordings, table)
    likeness_to_text(recordings, table)
    variety(recordings, table)
    faults(recordings, table)
    return _row(name, "real", recordings, table)


def shuffled_row(
    embedded: AudioEmbeddings,
    reference: Reference | None = None,
    *,
    name: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Row:
    """What the sounds reach with their labels and prompts dealt anew: the numbers of chance."""
    table = Table(seed, resamples)
    dealt = embedded.with_texts_shuffled(table.generator("shuffled"))
    if reference is not None:
        divergence(dealt, reference, table)
    accuracy(dealt, table)
    likeness_to_text(dealt, table)
    return _row(name, "shuffled", dealt, table)


def make_report(
    embedder: Embedder,
    rows: list[Row],
    *,
    seed: int,
    resamples: int,
    reference: str | None = None,
    labels: str | None = None,
) -> Report:
    """The report of rows that `embedder` embedded.

    Args:
        reference, labels: the folder and the file, as given.
    """
    return Report(
        [backbone_info(backbone) for backbone in embedder.backbones],
        rows,
        seed,
        resamples,
        reference=reference,
        labels=labels,
        clip=embedder.clip_name,
        clip_checkpoint=embedder.clip_checkpoint,
    )


def _draw(recordings: AudioEmbeddings, like: AudioEmbeddings, generator: torch.Generator) -> list[int]:
    """Which recordings to hold against the others."""
    order = torch.randperm(len(recordings), generator=generator).tolist()
    count = min(len(like), len(recordings) // 2)
    by_label: dict[str, list[int]] = {}
    for index in order:
        by_label.setdefault(label_key(recordings.labels[index]), []).append(index)
    drawn = []
    for label, prompt in zip(like.labels, like.prompts, strict=True):
        members = by_label.get(label_key(label or prompt), [])
        if members and len(drawn) < count:
            drawn.append(members.pop())
    taken = set(drawn)
    drawn += [index for index in order if index not in taken][: count - len(drawn)]
    return sorted(drawn)


def _row(name: str, kind: str, embedded: AudioEmbeddings, table: Table) -> Row:
    return Row(name, kind, len(embedded), sum(embedded.seconds), table.metrics, table.left_out, table.warnings)
