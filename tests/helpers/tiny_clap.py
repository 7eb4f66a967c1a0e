"""A complete CLAP folder with tiny random weights, made without a network, for tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

WORDS = ("<s>", "<pad>", "</s>", "<unk>", "a", "dog", "barking", "rain")


def write_tiny_clap(folder: Path, *, fusion: bool = False) -> Path:
    """A model that knows nothing; 48 kHz, pieces of 10 s, embeddings of 16 dimensions."""
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 1, "projection_dim": 16}
    audio = {"spec_size": 256, "patch_size": 16, "patch_stride": [16, 16], "hidden_size": 32, "depths": [1, 1]}
    audio |= {"num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "num_mel_bins": 64, "projection_dim": 16}
    audio |= {"enable_fusion": fusion, "window_size": 4, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16)).eval()
    model.save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc").save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=38, **special).save_pretrained(folder)
    return folder
