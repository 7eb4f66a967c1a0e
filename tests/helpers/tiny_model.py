"""A complete model folder with tiny random weights, made without a network, for tests.

    folder = write_tiny_model(tmp_path / "model")            # model_index.json, unet/, scheduler/, …
    pipe = DiffAudioPipeline.from_pretrained(folder)
    clip = Clip.from_pretrained(write_tiny_clip(tmp_path / "clip"))

It knows nothing; sounds are 8 kHz noise. Weights come from a fixed seed, so two folders are equal.
"""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import torch
from open_clip import create_model
from safetensors.torch import save_file
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel

from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.models.autoencoders import SpectralAutoencoder
from diffaudio.models.bridge.bridges import RetrievalBridge, fit_bridge
from diffaudio.models.clip import Clip
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline

SAMPLE_RATE = 8000
LATENT_CHANNELS = 8
EMBEDDING_DIM = 16

_WORDS = ("a", "dog", "barking", "rain", "on", "roof", "the", "sound", "of")


def write_tiny_clip(folder: Path) -> Path:
    """A one-layer BERT and a one-layer image transformer, in open_clip's format."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *_WORDS]
    pieces = {piece: index for index, piece in enumerate(dict.fromkeys(vocabulary))}
    BertWordPieceTokenizer(pieces).save(str(folder / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    bert = {"model_type": "bert", "vocab_size": len(pieces), "hidden_size": EMBEDDING_DIM, "num_hidden_layers": 1}
    bert |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(bert))
    text = {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "hf_proj_type": None, "context_length": 24}
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    config = {"embed_dim": EMBEDDING_DIM, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    index = {"name": "tiny", "model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(index))
    text_here = text | {"hf_model_name": str(folder.resolve())}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(f"local-dir:{folder}", text_cfg=text_here, load_weights=False)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def tiny_parts(clip_folder: Path, *, objective: str = "flow", threshold: float | None = None) -> dict[str, Any]:
    """The five parts of a pipeline; the U-Net's last layer is random too, so that what it is told shows.

    Args:
        clip_folder: where to put CLIP, which is made from files.
        objective: "flow" or "v".
        threshold: the bridge's `familiarity_threshold`.
    """
    clip = Clip.from_pretrained(write_tiny_clip(clip_folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet1D(
            LATENT_CHANNELS, EMBEDDING_DIM, channels=(16, 32), blocks_per_level=1, middle_blocks=1, attention_levels=(),
            attention_head_dim=8, condition_dim=32,
        )  # fmt: skip
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
        autoencoder = SpectralAutoencoder(
            SAMPLE_RATE, n_fft=256, hop_length=80, num_mels=16, patch_steps=4, latent_channels=LATENT_CHANNELS,
            inversion={"iterations": 1},
        )  # fmt: skip
        torch.nn.init.constant_(autoencoder.mean, -5.0)  # a level that is far from full scale
        torch.nn.init.constant_(autoencoder.scale, 0.5)
        heard = torch.nn.functional.normalize(torch.randn(10, EMBEDDING_DIM), dim=-1)
    bridge = fit_bridge("retrieval", heard, familiarity_threshold=threshold)
    assert isinstance(bridge, RetrievalBridge)
    scheduler = training_scheduler(objective)
    return {
        "unet": unet.eval(), "scheduler": scheduler, "autoencoder": autoencoder, "clip": clip, "bridge": bridge
    }  # fmt: skip


def write_tiny_model(folder: Path, *, objective: str = "flow", threshold: float | None = None) -> Path:
    """A model folder as training writes it."""
    parts = tiny_parts(folder.with_name(f"{folder.name}-clip"), objective=objective, threshold=threshold)
    DiffAudioPipeline(**parts).save_pretrained(folder)
    return folder


def sentence_encoder(folder: Path, clip_folder: Path) -> Path:
    """The tiny CLIP's tokenizer and a random BERT, as a sentence encoder's folder."""
    config = BertConfig(**json.loads((clip_folder / "config.json").read_text()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer = json.loads((clip_folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(clip_folder / "tokenizer_config.json", folder)
    return folder
