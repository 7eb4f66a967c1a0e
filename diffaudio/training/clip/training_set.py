"""The training pictures of a CLIP, and the texts that they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffaudio.models.clip import Clip
from diffaudio.seeding import seeded_generator
from diffaudio.training.clip.captioned_images import Photograph, draw_crops, sampling_weights
from diffaudio.training.clip.objective import CaptionBank, Teacher, caption_loss, distillation_loss

__all__ = ["TrainingSet", "build_training_set", "encode_texts"]

TEXTS_AT_ONCE = 64


class CropSettings(Protocol):
    """The training settings that determine the crops."""

    crop_size: int
    min_crop: float
    seed: int


@dataclass
class TrainingSet:
    """Pictures with captions.

    Attributes:
        caption_set: [pictures], the number of each picture's caption set.
        weights: [pictures], how often each is drawn.
        bank: all captions.
        normalisation: mean and std of the pixels, [3, 1, 1] each.
        teacher: the classifier that distillation learns from.
    """

    photographs: Sequence[Photograph]
    caption_set: Tensor
    weights: Tensor
    bank: CaptionBank
    normalisation: tuple[Tensor, Tensor]
    teacher: Teacher | None = None

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pictures, and a caption and a template for each: their numbers, [count] each."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return chosen, *self.bank.draw(self.caption_set[chosen], generator)

    def crops(self, chosen: Tensor, settings: CropSettings, step: int, first: int) -> Tensor:
        """Draw normalised training crops, [pictures, 3, size, size].

        Each is a function of the seed, the step and its place in the batch, whatever process it belongs to.

        Args:
            chosen: [pictures], the numbers of the pictures.
            first: the place of the first of them in the batch of all processes.
        """
        crops = []
        for place, index in enumerate(chosen.tolist(), first):
            generator = seeded_generator(settings.seed, "crop", step, place)
            picture = self.photographs[index].open()
            crops.append(draw_crops([picture], settings.crop_size, settings.min_crop, generator))
        mean, std = self.normalisation
        return (torch.cat(crops) - mean) / std

    def losses(
        self,
        embeddings: Tensor,
        scale: Tensor,
        drawn: tuple[Tensor, ...],
        teacher_logits: Tensor | None,
        distillation_weight: float,
    ) -> dict[str, Tensor]:
        """The loss, its parts, and the scale of the logits; see `diffaudio.training.clip.objective`.

        Args:
            embeddings: [pictures, dim], unit norm.
            drawn: numbers of the pictures, their captions and templates, [pictures] each.
            teacher_logits: [pictures, classes], where there is a teacher.
        """
        chosen, captions, templates = drawn
        loss = caption_loss(embeddings, scale, self.bank, self.caption_set[chosen], captions, templates)
        values = {"loss": loss, "caption_loss": loss, "scale": scale}
        if self.teacher is not None and teacher_logits is not None:
            distilled = distillation_loss(embeddings, scale, self.teacher.classes, teacher_logits.float())
            values |= {"loss": loss + distillation_weight * distilled, "distillation_loss": distilled}
        return values


def build_training_set(
    photographs: Sequence[Photograph], clip: Clip, templates: Sequence[str], *, sounding_weight: float
) -> TrainingSet:
    """Encode the captions in all templates; see `sampling_weights` for `sounding_weight`."""
    distinct = sorted({photograph.captions for photograph in photographs})
    number = {captions: index for index, captions in enumerate(distinct)}
    mean, std = (torch.tensor(clip.model.visual.preprocess_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return TrainingSet(
        photographs=photographs,
        caption_set=torch.tensor([number[photograph.captions] for photograph in photographs]),
        weights=sampling_weights([photograph.captions for photograph in photographs], sounding_weight),
        bank=CaptionBank.build(distinct, templates, lambda texts: encode_texts(clip, texts)),
        normalisation=(mean, std),
    )


def encode_texts(clip: Clip, texts: Sequence[str]) -> Tensor:
    """[texts, dim], unit norm."""
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    return torch.cat([clip.encode_text(list(texts[start : start + TEXTS_AT_ONCE])) for start in starts])
