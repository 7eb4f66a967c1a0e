"""From sounds to the rows of a report.

embedder = Embedder([TaggerBackbone(bundled_tagger())])
sounds, recordings = embedder.embed(…), embedder.embed(…)
reference = split_reference(recordings, sounds.wanted(), seed=0)         # once for all rows
rows = [evaluated_row(sounds, reference, name="ddim, 25 steps, scale 3"),
        real_row(reference, name="recordings"), shuffled_row(sounds, reference, name="shuffled")]
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from diffaudio.evaluation.backbones import backbone_info, load_backbone, metric_part, sha256
from diffaudio.evaluation.embed import AudioEmbeddings, Embedder
from diffaudio.evaluation.measure import (
    accuracy,
    checks,
    distances,
    divergence,
    diversity,
    inception,
    other_conventions,
    text_similarity,
)
from diffaudio.evaluation.reference import Reference
from diffaudio.evaluation.report import Report, Row
from diffaudio.evaluation.table import Table

__all__ = ["RESAMPLES", "evaluated_row", "load_embedder", "make_report", "real_row", "shuffled_row"]

RESAMPLES = 200


def load_embedder(
    backbones: Sequence[str | Path], clip: str | Path | None = None, *, device: torch.device | str = "cpu"
) -> Embedder:
    """Load backbones, and a CLIP for the CLIP-space score.

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


def evaluated_row(
    embedded: AudioEmbeddings,
    reference: Reference | None = None,
    *,
    name: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
    conventions: bool = False,
) -> Row:
    """Measure sounds.

    Args:
        reference: embedded by the same backbones; None leaves out what needs one.
        name: of the row.
        seed, resamples: of the intervals.
        conventions: also measure as audioldm_eval does, see `other_conventions`.
    """
    table, compared = Table(seed, resamples), embedded
    if reference is not None:
        compared = reference.compared(embedded, seed)
        distances(compared, reference, table)
        divergence(embedded, reference, table)
        if len(compared) < len(embedded):
            total = len(reference.everything)
            table.warnings.append(
                f"distances and inception score take {len(compared)} of the {len(embedded)} sounds, for there are "
                f"{total} recordings, and the real row gets half of them; give {2 * len(embedded)} recordings, or "
                "leave the real row out (--no-real-row)"
            )
    inception(compared, table)
    accuracy(embedded, table)
    text_similarity(embedded, table)
    diversity(embedded, table)
    checks(embedded, table)
    if conventions:
        other_conventions(embedded, reference, table)
    return _row(name, "evaluated", embedded, table)


def real_row(reference: Reference, *, name: str, seed: int = 0, resamples: int = RESAMPLES) -> Row:
    """What recordings reach: those held out of the reference, which are as many as the sounds that are evaluated.

    Metrics that depend neither on the reference nor on the number of sounds (accuracy, text similarity, checks) are of
    all recordings.

    Args:
        reference: with recordings held out.
    """
    held_out, everything, table = reference.held_out, reference.everything, Table(seed, resamples)
    assert held_out is not None
    distances(held_out, reference, table)
    divergence(held_out, reference, table, paired=False)
    inception(held_out, table)
    accuracy(everything, table)
    text_similarity(everything, table)
    diversity(everything, table)
    checks(everything, table)
    return _row(name, "real", everything, table)


def shuffled_row(
    embedded: AudioEmbeddings,
    reference: Reference | None = None,
    *,
    name: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Row:
    """What the sounds reach with their labels and prompts permuted at random: the numbers of chance."""
    table = Table(seed, resamples)
    permuted = embedded.with_texts_shuffled(table.generator("shuffled"))
    if reference is not None:
        divergence(permuted, reference, table)
    accuracy(permuted, table)
    text_similarity(permuted, table)
    return _row(name, "shuffled", permuted, table)


def make_report(
    embedder: Embedder,
    rows: list[Row],
    *,
    seed: int,
    resamples: int,
    reference: str | None = None,
    labels: str | None = None,
) -> Report:
    """The report of rows that were measured with the backbones of `embedder`.

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


def _row(name: str, kind: str, embedded: AudioEmbeddings, table: Table) -> Row:
    return Row(name, kind, len(embedded), sum(embedded.seconds), table.metrics, table.left_out, table.warnings)
