"""musicnn as a backbone: tags of MagnaTagATune or the Million Song Dataset, to measure music with.

The published variables as an .npz, whose name says which tags it has: mtt.npz or msd.npz. One embedding a sound of 200
dimensions, the mean over excerpts of 3 s, and the mean score of each tag over them. The last excerpt ends with the
sound; silence follows a sound shorter than one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Kinds, at_least, logit_of_mean_score, sha256
from diffaudio.media.audio import RESAMPLER
from diffaudio.metrics.classification import label_key
from diffaudio.models.tagger.musicnn import PATCH_STEPS, SAMPLE_RATE, TAGS, UNITS, load_musicnn, log_mel

__all__ = ["MusicnnBackbone", "excerpts"]

BATCH_SIZE = 8
MIN_SAMPLES = 512  # a window; reflection at the ends needs half of it

# Which tags are right for the kinds of configs/audioset: instruments that the tags name.
KINDS = {
    "acoustic guitar": ["guitar", "acoustic"],
    "cello": ["cello", "strings"],
    "drums": ["drums", "beat", "beats"],
    "electric guitar": ["guitar"],
    "flute": ["flute"],
    "harp": ["harp"],
    "piano": ["piano"],
    "sitar": ["sitar", "indian"],
    "violin": ["violin", "strings"],
}


class MusicnnBackbone:
    """A `Backbone` with one embedding a sound, logits, and a table of kinds."""

    sample_rate = SAMPLE_RATE
    resampler = RESAMPLER
    is_multilabel = True
    embedding_dim = UNITS

    def __init__(self, weights: Path, config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        which = [name for name in TAGS if name in weights.stem.lower()]
        if len(which) != 1:
            raise UserError(f"{weights}: its name has to say which tags it has, {' or '.join(TAGS)}, as in mtt.npz")
        self.name = f"musicnn_{which[0]}"
        self.labels: list[str] | None = TAGS[which[0]]
        self.network = load_musicnn(weights)
        if len(self.network.to_tags.bias) != len(self.labels):
            raise UserError(f"{weights}: has {len(self.network.to_tags.bias)} tags; {len(self.labels)} are expected")
        self.network.to(device)
        self.checkpoint = sha256(weights)
        places = {tag: index for index, tag in enumerate(self.labels)}
        found = {kind: [places[tag] for tag in tags if tag in places] for kind, tags in KINDS.items()}
        self.kinds: Kinds | None = Kinds({label_key(kind): tags for kind, tags in found.items() if tags}, [])
        self._device = device

    @torch.no_grad()
    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        patches = [excerpts(log_mel(at_least(waveform.float(), MIN_SAMPLES))) for waveform in waveforms]
        results = [self.network(some.to(self._device)) for some in torch.cat(patches).split(BATCH_SIZE)]
        counts = [len(each) for each in patches]
        embeddings = torch.cat([embedding for embedding, _ in results]).cpu().split(counts)
        logits = torch.cat([logit for _, logit in results]).cpu().split(counts)
        return [each.mean(dim=0, keepdim=True) for each in embeddings], torch.stack([*map(logit_of_mean_score, logits)])


def excerpts(mel: Tensor) -> Tensor:
    """[96, steps] -> [excerpts, 96, 187]: one after the other, and a last one that ends with the sound."""
    missing = PATCH_STEPS - mel.shape[1]
    if missing > 0:
        return torch.nn.functional.pad(mel, (0, missing))[None]
    starts = [*range(0, mel.shape[1] - PATCH_STEPS + 1, PATCH_STEPS)]
    if starts[-1] + PATCH_STEPS < mel.shape[1]:
        starts.append(mel.shape[1] - PATCH_STEPS)
    return torch.stack([mel[:, start : start + PATCH_STEPS] for start in starts])
