"""Held-out measures of a CLIP: recall, zero-shot accuracy over kinds of sound, the word test, general knowledge."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.training.clip.captioned_images import Photograph
from diffaudio.training.clip.objective import EncodeTexts, read_yaml_mapping

__all__ = [
    "HeldOut",
    "encode_photographs",
    "kind_of",
    "name_embeddings",
    "read_paraphrases",
    "recall",
    "word_test",
    "zero_shot",
]


def recall(images: Tensor, texts: Tensor, matches: Tensor, counts: Sequence[int] = (1, 5)) -> dict[str, float]:
    """How often a right caption is among the nearest to a picture, and a right picture among those to a caption.

    Args:
        images: [pictures, dim], unit norm.
        texts: [captions, dim], unit norm.
        matches: [pictures, captions], whether the picture bears the caption; each caption has a picture and each
            picture a caption.
        counts: sizes of "among the nearest".
    """
    similarity = images @ texts.T
    values = {}
    for name, scores, right in (
        ("image_to_caption", similarity, matches),
        ("caption_to_image", similarity.T, matches.T),
    ):
        for count in counts:
            nearest = scores.topk(min(count, scores.shape[1]), dim=1).indices
            values[f"{name}_recall_{count}"] = right.gather(1, nearest).any(dim=1).float().mean().item()
    return values


def name_embeddings(names: Sequence[str], templates: Sequence[str], encode_texts: EncodeTexts) -> Tensor:
    """[names, dim]: the mean over the templates, of unit norm."""
    return F.normalize(torch.stack([encode_texts([t.format(n) for n in names]) for t in templates]).mean(dim=0), dim=-1)


def zero_shot(images: Tensor, labels: Tensor, names: Tensor) -> tuple[float, float]:
    """Share of pictures whose nearest name is their label's: over all pictures, and the mean over the labels.

    Args:
        images: [pictures, dim], unit norm.
        labels: [pictures], numbers of names.
        names: [names, dim], unit norm.
    """
    right = ((images @ names.T).argmax(dim=1) == labels).float()
    return right.mean().item(), torch.stack([right[labels == label].mean() for label in labels.unique()]).mean().item()


def word_test(paraphrases: Sequence[str], labels: Tensor, names: Tensor, encode_texts: EncodeTexts) -> float:
    """Share of paraphrases whose nearest name is that of their own kind."""
    return ((encode_texts(list(paraphrases)) @ names.T).argmax(dim=1) == labels).float().mean().item()


def kind_of(photograph: Photograph, kinds: Mapping[str, Sequence[str]]) -> str | None:
    """The one kind whose captions the photograph bears; None where there is none, or several."""
    found = [kind for kind, captions in kinds.items() if not set(captions).isdisjoint(photograph.captions)]
    return found[0] if len(found) == 1 else None


def read_paraphrases(path: Path, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(prompt, label) of each row of a CSV file.

    Raises:
        ValueError: the file cannot be read, lacks a column, or has a label that is no kind.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"paraphrases: {path} cannot be read: {error.strerror}") from None
    if not rows or not rows[0].keys() >= {"prompt", "label"}:
        raise UserError(f"paraphrases: {path} has no rows with columns prompt and label")
    for row in rows:
        if row["label"] not in kinds:
            raise UserError(f"paraphrases: {path}: label '{row['label']}' is not one of the kinds")
    return [(row["prompt"], row["label"]) for row in rows]


@dataclass
class HeldOut:
    """Everything that a CLIP is measured with while it is trained; texts are encoded once, since their tower is fixed.

    Attributes:
        photographs: held-out pictures.
        captions, caption_embeddings, matches: their distinct captions, [captions, dim], [pictures, captions].
        kinds, kind_embeddings: names of kinds, [kinds, dim].
        kind_numbers: [pictures], the number of each picture's kind, -1 where it shows none.
        general, general_labels, general_names: pictures beyond the kinds, [pictures], [names, dim].
        word_accuracy: the word test, which depends on the text tower alone.
    """

    photographs: list[Photograph]
    caption_embeddings: Tensor
    matches: Tensor
    kinds: list[str]
    kind_embeddings: Tensor
    kind_numbers: Tensor
    general: list[Photograph]
    general_labels: Tensor
    general_names: Tensor
    word_accuracy: float | None

    @classmethod
    def build(
        cls, photographs: list[Photograph], general: list[Photograph], kinds_file: Path | None,
        paraphrases_file: Path | None, templates: Sequence[str], encode_texts: EncodeTexts,
    ) -> "HeldOut":  # fmt: skip
        """Args:
            photographs, general: held-out pictures, and those of general knowledge, as `hold_out` gives them.
            kinds_file: YAML, kinds with the captions that show them; None measures without.
            paraphrases_file: CSV with columns prompt and label; None measures without.

        Raises:
            ValueError: a file cannot be read.
        """
        captions = sorted({caption for photograph in photographs for caption in photograph.captions})
        matches = torch.tensor([[caption in p.captions for caption in captions] for p in photographs])
        kinds = read_yaml_mapping(kinds_file, "kinds") if kinds_file else {}
        names = list(kinds)
        kind_embeddings = name_embeddings(names, templates, encode_texts) if names else torch.empty(0)
        found = [kind_of(photograph, kinds) for photograph in photographs]
        word_accuracy = None
        if paraphrases_file:
            rows = read_paraphrases(paraphrases_file, names)
            labels = torch.tensor([names.index(label) for _, label in rows])
            word_accuracy = word_test([prompt for prompt, _ in rows], labels, kind_embeddings, encode_texts)
        general_captions = sorted({photograph.captions[0] for photograph in general})
        return cls(
            photographs,
            encode_texts(captions) if captions else torch.empty(0),
            matches,
            names,
            kind_embeddings,
            torch.tensor([names.index(kind) if kind else -1 for kind in found]),
            general,
            torch.tensor([general_captions.index(photograph.captions[0]) for photograph in general]),
            encode_texts(general_captions) if general else torch.empty(0),
            word_accuracy,
        )

    def measure(self, clip: Clip) -> dict[str, float]:
        """All measures that there are pictures or texts for."""
        values: dict[str, float] = {}
        if self.photographs:
            images = encode_photographs(clip, self.photographs)
            values |= {"pictures": len(images), "captions": len(self.caption_embeddings)}
            values |= recall(images, self.caption_embeddings, self.matches)
            shown = self.kind_numbers >= 0
            if shown.any():
                accuracy, mean = zero_shot(images[shown], self.kind_numbers[shown], self.kind_embeddings)
                values |= {"kind_pictures": int(shown.sum()), "kind_zero_shot": accuracy, "kind_zero_shot_mean": mean}
                for number in self.kind_numbers[shown].unique().tolist():
                    of_kind = self.kind_numbers == number
                    accuracy = zero_shot(images[of_kind], self.kind_numbers[of_kind], self.kind_embeddings)[0]
                    values[f"kind/{self.kinds[number]} ({int(of_kind.sum())})"] = accuracy
        if self.general:
            images = encode_photographs(clip, self.general)
            accuracy = zero_shot(images, self.general_labels, self.general_names)[0]
            values |= {"general_pictures": len(images), "general_zero_shot": accuracy}
        if self.word_accuracy is not None:
            values["word_test"] = self.word_accuracy
        return values


def encode_photographs(clip: Clip, photographs: Sequence[Photograph]) -> Tensor:
    """[pictures, dim] on the CPU, unit norm."""
    batches = [
        clip.encode_image([photograph.open() for photograph in photographs[start : start + 64]]).cpu()
        for start in range(0, len(photographs), 64)
    ]
    return torch.cat(batches)
