"""Pairs of text and image embeddings that a diffusion prior learns from."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip, fill
from diffaudio.training.bridge_fitting import read_lines
from diffaudio.training.captions import CaptionSettings, captions_of, check_captions
from diffaudio.training.clip.captioned_images import load_photographs
from diffaudio.training.clip.measures import encode_photographs

__all__ = ["Pairs", "load_pairs"]


class Pairs:
    """Pairs of text and image embeddings to learn from.

    Args:
        images: [pictures, dim], unit norm.
        texts: [texts, dim], unit norm.
        texts_of: for each picture, the numbers of its texts; None makes texts up.
        pseudo_noise: of a text that is made up.
    """

    def __init__(self, images: Tensor, texts: Tensor, texts_of: list[list[int]] | None, pseudo_noise: float) -> None:
        self.images, self.texts, self.texts_of, self.pseudo_noise = images, texts, texts_of, pseudo_noise
        self.shift = texts.mean(dim=0) - images.mean(dim=0)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Text and image embeddings, [count, dim] each."""
        chosen = torch.randint(len(self.images), (count,), generator=generator)
        images = self.images[chosen]
        u = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
        noise = torch.randn(images.shape, generator=generator) / images.shape[1] ** 0.5
        if self.texts_of is None:
            return F.normalize(images + self.shift + self.pseudo_noise * noise, dim=-1), images
        numbers = [self.texts_of[picture] for picture in chosen.tolist()]
        return self.texts[[n[int(x * len(n))] for n, x in zip(numbers, u, strict=True)]], images


def load_pairs(
    clip: Clip,
    *,
    images: Path | None,
    corpus: Sequence[Path] | None,
    captions: CaptionSettings,
    texts_file: Path | None,
    pseudo_noise: float,
    max_images: int,
) -> Pairs:
    """Encode what `train/prior.py` names as its data; see there for the arguments.

    Raises:
        ValueError: it names none or both of `images` and `corpus`, lacks texts, or the corpus has another CLIP; or a
            setting has no effect.
    """
    if (images is None) == (corpus is None):
        raise UserError("give one of images (captioned pictures) and corpus (encoded)")
    check_captions(captions, "none")
    if images is not None and captions.source is not None:
        raise UserError("captions has no effect with images, which have captions of their own; leave it out")
    if texts_file is not None and (images is not None or captions.source is not None):
        raise UserError("texts_file has no effect where pictures have captions; leave it out")
    if images is not None:
        photographs = load_photographs(images)
        texts, texts_of = _numbered([photograph.captions for photograph in photographs])
        return Pairs(encode_photographs(clip, photographs), _encode_prompts(clip, texts), texts_of, 0.0)

    sentences = read_lines(texts_file, "texts_file")
    if captions.source is None and not sentences:
        raise UserError("texts_file: give sentences, one a line; the prior has to know where texts lie")
    dataset = LatentDataset(*(corpus or ()))
    if dataset.clip["name"] != clip.name:
        raise UserError(
            f"{dataset.folders[0]}: embeddings were made by CLIP '{dataset.clip['name']}', the prior is for "
            f"'{clip.name}'; encode the corpus again with that one as --clip"
        )
    if captions.source is None:
        return Pairs(dataset.picture_embeddings(max_images), _encode_prompts(clip, sentences), None, pseudo_noise)
    return _captioned_pictures(clip, dataset, captions, max_images)


def _captioned_pictures(clip: Clip, dataset: LatentDataset, captions: CaptionSettings, max_images: int) -> Pairs:
    """The pictures of a corpus with its clips' captions in all templates; at most `max_images` of them, at random."""
    templates = tuple(captions.templates) or clip.templates
    of_clips = [[fill(t, text) for text in texts for t in templates] for texts in captions_of(dataset, captions)]
    texts, texts_of = _numbered(of_clips)
    pictures = [dataset[index]["embeddings"] for index in range(len(dataset))]
    texts_of = [numbers for numbers, of_clip in zip(texts_of, pictures, strict=True) for _ in range(len(of_clip))]
    chosen = torch.randperm(len(texts_of), generator=torch.Generator().manual_seed(0))[:max_images].sort().values
    embeddings = torch.cat(pictures)[chosen]
    encoded = torch.cat([clip.encode_text(texts[i : i + 64]).cpu() for i in range(0, len(texts), 64)])
    return Pairs(embeddings, encoded, [texts_of[index] for index in chosen.tolist()], 0.0)


def _numbered(texts_of: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The distinct texts, and the numbers of each picture's among them."""
    texts = sorted({text for of_picture in texts_of for text in of_picture})
    number = {text: index for index, text in enumerate(texts)}
    return texts, [[number[text] for text in of_picture] for of_picture in texts_of]


def _encode_prompts(clip: Clip, texts: list[str]) -> Tensor:
    """[texts, dim] on the CPU, in CLIP's templates, as prompts are at query time."""
    return torch.cat([clip.encode_prompts(texts[i : i + 64]).cpu() for i in range(0, len(texts), 64)])
