"""CLAP (Wu et al. 2023, arXiv:2211.06687) by transformers' ClapModel: sounds and texts in one space.

A local folder in Hugging Face's format with safetensors weights, or a hub id such as laion/clap-htsat-unfused.

Sounds longer than the model's 10 s are cut into pieces of 10 s and a rest, with one embedding each; the CLAP score
takes their mean. transformers itself takes a piece at random, or mixes in random ones, so that the score
of one file would change from call to call.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Kinds, metric_part, sha256
from diffaudio.hub import fetch, is_hub_id
from diffaudio.library_loading import check_tokenizer, load_library_network
from diffaudio.media.audio import RESAMPLER
from diffaudio.safe_loading import loading_errors, read_json, refuse_remote_code

__all__ = ["Clap"]

BATCH_SIZE = 8
MIN_REST_S = 1.0  # a shorter last piece is left out


class Clap:
    """A `Backbone` and `TextBackbone`; embeddings have unit norm."""

    resampler = RESAMPLER
    labels: list[str] | None = None
    kinds: Kinds | None = None

    def __init__(self, model: str | Path, device: torch.device | str = "cpu") -> None:
        folder = _find(model)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"{model}: model.safetensors is missing; CLAP is read from safetensors only")
        name = metric_part(Path(model).name)
        self.name = name if name.startswith("clap") else f"clap_{name}"
        refuse_remote_code(read_json(folder / "preprocessor_config.json"), folder / "preprocessor_config.json")
        check_tokenizer(folder)
        self.model = load_library_network(ClapModel, folder, may_hold_more=True)
        with loading_errors(folder):
            self._features = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self.model.to(device)
        self.checkpoint = sha256(weights)
        self.sample_rate = int(self._features.sampling_rate)
        self.embedding_dim = int(self.model.config.projection_dim)
        self._piece = int(self._features.max_length_s * self.sample_rate)
        self._device = device

    @torch.no_grad()
    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        pieces = [self._pieces(waveform) for waveform in waveforms]
        flat = [piece for of_one in pieces for piece in of_one]
        embeddings = torch.cat([self._embed(flat[at : at + BATCH_SIZE]) for at in range(0, len(flat), BATCH_SIZE)])
        return list(embeddings.split([len(of_one) for of_one in pieces])), None

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> Tensor:
        """See `TextBackbone`."""
        longest = min(self._tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings - 2)
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self._device)).pooler_output.cpu()

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


def _find(model: str | Path) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not is_hub_id(model):
        raise UserError(f"{model}: there is no such folder of CLAP")
    return fetch(model)
