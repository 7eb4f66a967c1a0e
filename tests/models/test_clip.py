import json
import logging
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from real_clips import write_real_clips
from safetensors.torch import save_file
from tiny_model import EMBEDDING_DIM, write_tiny_clip

from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.prompt_templates import check_templates, fill


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip.from_pretrained(folder)


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (40, 30), (shade, 255 - shade, shade // 2))


def test_embeddings_have_unit_norm(clip: Clip):
    texts = clip.encode_text(["a dog barking", "rain"])
    pictures = clip.encode_image([picture(10), picture(200), Image.new("L", (20, 20))])
    video = clip.encode_video([picture(10), picture(200)])
    assert (texts.shape, pictures.shape, video.shape) == ((2, EMBEDDING_DIM), (3, EMBEDDING_DIM), (1, EMBEDDING_DIM))
    for embeddings in (texts, pictures, video):
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(embeddings)))


def test_the_embedding_of_a_text_does_not_depend_on_the_texts_beside_it(clip: Clip):
    alone = clip.encode_text(["rain"])
    beside = clip.encode_text(["rain", "the sound of a dog barking on the roof"])[:1]
    torch.testing.assert_close(alone, beside)


def test_encoding_twice_gives_the_same(clip: Clip):
    assert torch.equal(clip.encode_text(["a dog barking"]), clip.encode_text(["a dog barking"]))


def test_a_video_is_the_mean_of_its_frames(clip: Clip):
    frames = [picture(10), picture(120), picture(240)]
    mean = clip.encode_image(frames).mean(dim=0, keepdim=True)
    torch.testing.assert_close(clip.encode_video(frames), mean / mean.norm())


def test_a_text_that_is_too_long_is_cut_with_a_warning(clip: Clip, caplog: pytest.LogCaptureFixture):
    words = ["dog"] * 60
    with caplog.at_level(logging.WARNING):
        long = clip.encode_text([" ".join(words)])
    assert f"CLIP reads {clip.context_length} tokens of a text; the rest is ignored" in caplog.text
    torch.testing.assert_close(long, clip.encode_text([" ".join(words[: clip.context_length - 2])]))


def test_a_saved_clip_gives_the_same_embeddings(clip: Clip, tmp_path: Path):
    clip.save_pretrained(tmp_path / "clip")
    loaded = Clip.from_pretrained(tmp_path / "clip")
    assert loaded.name == clip.name
    assert torch.equal(loaded.encode_text(["rain"]), clip.encode_text(["rain"]))
    assert torch.equal(loaded.encode_image([picture(10)]), clip.encode_image([picture(10)]))


def test_a_built_in_model_of_open_clip_is_loaded_by_name_and_weights(tmp_path: Path):
    small = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    }
    small["text_cfg"] = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "diffaudio-test.json").write_text(json.dumps(small))
    open_clip.add_model_config(tmp_path / "diffaudio-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("diffaudio-test")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    clip = Clip.from_pretrained("diffaudio-test", str(tmp_path / "weights.safetensors"))
    tokens = open_clip.get_tokenizer("diffaudio-test")(["a dog"])
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(clip.encode_text(["a dog"]), expected)
    assert clip.embedding_dim == 8


def test_errors_name_what_is_missing(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"CLIP 'ViT-Z-1' is neither a folder, nor an 'hf-hub:' id, nor a model"):
        Clip.from_pretrained("ViT-Z-1", "openai")
    shutil.copytree(folder, tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not a complete CLIP folder, open_clip_model.safetensors is missing"):
        Clip.from_pretrained(tmp_path / "clip")


@pytest.fixture(scope="module")
def real_clips(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clip]:
    folders = write_real_clips(tmp_path_factory.mktemp("real"), folder)
    return {name: Clip.from_pretrained(path) for name, path in folders.items()}


@pytest.mark.parametrize("name", ["ViT-B-32", "SigLIP", "Hugging Face"])
def test_real_clips_encode_as_open_clip_does(real_clips: dict[str, Clip], name: str):
    clip = real_clips[name]
    texts = ["a dog barking on the roof", "rain"]
    with torch.no_grad():
        expected = clip.model.encode_text(clip.tokenizer(texts), normalize=True)
        pixels = torch.stack([clip.transform(picture(10)), clip.transform(picture(99))])
        images = clip.model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(clip.encode_text(texts), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.encode_image([picture(10), picture(99)]), images)


def test_real_clips_preprocess_as_they_were_trained(real_clips: dict[str, Clip]):
    """ViT-B-32 and its like cut out the centre of an image that is too wide; SigLIP squashes it."""
    wide = Image.new("RGB", (80, 40), "red")
    wide.paste("lime", (0, 0, 16, 40))  # outside of the central square
    for name, mean, std, at_the_edge in (
        ("ViT-B-32", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), (1.0, 0.0, 0.0)),
        ("Hugging Face", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), (1.0, 0.0, 0.0)),
        ("SigLIP", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.0, 1.0, 0.0)),
    ):
        pixels = real_clips[name].preprocess([wide])[0]
        size = real_clips[name].model.visual.image_size
        assert pixels.shape == (3, *((size, size) if isinstance(size, int) else size))
        expected = (torch.tensor(at_the_edge) - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(pixels[:, pixels.shape[1] // 2, 0], expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["ViT-B-32", "SigLIP", "Hugging Face"])
def test_the_context_length_of_real_clips_is_known_whatever_they_pad_with(real_clips: dict[str, Clip], name: str):
    clip = real_clips[name]
    longest = max(n for n in range(1, clip.context_length) if not clip.is_too_long(" ".join(["dog"] * n)))
    ends = 1 if name == "SigLIP" and clip.tokenizer.tokenizer.cls_token is None else 2
    assert longest == clip.context_length - ends
    assert clip.is_too_long(" ".join(["dog"] * (longest + 1)))


@pytest.mark.parametrize("name", ["ViT-B-32", "SigLIP", "Hugging Face"])
def test_a_real_clip_saved_with_templates_gives_the_same_embeddings(
    real_clips: dict[str, Clip], name: str, tmp_path: Path
):
    clip = real_clips[name]
    clip.templates = ("{}", "the sound of {}")
    clip.save_pretrained(tmp_path / "clip")
    loaded = Clip.from_pretrained(tmp_path / "clip")
    assert (loaded.name, loaded.templates) == (clip.name, clip.templates)
    assert torch.equal(loaded.encode_prompts(["rain"]), clip.encode_prompts(["rain"]))
    assert torch.equal(loaded.encode_image([picture(10)]), clip.encode_image([picture(10)]))


def test_a_prompt_is_the_mean_over_the_templates(folder: Path):
    clip = Clip.from_pretrained(folder)
    assert torch.equal(clip.encode_prompts(["rain"]), clip.encode_text(["rain"]))
    clip.templates = ("{}", "the sound of {}")
    mean = (clip.encode_text(["rain"]) + clip.encode_text(["the sound of rain"])) / 2
    torch.testing.assert_close(clip.encode_prompts(["rain"]), mean / mean.norm())
    assert fill("a photo of {}!", "{dog}") == "a photo of {dog}!"
    for wrong, message in (("the sound", r"'the sound' does not contain \{\} exactly once"), ("{} {}", "exactly once")):
        with pytest.raises(UserError, match=message):
            check_templates([wrong])
    with pytest.raises(UserError, match=r"a list of one or more sentences"):
        check_templates([])
