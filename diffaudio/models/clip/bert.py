"""BERT (Devlin et al. 2018, arXiv:1810.04805) and its tokenizer, computing to the bit what transformers' do.

    tokens  [batch, tokens], padded with `pad_token_id`
    h       hidden states [batch, tokens, width]

It is here because importing transformers' BERT takes longer than generating a sound. Layers have the names of
transformers', so that weights load unchanged. Only inference is implemented; there is no dropout.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BertConfig", "BertTextTower", "BertTokenizer"]

IMPLEMENTED = {
    "model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False,
    "add_cross_attention": False, "pad_token_id": 0,
}  # fmt: skip

# How transformers' BertTokenizer acts whatever its tokenizer.json says, and the settings that it reads from its config.
SPECIAL_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
TOKENIZER_SETTINGS = {
    **SPECIAL_TOKENS, "mask_token": "[MASK]", "do_lower_case": True, "tokenize_chinese_chars": True,
    "strip_accents": None, "padding_side": "right", "truncation_side": "right", "never_split": None,
}  # fmt: skip


@dataclass(frozen=True)
class BertConfig:
    """Settings of transformers' config.json that this implementation uses, with transformers' defaults."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    @classmethod
    def read(cls, config: dict[str, Any]) -> "BertConfig | None":
        """The settings in a config.json; None if it describes a network that is not implemented here."""
        if any(config.get(key, value) != value for key, value in IMPLEMENTED.items()):
            return None
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in known})


class BertTokenizer:
    """Texts -> tokens [texts, context_length], as open_clip's HFTokenizer around transformers' BertTokenizer.

    Args:
        clean: applied to each text first.
    """

    def __init__(self, vocabulary: dict[str, int], context_length: int, clean: Callable[[str], str]) -> None:
        self.context_length, self.clean = context_length, clean
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        self._tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
        )
        self._tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])

    @classmethod
    def read(cls, folder: Path, context_length: int, clean: Callable[[str], str]) -> "BertTokenizer | None":
        """The tokenizer of a Hugging Face folder; None if it is another one, or has unusual settings."""
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        extra = any((folder / name).exists() for name in ("special_tokens_map.json", "added_tokens.json"))
        if extra or config.get("tokenizer_class") not in ("BertTokenizer", "BertTokenizerFast"):
            return None
        if any(config.get(key, value) != value for key, value in TOKENIZER_SETTINGS.items()):
            return None
        model, added = content.get("model") or {}, content.get("added_tokens") or []
        special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
        if model.get("type") != "WordPiece" or {token.get("content") for token in added} != special:
            return None
        vocabulary = model["vocab"]
        if vocabulary.get("[PAD]") != 0 or not special <= vocabulary.keys():
            return None
        return cls(vocabulary, context_length, clean)

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length)
        texts = [texts] if isinstance(texts, str) else texts
        encodings = self._tokenizer.encode_batch([self.clean(text) for text in texts])
        return torch.tensor([encoding.ids for encoding in encodings])


class BertTextTower(nn.Module):
    """Tokens -> features [batch, output_dim]: the mean of the last hidden states over a text, projected.

    Args:
        projection: None, where `output_dim` is BERT's width; or open_clip's "linear" or "mlp".

    Raises:
        ValueError: another projection, or sizes that do not fit.
    """

    def __init__(self, config: BertConfig, output_dim: int, projection: str | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.transformer = _Bert(config)
        if projection is None and width == output_dim:
            self.proj = nn.Identity()
        elif projection == "linear":
            self.proj = nn.Linear(width, output_dim, bias=False)
        elif projection == "mlp":
            middle = (width + output_dim) // 2
            self.proj = nn.Sequential(
                nn.Linear(width, middle, bias=False), nn.GELU(), nn.Linear(middle, output_dim, bias=False)
            )
        else:
            raise ValueError(f"projection {projection!r} from {width} to {output_dim} values")

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != self.config.pad_token_id).long()
        hidden = self.transformer(tokens, mask)
        return self.proj((hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(-1, keepdim=True))


class _Bert(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        h = self.embeddings(tokens)
        attended = None if mask.all() else mask.bool()[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        for layer in self.encoder["layer"]:  # pyright: ignore[reportGeneralTypeIssues]
            h = layer(h, attended)
        return h


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        h = self.word_embeddings(tokens) + self.token_type_embeddings(torch.zeros_like(tokens))
        return self.LayerNorm(h + self.position_embeddings(positions))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(config), "output": _Output(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = _Output(config.intermediate_size, config)

    def forward(self, h: Tensor, attended: Tensor | None) -> Tensor:
        h = self.attention["output"](self.attention["self"](h, attended), h)
        return self.output(F.gelu(self.intermediate["dense"](h)), h)


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(f"{config.num_attention_heads} heads do not divide a width of {config.hidden_size}")
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, h: Tensor, attended: Tensor | None) -> Tensor:
        query, key, value = (
            layer(h).view(*h.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=attended, scale=self.head_dim**-0.5)
        return output.transpose(1, 2).reshape(h.shape)


class _Output(nn.Module):
    def __init__(self, in_features: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)
