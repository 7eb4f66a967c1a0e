"""A sentence encoder with fewer word pieces: those that a model of sounds needs."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo

from diffaudio.errors import UserError

__all__ = ["prune_vocabulary", "words_for_things"]


def words_for_things() -> list[str]:
    """Names and definitions of ImageNet's 21,841 synsets, as timm holds them: the words people have for things.

    The names count three times, once in their definitions' lines.
    """
    info = ImageNetInfo("imagenet22k")
    return 2 * list(info.label_descriptions()) + list(info.label_descriptions(detailed=True))


def prune_vocabulary(
    source: Path,
    target: Path,
    *,
    texts: Sequence[Path],
    filler: Sequence[str] = (),
    size: int,
    max_positions: int | None = None,
) -> None:
    """Copy a BERT-like sentence encoder with a reduced WordPiece vocabulary.

    The new vocabulary has the special tokens, the single ASCII characters, every piece that the texts need, then the
    pieces that the filler uses, the most frequent first, and where there is still room those with the lowest ids,
    which are the most frequent of the original vocabulary. Other alphabets become the unknown token.

    Args:
        source: Hugging Face folder with config.json, tokenizer.json (WordPiece) and model.safetensors.
        target: existing folder, to which the same three files are written.
        texts: text files, one sentence per line.
        filler: sentences that need not be covered completely.
        size: number of pieces to keep.
        max_positions: maximum number of tokens of a text; None keeps the encoder's own limit.

    Raises:
        ValueError: the texts alone need more than `size` pieces.
    """
    from tokenizers import Tokenizer

    tokenizer_json = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = tokenizer_json["model"]["vocab"]
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    needed = {t["content"] for t in tokenizer_json["added_tokens"]} | {
        p for p in pieces if len(p.removeprefix("##")) == 1 and p.isascii()
    }
    for path in texts:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"vocabulary_texts: {path} cannot be read: {error.strerror}") from None
        for encoding in tokenizer.encode_batch(lines):
            needed.update(encoding.tokens)
    if len(needed) > size:
        raise UserError(f"vocabulary size {size} is too small: the texts alone need {len(needed)} word pieces")
    counts = Counter(piece for encoding in tokenizer.encode_batch(list(filler)) for piece in encoding.tokens)
    ranked = [piece for piece, _ in counts.most_common()] + [
        p for p in pieces if not p.startswith("[unused") and (len(p.removeprefix("##")) > 1 or p.isascii())
    ]
    common = [piece for piece in dict.fromkeys(ranked) if piece not in needed]
    kept = sorted(needed | set(common[: size - len(needed)]), key=lambda piece: vocabulary[piece])
    new_ids = {piece: index for index, piece in enumerate(kept)}

    tokenizer_json["model"]["vocab"] = new_ids
    for token in tokenizer_json["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    ends = tokenizer_json["post_processor"]  # either of the two post-processor types that BERT tokenizers use
    if ends["type"] == "BertProcessing":
        ends |= {end: [ends[end][0], new_ids[ends[end][0]]] for end in ("sep", "cls")}
    else:
        for token in ends["special_tokens"].values():
            token["ids"] = [new_ids[piece] for piece in token["tokens"]]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer_json, ensure_ascii=False), encoding="utf-8")
    (target / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    model_config = json.loads((source / "config.json").read_text()) | {"vocab_size": len(kept)}
    weights = load_file(source / "model.safetensors")
    key = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[key] = weights[key][[vocabulary[piece] for piece in kept]]
    if max_positions is not None and max_positions < model_config["max_position_embeddings"]:
        model_config["max_position_embeddings"] = max_positions
        key = next(name for name in weights if name.endswith("position_embeddings.weight"))
        weights[key] = weights[key][:max_positions].clone()
        weights = {name: value for name, value in weights.items() if not name.endswith("position_ids")}
    (target / "config.json").write_text(json.dumps(model_config, indent=2))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
