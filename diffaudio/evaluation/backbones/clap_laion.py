"""CLAP from the files that LAION publishes, such as 630k-audioset-best.pt and music_audioset_epoch_15_esc_90.14.pt.

They hold the weights of both halves under the names of the package laion_clap. Here these become the names of
transformers' ClapModel; its settings follow from the shapes. The files hold no tokenizer: there is a CLAP score only
where RoBERTa's tokenizer.json lies beside the file; the distances need none.
"""

import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import sha256
from diffaudio.evaluation.backbones.clap import ClapSounds, clap_name
from diffaudio.evaluation.backbones.published import load_tensors
from diffaudio.safe_loading import loading_errors

__all__ = ["is_laion_clap", "load_laion_clap"]

PREFIX = "module."  # of weights that were saved while training on several devices
FRONT_END = "audio_branch.patch_embed.proj.weight"
FUSION = "audio_branch.patch_embed.fusion_model."

# Parts of names, in this order: laion_clap's, and transformers'.
RENAMED = {
    "text_branch": "text_model", "audio_branch": "audio_model.audio_encoder", "attn": "attention.self",
    "self.proj": "output.dense", "attention.self_mask": "attn_mask", "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after", "bn0": "batch_norm",
    "_projection.0.": "_projection.linear1.", "_projection.2.": "_projection.linear2.",
}  # fmt: skip
# A fixed front end, classification heads, and layers that only training used.
UNUSED = (
    "audio_branch.spectrogram_extractor.", "audio_branch.logmel_extractor.", "audio_branch.tscam_conv.",
    "audio_branch.head.", "text_transform.", "audio_transform.",
)  # fmt: skip
ROBERTA_PADDING, ROBERTA_HEAD_WIDTH = 1, 64


def is_laion_clap(names: set[str]) -> bool:
    """Whether weights of these names are LAION's CLAP."""
    return FRONT_END in {name.removeprefix(PREFIX) for name in names}


def load_laion_clap(path: Path, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> ClapSounds:
    """The backbone of a published file.

    Args:
        tensors: of the file, by `read_published`.

    Returns:
        One that takes texts as well where a tokenizer lies beside the file.

    Raises:
        ValueError: weights are missing, or do not fit one another.
    """
    published = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    published = {name: tensor for name, tensor in published.items() if not name.startswith(UNUSED)}
    with loading_errors(path):
        is_fused = any(name.startswith(FUSION) for name in published)
        model = ClapModel(_config_of(published, is_fused)).eval().requires_grad_(False)
    fixed = {name: value for name, value in model.state_dict().items() if name.endswith(("_ids", "_index"))}
    load_tensors(model, fixed | _renamed(published), path)
    features = ClapFeatureExtractor(truncation="fusion" if is_fused else "rand_trunc")
    arguments = (model, features, clap_name(path.stem), sha256(path), device)
    tokenizer = path.with_name("tokenizer.json")
    if not tokenizer.is_file():
        return ClapSounds(*arguments)
    with loading_errors(tokenizer):
        return _ClapWithTexts(PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)), *arguments)


class _ClapWithTexts(ClapSounds):
    """A `TextBackbone` as well."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *arguments: object) -> None:
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]
        self._tokenizer = tokenizer

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> Tensor:
        """See `TextBackbone`."""
        longest = self.model.config.text_config.max_position_embeddings - ROBERTA_PADDING - 1
        rows = [self._tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in texts]
        tokens = torch.full((len(rows), max(map(len, rows))), ROBERTA_PADDING)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        mask = (tokens != ROBERTA_PADDING).long()
        return self.model.get_text_features(tokens.to(self._device), mask.to(self._device)).pooler_output.cpu()


def _config_of(tensors: dict[str, Tensor], is_fused: bool) -> ClapConfig:
    """Settings by shapes: HTSAT-tiny and -base, with a RoBERTa of any size."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"its weights lack {name}")
        return tuple(tensors[name].shape)

    def count(pattern: str) -> int:
        return len({found[1] for name in tensors if (found := re.match(pattern, name))})

    layers = count(r"audio_branch\.layers\.(\d+)\.blocks")
    depths = [count(rf"audio_branch\.layers\.{layer}\.blocks\.(\d+)\.") for layer in range(layers)]
    tables = [f"audio_branch.layers.{layer}.blocks.0.attn.relative_position_bias_table" for layer in range(layers)]
    if not layers:
        raise UserError("its weights hold no layers for sounds")
    projection, hidden = shape("audio_projection.0.weight")
    width, _, patch, _ = shape(FRONT_END)
    audio = {
        "patch_embeds_hidden_size": width, "patch_size": patch, "patch_stride": [patch, patch], "depths": depths,
        "num_attention_heads": [shape(table)[1] for table in tables], "num_hidden_layers": layers,
        "window_size": (round(shape(tables[0])[0] ** 0.5) + 1) // 2, "hidden_size": hidden,
        "num_mel_bins": shape("audio_branch.bn0.weight")[0], "projection_dim": projection,
        "enable_fusion": is_fused,
    }  # fmt: skip
    words, text_width = shape("text_branch.embeddings.word_embeddings.weight")
    text = {
        "vocab_size": words, "hidden_size": text_width, "projection_dim": projection,
        "num_hidden_layers": count(r"text_branch\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, text_width // ROBERTA_HEAD_WIDTH),
        "intermediate_size": shape("text_branch.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shape("text_branch.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shape("text_branch.embeddings.token_type_embeddings.weight")[0],
        "pad_token_id": ROBERTA_PADDING,
    }  # fmt: skip
    return ClapConfig(text_config=text, audio_config=audio, projection_dim=projection)


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if "qkv" in name:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            renamed |= {name.replace("qkv", part): values for part, values in parts}
        else:
            renamed[name] = tensor
    return renamed
