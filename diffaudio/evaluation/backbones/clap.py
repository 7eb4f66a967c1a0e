"""CLAP (Wu et al. 2023, arXiv:2211.06687) by transformers' ClapModel: sounds and texts in one space.

A local folder in Hugging Face's format with safetensors weights, or a hub id such as laion/clap-htsat-unfused.

Sounds longer than the model's 10 s are cut into pieces of 10 s and a rest, with one embedding each; the CLAP score
takes their mean. transformers itself takes a piece at random, or mixes in random ones, so that the score
of one file would change from call to call.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Kinds, metric_part, sha256
from diffaudio.hub import fetch
from diffaudio.library_loading import check_tokenizer, load_library_network
from diffaudio.media.audio import RESAMPLER
from diffaudio.safe_loading import loading_errors, read_json, refuse_remote_code

__all__ = ["Clap", "ClapSounds", "clap_name"]

BATCH_SIZE = 8
MIN_REST_S = 1.0  # a shorter last piece is left out


class ClapSounds:
    """The half of CLAP that takes sounds, a `Backbone`; embeddings have unit norm.

    Args:
        model: transformers' network.
        features: its extractor.
        name: of the backbone.
        checkpoint: sha256 of the weights.
    """

    resampler = RESAMPLER
    is_multilabel = False
    labels: list[str] | None = None
    kinds: Kinds | None = None

    def __init__(
        self, model: Any, features: ClapFeatureExtractor, name: str, checkpoint: str, device: torch.device | str = "cpu"
    ) -> None:
        self.model = model.to(device)
        self._features = features
        self.name = name
        self.checkpoint = checkpoint
        self.sample_rate = int(features.sampling_rate)
        self.embedding_dim = int(model.config.projection_dim)
        self._piece = int(features.max_length_s * self.sample_rate)
        self._device = device

    @torch.no_grad()
    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        pieces = [self._pieces(waveform) for waveform in waveforms]
        flat = [piece for of_one in pieces for piece in of_one]
        embeddings = torch.cat([self._embed(flat[at : at + BATCH_SIZE]) for at in range(0, len(flat), BATCH_SIZE)])
        return list(embeddings.split([len(of_one) for of_one in pieces])), None

    def _pieces(self, waveform: Tensor) -> list[Tensor]:
        pieces = list(waveform.split(self._piece))
        if len(pieces) > 1 and len(pieces[-1]) < MIN_REST_S * self.sample_rate:
            pieces.pop()
        return pieces

    def _embed(self, pieces: list[Tensor]) -> Tensor:
        features = self._features(
            [piece.double().numpy() for piece in pieces], sampling_rate=self.sample_rate, return_tensors="pt"
        )
        # where no sound is longer than 10 s, the extractor calls a random one so, which would be embedded differently
        longer = torch.zeros(len(pieces), 1, dtype=torch.bool, device=self._device)
        mel = features["input_features"].to(self._device, torch.float32)
        return self.model.get_audio_features(mel, is_longer=longer).pooler_output.cpu()


class Clap(ClapSounds):
    """CLAP whole, a `TextBackbone` as well, from a folder or a hub id."""

    def __init__(self, model: str | Path, device: torch.device | str = "cpu") -> None:
        folder = Path(model) if Path(model).is_dir() else fetch(model)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"{model}: model.safetensors is missing; CLAP is read from safetensors only")
        refuse_remote_code(read_json(folder / "preprocessor_config.json"), folder / "preprocessor_config.json")
        check_tokenizer(folder)
        network = load_library_network(ClapModel, folder, may_hold_more=True)
        with loading_errors(folder):
            features = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        super().__init__(network, features, clap_name(Path(model).name), sha256(weights), device)

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> Tensor:
        """See `TextBackbone`."""
        longest = min(self._tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings - 2)
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self._device)).pooler_output.cpu()


def clap_name(name: str) -> str:
    """The backbone's name for a model's."""
    part = metric_part(name)
    return part if part.startswith("clap") else f"clap_{part}"
