"""What the image tower learns: captions, and the classes that its pretrained classifier recognises.

    e    image embedding                              [pictures, dim], unit norm
    t_c  embedding of caption c, in some template     [captions, dim], unit norm
    s    scale of the logits, the inverse of the softmax' temperature

The text tower stays as it is, so a picture can be compared with every caption there is instead of those of its own
batch: the loss is the cross-entropy of softmax_c(s e . t_c), image to text as in CLIP (Radford et al. 2021,
arXiv:2103.00020), fig. 3, with the image tower tuned to a fixed text tower (the other way round than LiT, Zhai et al.
2022, arXiv:2111.07991). Captions that the picture could also bear are no negatives: a chihuahua is not pushed away
from "a dog barking".

Distillation keeps what pretraining knew: the pretrained classifier's distribution over ImageNet's classes is the
target of softmax_k(s e . t_k) over the names of the classes (Hinton et al. 2015, arXiv:1503.02531).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from timm.data import ImageNetInfo
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.training.clip.initial_model import load_classifier

__all__ = [
    "CaptionBank",
    "EncodeTexts",
    "Teacher",
    "caption_loss",
    "class_embeddings",
    "distillation_loss",
    "parse_class_numbers",
    "read_yaml_mapping",
]

IMAGENET_CLASSES = 1000

EncodeTexts = Callable[[list[str]], Tensor]  # texts -> [texts, dim], unit norm


@dataclass
class CaptionBank:
    """All captions of the training pictures.

    Attributes:
        embeddings: [templates, captions, dim], unit norm.
        captions_of: for each caption set, the numbers of its captions.
        compatible: [caption sets, captions], whether a picture with that caption set could also bear the caption:
            they share a picture, or both share one with the same third caption.
    """

    embeddings: Tensor
    captions_of: list[list[int]]
    compatible: Tensor

    @classmethod
    def build(
        cls, caption_sets: Sequence[tuple[str, ...]], templates: Sequence[str], encode_texts: EncodeTexts
    ) -> "CaptionBank":
        """`caption_sets` are distinct."""
        captions = sorted({caption for names in caption_sets for caption in names})
        number = {caption: index for index, caption in enumerate(captions)}
        captions_of = [[number[caption] for caption in names] for names in caption_sets]
        member = torch.zeros(len(caption_sets), len(captions))
        for row, numbers in enumerate(captions_of):
            member[row, numbers] = 1
        together = (member.T @ member).clamp(max=1)  # [captions, captions]
        embeddings = torch.stack([encode_texts([t.format(caption) for caption in captions]) for t in templates])
        return cls(embeddings, captions_of, member @ together > 0)

    def draw(self, caption_set: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One caption and one template for each picture.

        Args:
            caption_set: [pictures], the number of each picture's caption set.

        Returns:
            captions and templates, [pictures] each.
        """
        u = torch.rand(2, len(caption_set), generator=generator, dtype=torch.float64)
        sets = [self.captions_of[index] for index in caption_set.tolist()]
        captions = torch.tensor([names[int(x * len(names))] for names, x in zip(sets, u[0].tolist(), strict=True)])
        return captions, (u[1] * len(self.embeddings)).long()


def caption_loss(
    embeddings: Tensor, scale: Tensor, bank: CaptionBank, caption_set: Tensor, captions: Tensor, templates: Tensor
) -> Tensor:
    """Cross-entropy of each picture's caption among all captions, the mean over the pictures.

    Args:
        embeddings: [pictures, dim], unit norm.
        scale: a single number.
        caption_set: [pictures], which one each has.
        captions, templates: [pictures], as `CaptionBank.draw` gives them.
    """
    text = bank.embeddings.to(embeddings)
    every = (embeddings @ text.flatten(0, 1).T).unflatten(1, text.shape[:2])  # [pictures, templates, captions]
    logits = scale * every[torch.arange(len(every)), templates]
    excluded = bank.compatible[caption_set].scatter(1, captions[:, None], value=False)
    return F.cross_entropy(logits.masked_fill(excluded.to(logits.device), float("-inf")), captions.to(logits.device))


def distillation_loss(embeddings: Tensor, scale: Tensor, classes: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the classifier's distribution, the mean over the pictures.

    Args:
        embeddings: [pictures, dim], unit norm.
        classes: [classes, dim], the embedding of each class, unit norm.
        teacher_logits: [pictures, classes].
    """
    return F.cross_entropy(scale * embeddings @ classes.to(embeddings).T, teacher_logits.softmax(dim=-1))


class Teacher(nn.Module):
    """The pretrained classifier that distillation learns from: pixels [pictures, 3, size, size] -> logits.

    Attributes:
        classes: [classes, dim], the embedding of each class, unit norm.
        head: its last layer, features [pictures, features] -> logits.
    """

    classes: Tensor

    def __init__(self, classifier: Any, classes: Tensor) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("classes", classes)

    @classmethod
    def build(cls, model: str, weights: str, class_sounds: Path | None, encode_texts: EncodeTexts) -> "Teacher":
        """The ImageNet classifier `model` with its weights, as `load_classifier` reads them.

        Raises:
            ValueError: it does not classify ImageNet's 1,000 classes, or `class_sounds` cannot be read.
        """
        classifier = load_classifier(model, weights)
        if classifier.num_classes != IMAGENET_CLASSES:
            raise UserError(
                f"distillation needs a classifier of ImageNet's {IMAGENET_CLASSES} classes; "
                f"{model} has {classifier.num_classes}"
            )
        info = ImageNetInfo()
        names = [info.index_to_description(number).split(",")[0] for number in range(IMAGENET_CLASSES)]
        sounds = {
            caption: parse_class_numbers(numbers, IMAGENET_CLASSES, where=f"{class_sounds}: {caption}")
            for caption, numbers in (read_yaml_mapping(class_sounds, "class_sounds") if class_sounds else {}).items()
        }
        return cls(classifier, class_embeddings(names, sounds, encode_texts))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(pixels.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def head(self, features: Tensor) -> Tensor:
        return self.classifier.get_classifier()(features)


def class_embeddings(names: Sequence[str], sounds: Mapping[str, Sequence[int]], encode_texts: EncodeTexts) -> Tensor:
    """The embedding of each class, [classes, dim]: between its name and what it sounds like.

    Args:
        names: of the classes.
        sounds: captions, and the numbers of the classes that sound so.
    """
    embeddings = encode_texts(list(names))
    for sound, numbers in zip(encode_texts(list(sounds)) if sounds else (), sounds.values(), strict=True):
        embeddings[list(numbers)] += sound
    return F.normalize(embeddings, dim=-1)


def parse_class_numbers(entries: Sequence[int | str], num_classes: int, *, where: str) -> list[int]:
    """[7, "10-12"] -> [7, 10, 11, 12].

    Raises:
        ValueError: an entry is neither a number nor a range, or lies outside the classes.
    """
    numbers: list[int] = []
    for entry in entries:
        first, _, last = str(entry).partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise UserError(f"{where}: '{entry}' is neither a class number nor a range such as 10-12")
        numbers += range(int(first), int(last or first) + 1)
    if any(number >= num_classes for number in numbers):
        raise UserError(f"{where}: class {max(numbers)} is past the last, {num_classes - 1}")
    return numbers


def read_yaml_mapping(path: Path, setting: str) -> dict[str, list[Any]]:
    """A YAML file that maps texts to lists.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{setting}: {path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise UserError(f"{setting}: {path} does not map texts to lists")
    return {str(name): value for name, value in content.items()}
