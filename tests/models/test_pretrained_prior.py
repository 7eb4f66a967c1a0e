"""Pretrained diffusion priors in diffusers' format, with small random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UnCLIPScheduler
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from tiny_model import tiny_parts

from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import fit_bridge
from diffaudio.models.bridge.folder import choose_bridge, load_bridge
from diffaudio.models.bridge.noise import fixed_noise
from diffaudio.models.bridge.pretrained_prior import PretrainedPriorBridge
from diffaudio.models.clip import Clip
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline

DIM = 16
TEXTS = ["a dog barking", "rain"]


def write_clip(folder: Path, name: str) -> Clip:
    """A CLIP of OpenAI's architecture: a causal text transformer of 77 tokens, with random weights."""
    folder.mkdir()
    text = {"context_length": 77, "vocab_size": 49408, "width": DIM, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    config = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": text}
    index = {"name": name, "model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(index))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return Clip.from_pretrained(folder)


def write_prior(folder: Path, *, clip: str | None = "openai/clip-vit-large-patch14", **settings: Any) -> Path:
    """A folder such as that of Karlo or of Kandinsky's prior, as diffusers writes it."""
    common: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "embedding_dim": DIM}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        prior = PriorTransformer(**common | settings)
        for value in (prior.positional_embedding, prior.prd_embedding, prior.clip_mean):
            if value is not None:
                torch.nn.init.normal_(value, std=0.3)
        torch.nn.init.constant_(prior.clip_std, 0.5)
    prior.save_pretrained(folder / "prior")
    UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0).save_pretrained(folder / "prior_scheduler")
    if clip is not None:
        (folder / "text_encoder").mkdir()
        encoder = {"_name_or_path": clip, "architectures": ["CLIPTextModelWithProjection"]}
        (folder / "text_encoder" / "config.json").write_text(json.dumps(encoder))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "UnCLIPPipeline"}))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return write_clip(tmp_path_factory.mktemp("clip") / "vit", "ViT-L-14/openai")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prior(tmp_path_factory.mktemp("prior") / "karlo")


def test_the_tokens_of_a_text_are_what_its_embedding_is_projected_from(clip: Clip):
    pooled, hidden, mask = clip.encode_tokens(TEXTS)
    assert hidden.shape == (2, 77, DIM)
    assert mask.sum(dim=1).tolist() == [5, 3]  # the words between the start and the end of the text
    ends = hidden[torch.arange(2), mask.sum(dim=1) - 1]
    torch.testing.assert_close(ends @ clip.model.text_projection, pooled)
    torch.testing.assert_close(F.normalize(pooled, dim=-1), clip.encode_text(TEXTS))


def test_a_prior_of_diffusers_is_sampled_with_guidance_away_from_the_empty_text(clip: Clip, folder: Path):
    bridge = load_bridge(folder)
    assert isinstance(bridge, PretrainedPriorBridge)
    found = bridge.from_tokens(*clip.encode_tokens([*TEXTS, ""]))

    prior = PriorTransformer.from_pretrained(folder / "prior").eval()
    scheduler: Any = UnCLIPScheduler.from_pretrained(folder / "prior_scheduler")
    scheduler.set_timesteps(bridge.config["steps"])
    pooled, hidden, mask = clip.encode_tokens([TEXTS[1], ""])
    z = fixed_noise(bridge.config["seed"], pooled[:1])
    levels = scheduler.timesteps.tolist()
    with torch.no_grad():
        for level, following in zip(levels, [*levels[1:], None], strict=True):
            both = prior(
                z.expand(2, -1), level, proj_embedding=pooled, encoder_hidden_states=hidden, attention_mask=mask
            ).predicted_image_embedding
            x = (both[1:] + 4 * (both[:1] - both[1:])).clamp(-5, 5)
            a = scheduler.alphas_cumprod[level]
            b = torch.tensor(1.0) if following is None else scheduler.alphas_cumprod[following]
            z = b.sqrt() * x + (1 - b).sqrt() * (z - a.sqrt() * x) / (1 - a).sqrt()
        expected = F.normalize(z * prior.clip_std + prior.clip_mean, dim=-1)
    torch.testing.assert_close(found[1:], expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_the_layouts_of_kandinsky_and_of_the_transformer_alone_are_read_too(clip: Clip, folder: Path, tmp_path: Path):
    tokens = clip.encode_tokens([*TEXTS, ""])
    expected: Any = load_bridge(folder)
    shutil.copytree(folder, tmp_path / "kandinsky")
    (tmp_path / "kandinsky" / "prior_scheduler").rename(tmp_path / "kandinsky" / "scheduler")
    for place in (tmp_path / "kandinsky", folder / "prior"):
        loaded: Any = load_bridge(place)
        torch.testing.assert_close(loaded.from_tokens(*tokens), expected.from_tokens(*tokens))
    assert load_bridge(folder / "prior").config["clip_name"] is None


def test_a_prior_for_another_clip_is_refused_naming_both(folder: Path, tmp_path: Path):
    own = fit_bridge("none", torch.eye(DIM))
    assert isinstance(choose_bridge(str(folder), own, "ViT-L-14/openai"), PretrainedPriorBridge)
    with pytest.raises(UserError, match=r"made for CLIP 'ViT-L-14/openai', the model's is 'ViT-B-32/openai'"):
        choose_bridge(str(folder), own, "ViT-B-32/openai")
    other = write_prior(tmp_path / "other", clip="someone/another-clip")
    with pytest.raises(UserError, match=r"made for CLIP 'someone/another-clip', the model's is 'ViT-L-14/openai'"):
        choose_bridge(str(other), own, "ViT-L-14/openai")
    nameless = write_prior(tmp_path / "nameless", clip=None)
    with pytest.raises(UserError, match=r"for embeddings of 16 values \(CLIP 'unknown'\), those of .* 'wide' have 32"):
        choose_bridge(str(nameless), fit_bridge("none", torch.eye(32)), "wide")


def test_a_prior_comes_from_the_hub_by_its_id_without_what_lies_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {}

    def fetch(name: str, patterns: tuple[str, ...]) -> Path:
        asked[name] = list(patterns)
        return folder

    monkeypatch.setattr("diffaudio.models.bridge.folder.fetch", fetch)
    own = fit_bridge("none", torch.eye(DIM))
    assert isinstance(choose_bridge("hf-hub:someone/karlo", own, "ViT-L-14/openai"), PretrainedPriorBridge)
    files = ["model_index.json", "prior/config.json", "prior/diffusion_pytorch_model.safetensors", "unet/config.json"]
    files += ["prior_scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors"]
    files += ["decoder/diffusion_pytorch_model.safetensors", "super_res_first/diffusion_pytorch_model.safetensors"]
    wanted = list(filter_repo_objects(files, allow_patterns=asked["hf-hub:someone/karlo"]))
    assert [name for name in wanted if name.endswith(".safetensors")] == ["prior/diffusion_pytorch_model.safetensors"]
    assert {"prior_scheduler/scheduler_config.json", "text_encoder/config.json", "prior/config.json"} <= set(wanted)


def test_a_prior_that_reads_tokens_of_another_size_or_none_is_refused(clip: Clip, tmp_path: Path):
    short: Any = load_bridge(write_prior(tmp_path / "short", num_embeddings=20))
    with pytest.raises(UserError, match=r"the prior reads 20 tokens of 16 values, .* has 77 of 16"):
        short.from_tokens(*clip.encode_tokens([*TEXTS, ""]))
    with pytest.raises(UserError, match=r"clip_embed_dim is 8 where embedding_dim is 16"):
        load_bridge(write_prior(tmp_path / "narrow", clip_embed_dim=8))
    with pytest.raises(UserError, match=r"reads no text tokens"):
        load_bridge(write_prior(tmp_path / "blind", added_emb_type=None, encoder_hid_proj_type=None))


def test_a_pipeline_with_a_pretrained_prior_is_saved_loaded_and_asked_in_words(
    clip: Clip, folder: Path, tmp_path: Path
):
    parts = tiny_parts(tmp_path / "tiny")
    unet = {name: value for name, value in parts["unet"].config.items() if not name.startswith("_")}
    parts |= {"clip": clip, "bridge": load_bridge(folder), "unet": UNet1D(**unet)}
    pipe = DiffAudioPipeline(**parts)
    embeddings = pipe.encode_prompt(TEXTS)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
    pipe.save_pretrained(tmp_path / "model")
    loaded = DiffAudioPipeline.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.encode_prompt(TEXTS), embeddings, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loaded.encode_prompt(TEXTS[1]), embeddings[1:], rtol=1e-3, atol=1e-4)


def test_a_pretrained_prior_may_lie_beside_a_model_s_own_bridge(clip: Clip, folder: Path, tmp_path: Path):
    fit_bridge("none", torch.eye(DIM)).save_pretrained(tmp_path / "bridge")
    shutil.copytree(folder, tmp_path / "bridge" / "karlo")
    own = load_bridge(tmp_path / "bridge")
    assert list(own.alternatives) == ["karlo"]
    own.save_pretrained(tmp_path / "again")
    beside: Any = choose_bridge("karlo", load_bridge(tmp_path / "again"), clip.name)
    expected: Any = load_bridge(folder)
    tokens = clip.encode_tokens([*TEXTS, ""])
    torch.testing.assert_close(beside.from_tokens(*tokens), expected.from_tokens(*tokens))


def test_a_clip_without_a_causal_text_transformer_says_so(tmp_path: Path):
    tiny = tiny_parts(tmp_path / "tiny")["clip"]
    with pytest.raises(UserError, match=r"CLIP 'tiny' has no causal text transformer; a pretrained diffusion prior"):
        tiny.encode_tokens(TEXTS)
