"""The pipeline and the model folder, with tiny random weights."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import EMBEDDING_DIM, LATENT_CHANNELS, SAMPLE_RATE, tiny_parts, write_tiny_model

import diffaudio
from diffaudio import DiffAudioPipeline, hub
from diffaudio import checkpoint as model_folder
from diffaudio.checkpoint import load_weak_unet
from diffaudio.corpus.synthetic.run import SynthesisSettings, write_clip
from diffaudio.diffusion.settings import Guidance, Projection
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.errors import UserError
from diffaudio.metrics.audio_checks import loudness_lufs
from diffaudio.models.bridge.bridges import fit_bridge
from diffaudio.models.unet import UNet1D
from diffaudio.queries.query import Part, Query

QUICK = {"num_inference_steps": 2, "audio_length_in_s": 0.2}
SAMPLES = round(0.2 * SAMPLE_RATE)
PICTURES = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipe(folder):
    return DiffAudioPipeline.from_pretrained(folder)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weaker(pipe):
    """The pipeline's U-Net with a part of its weights lost."""
    unet = copy.deepcopy(pipe.unet)
    torch.nn.init.normal_(unet.embedding_mlp.linear_1.weight, std=0.1, generator=seeded())
    return unet


def near(a, b):
    return torch.allclose(a, b, atol=1e-4)


def test_the_package_gives_its_names_and_no_others():
    for name in diffaudio.__all__:
        assert getattr(diffaudio, name).__name__ == name
    assert set(diffaudio.__all__) <= set(dir(diffaudio))
    with pytest.raises(AttributeError, match="module 'diffaudio' has no attribute 'Clap'"):
        _ = diffaudio.Clap


def test_a_text_becomes_a_sound_of_the_length_asked_for(pipe):
    audios = pipe("a dog barking", **QUICK).audios
    assert audios.shape == (1, 1, SAMPLES)
    assert audios.dtype == torch.float32
    assert 0 < audios.abs().max() < 0.9901


def test_the_seed_decides_the_sound(pipe):
    first, again, other = (pipe("rain", generator=seeded(s), **QUICK).audios for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not near(first, other)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m_sde"])
def test_a_sound_depends_on_its_own_generator_and_not_on_the_batch_around_it(pipe, sampler):
    together = pipe(["rain", "a dog"], generator=[seeded(5), seeded(17)], sampler=sampler, **QUICK).audios
    alone = pipe("a dog", generator=[seeded(17)], sampler=sampler, **QUICK).audios
    assert near(together[1], alone[0])


def test_a_single_generator_draws_the_sounds_one_after_another(pipe):
    generator = seeded(3)
    latents = torch.stack([torch.randn(LATENT_CHANNELS, 5, generator=generator) for _ in range(2)])
    settings = {**QUICK, "sampler": "ddim"}  # which draws nothing in its steps
    drawn = pipe(["rain", "a dog"], generator=seeded(3), **settings).audios
    assert near(drawn, pipe(["rain", "a dog"], latents=latents, **settings).audios)


def test_text_crosses_the_bridge_and_pictures_do_not(pipe):
    def of(**prompt):
        return pipe(**prompt, generator=seeded(), **QUICK).audios

    text = pipe.bridge(pipe.clip.encode_text(["a dog"]))
    assert near(of(prompt="a dog"), of(prompt_embeds=text))
    assert near(of(image=PICTURES[0]), of(prompt_embeds=pipe.clip.encode_image(PICTURES[:1])))
    assert near(of(video=PICTURES), of(prompt_embeds=pipe.clip.encode_video(PICTURES)))
    assert not near(of(prompt="a dog"), of(image=PICTURES[0]))
    assert len(pipe(image=PICTURES, **QUICK).audios) == 2


def test_pictures_and_videos_may_be_files(pipe, tmp_path):
    PICTURES[0].save(tmp_path / "red.png")
    write_clip(tmp_path / "bell.mp4", "bell", SynthesisSettings(duration_s=0.5))
    from_file = pipe(image=tmp_path / "red.png", generator=seeded(), **QUICK).audios
    assert near(from_file, pipe(image=PICTURES[0], generator=seeded(), **QUICK).audios)
    assert pipe(video=tmp_path / "bell.mp4", **QUICK).audios.shape == (1, 1, SAMPLES)


def test_the_sounds_of_a_prompt_follow_one_another(pipe):
    generators = [seeded(s) for s in range(4)]
    audios = pipe(["rain", "a dog"], num_waveforms_per_prompt=2, generator=generators, **QUICK).audios
    assert near(audios[1:2], pipe("rain", generator=[seeded(1)], **QUICK).audios)
    assert near(audios[2:3], pipe("a dog", generator=[seeded(2)], **QUICK).audios)


def test_a_negative_prompt_stands_where_no_condition_would(pipe):
    plain, led_away = (pipe("rain", negative_prompt=n, generator=seeded(), **QUICK).audios for n in (None, "a dog"))
    assert not near(plain, led_away)
    embeds = pipe.encode_prompt(["a dog"])
    assert near(led_away, pipe("rain", negative_prompt_embeds=embeds, generator=seeded(), **QUICK).audios)


def test_a_negative_image_is_an_image_query_in_its_place(pipe):
    def of(**negative):
        return pipe(["rain", "a dog"], generator=[seeded(0), seeded(1)], **negative, **QUICK).audios

    embeds = pipe.clip.encode_image(PICTURES)
    for image, expected in ((PICTURES[0], embeds[:1]), (PICTURES, embeds)):
        assert near(of(negative_image=image), of(negative_prompt_embeds=expected))
        assert not near(of(negative_image=image), of())


def test_weights_make_one_sound_of_texts_images_and_a_video(pipe):
    def of(**prompt):
        return pipe(**prompt, generator=seeded(), **QUICK).audios

    mixed = of(prompt=["rain", "a dog"], image=PICTURES[0], weights=[0.5, 0.3, 0.2])
    parts = [*pipe.encode_prompt(["rain", "a dog"]), *pipe.clip.encode_image(PICTURES[:1])]
    embedding = sum(w * e for w, e in zip((0.5, 0.3, 0.2), parts, strict=True))[None]
    assert near(mixed, of(prompt_embeds=embedding / embedding.norm()))
    parts = (Part("text", "rain", 0.5), Part("text", "a dog", 0.3), Part("image", PICTURES[0], 0.2))
    assert torch.equal(mixed, of(prompt=Query(parts)))
    assert len(pipe([Query(parts), "rain"], **QUICK).audios) == 2
    assert not near(mixed, of(prompt=["rain", "a dog"], image=PICTURES[0], weights=[0.5, 0.3, 2]))


def test_bridge_templates_and_image_bridge_of_a_call_decide_the_sound(pipe):
    def of(**arguments):
        return pipe(generator=seeded(), **QUICK, **arguments).audios

    assert torch.equal(of(prompt="rain", bridge="none"), of(prompt_embeds=pipe.clip.encode_text(["rain"])))
    text = pipe.bridge(pipe.clip.encode_text(["the sound of rain"]))
    assert torch.equal(of(prompt="rain", templates=["the sound of {}"]), of(prompt_embeds=text))
    assert not near(of(image=PICTURES[0], image_bridge="retrieval"), of(image=PICTURES[0]))
    negative = of(prompt="rain", negative_prompt="a dog", bridge="none")
    expected = of(prompt="rain", negative_prompt_embeds=pipe.clip.encode_text(["a dog"]), bridge="none")
    assert torch.equal(negative, expected)


def test_without_guidance_the_prompt_is_ignored(pipe):
    rain, dog = (pipe(p, guidance_scale=0, generator=seeded(), **QUICK).audios for p in ("rain", "a dog"))
    assert torch.equal(rain, dog)


def test_the_output_says_how_often_the_unet_was_run_over_each_sound(pipe):
    def passes(**changes):
        return pipe(["rain", "a dog"], **{**QUICK, "num_inference_steps": 4, **changes}).num_passes

    assert (passes(guidance_scale=1), passes(guidance_scale=3)) == (4, 8)
    assert passes(guidance_scale=3, weak_unet=weaker(pipe)) == 8
    assert passes(guidance=Guidance(interval=(0, 0.6))) == 2 + 2 * 2
    assert passes(guidance=Guidance(zero_init=0.04)) == 3 * 2


def test_guidance_options_and_a_weaker_unet_change_the_sound(pipe):
    def of(**changes):
        return pipe("rain", generator=seeded(), **QUICK, **changes).audios

    plain = of()
    rescaled = of(guidance_rescale=0.7)
    assert torch.equal(rescaled, of(guidance=Guidance(rescale=0.7)))
    for other in (rescaled, of(guidance=Guidance(projection=Projection())), of(weak_unet=weaker(pipe))):
        assert not near(plain, other)


def test_the_output_comes_as_tensor_array_latents_or_tuple(pipe):
    audios = pipe("rain", generator=seeded(), **QUICK).audios
    array = pipe("rain", generator=seeded(), output_type="np", **QUICK).audios
    assert isinstance(array, np.ndarray)
    assert near(torch.from_numpy(array), audios)
    latents = pipe("rain", generator=seeded(), output_type="latent", **QUICK).audios
    as_generated = pipe("rain", generator=seeded(), loudness=None, **QUICK).audios
    assert near(pipe.autoencoder.decode(latents, num_samples=SAMPLES), as_generated)
    (in_tuple,) = pipe("rain", generator=seeded(), return_dict=False, **QUICK)
    assert torch.equal(in_tuple, audios)


def stub_decoder(pipe, monkeypatch, *sounds, share=0.0):
    """The pipeline decodes these sounds, [channels, samples] each."""
    decoded = torch.stack(sounds), torch.full((len(sounds),), share)
    monkeypatch.setattr(type(pipe.autoencoder), "decode_bounded", lambda *_, **__: decoded)


def test_without_a_loudness_a_sound_too_loud_is_turned_down_and_others_keep_their_level(pipe, monkeypatch):
    loud, quiet = torch.tensor([[1.5, -3.0, 0.3]]), torch.tensor([[0.1, -0.2, 0.0]])
    stub_decoder(pipe, monkeypatch, loud, quiet)
    audios = pipe(["rain", "a dog"], loudness=None, **QUICK).audios
    assert near(audios[0], loud * 0.33)
    assert torch.equal(audios[1], quiet)


def noise(level, duration_s=2.0):
    return level * torch.rand(1, round(duration_s * SAMPLE_RATE), generator=seeded()).sub(0.5)


@pytest.mark.parametrize("level", [1e-4, 0.05, 0.4, 30.0])
@pytest.mark.parametrize("duration_s", [0.05, 2.0])
def test_sounds_of_any_level_come_out_at_one_loudness(pipe, monkeypatch, level, duration_s):
    stub_decoder(pipe, monkeypatch, noise(level, duration_s))
    for loudness in (-23.0, -30.0):
        audio = pipe("rain", loudness=loudness, **QUICK).audios[0]
        repeated = audio.repeat(1, 1 + round(0.4 / duration_s))
        assert loudness_lufs(repeated, SAMPLE_RATE) == pytest.approx(loudness, abs=0.1)
        assert torch.allclose(audio / audio.std(), noise(1.0, duration_s) / noise(1.0, duration_s).std(), atol=1e-4)


def test_a_loudness_that_would_pass_full_scale_ends_at_the_peak_and_silence_stays_silent(pipe, monkeypatch):
    click = torch.zeros(1, SAMPLE_RATE)
    click[0, 100] = 0.5
    stub_decoder(pipe, monkeypatch, click, torch.zeros(1, SAMPLE_RATE))
    audios = pipe(["a click", "silence"], loudness=-10.0, **QUICK).audios
    assert float(audios[0].max()) == pytest.approx(0.99)
    assert not audios[1].any()


def test_what_is_louder_than_any_recording_is_brought_down_and_counted(pipe):
    """Latents that guidance drove far out of range, as at a scale of 100."""
    latents = 1000 * torch.randn(1, LATENT_CHANNELS, 5, generator=seeded())
    settings = {**QUICK, "sampler": "ddim", "num_inference_steps": 1, "loudness": None}
    guided = pipe("rain", guidance_scale=100.0, latents=latents, **settings)
    assert guided.audios.isfinite().all()
    assert guided.audios.abs().max() <= 0.9901
    assert 0 < guided.out_of_range[0] <= 1
    assert pipe("rain", generator=seeded(), **QUICK).out_of_range == [0.0]
    assert pipe("rain", output_type="latent", **QUICK).out_of_range == []


def test_a_sound_that_was_mostly_out_of_range_is_warned_about(pipe, monkeypatch, caplog):
    stub_decoder(pipe, monkeypatch, noise(0.1), share=0.3)
    pipe("rain", **QUICK)
    assert "30 % of a sound's spectrogram was louder than any recording can be" in caplog.text


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m_sde", "unipc"])
def test_a_prediction_that_is_not_finite_ends_the_run_with_the_number_of_its_step(pipe, monkeypatch, sampler):
    calls, forward = [], type(pipe.unet).forward

    def broken(self, latents, *conditions):
        calls.append(len(latents))
        return forward(self, latents, *conditions) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(type(pipe.unet), "forward", broken)
    message = r"step 3 of \d+: the latents are no longer finite \(NaN or infinity\); lower the guidance scale \(3\)"
    with pytest.raises(UserError, match=message):
        pipe("rain", sampler=sampler, **QUICK | {"num_inference_steps": 4})
    assert len(calls) == 3


def test_samples_that_are_not_finite_are_refused(pipe, monkeypatch):
    stub_decoder(pipe, monkeypatch, noise(0.1) * float("inf"))
    with pytest.raises(UserError, match="the autoencoder made samples that are not finite"):
        pipe("rain", **QUICK)


def test_a_single_text_is_one_prompt(pipe):
    assert pipe.encode_prompt("a dog").shape == (1, EMBEDDING_DIM)
    assert torch.equal(pipe.encode_prompt("a dog"), pipe.encode_prompt(["a dog"]))


def test_to_takes_a_device_a_dtype_or_both_like_diffusers(folder):
    moved = DiffAudioPipeline.from_pretrained(folder)
    assert moved.to(torch.bfloat16) is moved
    assert moved.dtype == torch.bfloat16
    assert moved.to("cpu").dtype == torch.bfloat16
    assert moved.to("cpu", torch.float32).dtype == torch.float32
    assert moved.to(torch.float16, torch.device("cpu")).dtype == torch.float16
    assert moved.to(device="cpu", dtype=torch.float32).dtype == torch.float32
    for wrong in ((torch.float32, torch.float16), (3,), ("cpu", "cpu")):
        with pytest.raises(UserError, match=r"to\(\) takes one device and one dtype"):
            moved.to(*wrong)


def test_a_prompt_of_any_length_is_shortened_in_a_warning(tmp_path, caplog):
    parts = tiny_parts(tmp_path / "clip", threshold=2.0)
    DiffAudioPipeline(**parts)("a dog " * 2000, **QUICK)
    assert "…" in caplog.text
    assert max(len(record.getMessage()) for record in caplog.records) < 300


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_the_callback_is_called_for_every_pass(pipe, sampler):
    heard = []

    def callback(called, step, timestep, tensors):
        heard.append((step, called.num_timesteps, tensors["latents"].shape))

    pipe("rain", sampler=sampler, callback_on_step_end=callback, **QUICK)
    assert heard == [(step, len(heard), (1, LATENT_CHANNELS, 5)) for step in range(len(heard))]
    assert len(heard) >= 2


def test_no_sampler_means_the_scheduler_as_it_is(pipe):
    own, named = (pipe("rain", sampler=s, generator=seeded(), **QUICK).audios for s in (None, "ddim"))
    assert near(own, named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of prompt, image, video, prompt_embeds, not none"),
        ({"prompt": "a", "image": PICTURES[0]}, "not prompt and image; to mix them, give their weights"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, EMBEDDING_DIM)}, "not prompt and prompt_embeds"),
        ({"weights": [1.0], "prompt_embeds": torch.zeros(1, EMBEDDING_DIM)}, "not weights and prompt_embeds"),
        ({"prompt": "a", "weights": [0.5, 0.5]}, "2 weights for 1 texts, images and videos; give one for each"),
        ({"prompt": "a", "bridge": "prior"}, "bridge 'prior' is not one of this model's"),
        (
            {"prompt": "a", "templates": ["the sound"]},
            r"prompt template 'the sound' does not contain \{\} exactly once",
        ),
        ({"image": PICTURES[0], "image_bridge": "none"}, "image bridge 'none' maps texts only"),
        ({"prompt": "  "}, "a prompt is empty; say in a few words what to hear"),
        ({"prompt": []}, "the list of prompts is empty"),
        ({"image": []}, "the list of pictures is empty"),
        ({"image": "missing.png"}, "missing.png: there is no such file"),
        ({"video": []}, "the video has no frames"),
        ({"video": "missing.mp4"}, "missing.mp4"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps is 0; at least 1 is needed"),
        ({"prompt": "a", "guidance_scale": -1}, "guidance_scale is -1; it must be at least 0"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"prompt": "a", "audio_length_in_s": 0}, "audio_length_in_s is 0; it must be above 0 and at most 86400 s"),
        (
            {"prompt": "a", "audio_length_in_s": 1e6},
            r"audio_length_in_s is 1e\+06; it must be above 0 and at most",
        ),
        ({"prompt": "a", "audio_length_in_s": float("nan")}, "audio_length_in_s is nan"),
        ({"prompt": "a", "loudness": 3.0}, "loudness is 3.0; give -70 to -5 LUFS, or none to leave levels as they are"),
        ({"prompt": "a\udcff"}, "a prompt is not valid UTF-8"),
        ({"prompt": ["a", 3]}, "a prompt is of type int; give a text"),
        ({"prompt": "a", "num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt is 0"),
        ({"prompt": "a", "output_type": "pil"}, "output_type 'pil' is unknown; choose from pt, np, latent"),
        ({"prompt": "a", "sampler": "dpm4"}, "sampler 'dpm4' is unknown; choose from "),
        ({"prompt": "a", "generator": [seeded()] * 2}, "2 generators for 1 sounds"),
        (
            {"prompt": "a", "generator": SimpleNamespace(device=torch.device("cuda:0"))},
            "a generator is on cuda:0; make it on the CPU, so that a seed sounds alike everywhere",
        ),
        ({"prompt": "a", "latents": torch.zeros(1, 8, 4)}, r"latents are \[1, 8, 4\]; expected \[1, 8, 5\]"),
        ({"prompt_embeds": torch.zeros(1, 3)}, r"prompt_embeds is \[1, 3\]; expected \[prompts, 16\]"),
        (
            {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1},
            "a negative prompt has no effect at guidance scale 1; raise the scale above 1",
        ),
        (
            {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, EMBEDDING_DIM)},
            "give one of negative_prompt, negative_image and negative_prompt_embeds",
        ),
        (
            {"prompt": "a", "negative_prompt": "b", "negative_image": PICTURES[0]},
            "negative_prompt and negative_image, not",
        ),
        ({"prompt": "a", "negative_image": "missing.png"}, "missing.png: there is no such file"),
        ({"prompt": "a", "negative_image": PICTURES[0], "guidance_scale": 1}, "has no effect at guidance scale 1"),
        ({"prompt": ["a"] * 3, "negative_prompt": ["b"] * 2}, "2 negative prompts for 3 prompts"),
        (
            {"prompt": "a", "guidance_rescale": 0.5, "guidance": Guidance(rescale=0.7)},
            "give one of guidance_rescale and guidance.rescale, not both",
        ),
        ({"prompt": "a", "sampler": None, "eta": 1.0}, "spacing and eta have no effect without a sampler; name one"),
        (
            {"prompt": "a", "weak_unet": SimpleNamespace(config={"in_channels": 4})},
            "weak_unet's in_channels is 4 where the unet's is 8; they do not fit",
        ),
    ],
)
def test_a_wrong_argument_is_refused_with_a_reason(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{**QUICK, **arguments})


def test_a_far_prompt_is_warned_about_and_generated_anyway(tmp_path, caplog):
    parts = tiny_parts(tmp_path / "clip", threshold=2.0)
    assert len(DiffAudioPipeline(**parts)("a dog", **QUICK).audios) == 1
    assert "'a dog' lies far from everything this model was trained on" in caplog.text
    caplog.clear()
    parts["bridge"].register_to_config(familiarity_threshold=-2.0)
    DiffAudioPipeline(**parts)("a dog", **QUICK)
    assert caplog.text == ""


def test_parts_that_do_not_fit_each_other_are_refused(pipe):
    other = diffaudio.UNet1D(4, EMBEDDING_DIM, channels=(8, 16), attention_levels=(), attention_head_dim=8)
    with pytest.raises(ValueError, match="autoencoder gives 8 values where the unet's in_channels is 4"):
        DiffAudioPipeline(**{**pipe.components, "unet": other})


def test_a_bridge_made_for_another_clip_is_refused_as_a_part(pipe):
    images = torch.nn.functional.normalize(torch.randn(4, EMBEDDING_DIM), dim=-1)
    bridge = fit_bridge("retrieval", images, clip_name="ViT-B-32/openai")
    with pytest.raises(UserError, match="the bridge was made for CLIP 'ViT-B-32/openai', the model's is 'tiny'"):
        DiffAudioPipeline(**{**pipe.components, "bridge": bridge})
    fitting = fit_bridge("retrieval", images, clip_name="tiny")
    assert DiffAudioPipeline(**{**pipe.components, "bridge": fitting}).bridge is fitting


@pytest.mark.parametrize("objective", ["flow", "v"])
def test_a_saved_model_sounds_the_same_when_loaded(tmp_path, objective):
    pipe = DiffAudioPipeline(**tiny_parts(tmp_path / "clip", objective=objective))
    pipe.save_pretrained(tmp_path / "model")
    loaded = DiffAudioPipeline.from_pretrained(tmp_path / "model")
    before, after = (p("a dog", generator=seeded(), **QUICK).audios for p in (pipe, loaded))
    assert torch.equal(before, after)
    assert loaded.name_or_path == str(tmp_path / "model")


def test_a_saved_model_does_not_name_the_folder_that_it_was_loaded_from(pipe, folder, tmp_path):
    pipe.autoencoder.register_to_config(_name_or_path=str(folder))  # as `from_pretrained` of diffusers does
    pipe.save_pretrained(tmp_path / "model")
    texts = [path.read_text() for path in (tmp_path / "model").rglob("*.json")]
    assert texts
    assert not any(str(folder) in text for text in texts)


def test_a_model_saved_in_half_precision_is_smaller_and_nearly_the_same(pipe, folder, tmp_path):
    pipe.save_pretrained(tmp_path / "half", dtype=torch.float16)
    for file in ("unet/diffusion_pytorch_model.safetensors", "clip/open_clip_model.safetensors"):
        assert (tmp_path / "half" / file).stat().st_size < 0.7 * (folder / file).stat().st_size
    half = DiffAudioPipeline.from_pretrained(tmp_path / "half")
    assert (half.dtype, pipe.dtype) == (torch.float32, torch.float32)
    latents = [p("rain", generator=seeded(), output_type="latent", **QUICK).audios for p in (pipe, half)]
    assert torch.allclose(*latents, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_the_unet_takes_another_dtype(folder, pipe, dtype):
    low = DiffAudioPipeline.from_pretrained(folder, dtype=dtype)
    assert low.dtype == dtype
    assert {p.dtype for part in (low.clip, low.autoencoder, low.bridge) for p in part.parameters()} == {torch.float32}
    latents = [p("rain", generator=seeded(), output_type="latent", **QUICK).audios for p in (pipe, low)]
    assert latents[1].dtype == torch.float32
    assert torch.allclose(*latents, atol=0.2)
    assert DiffAudioPipeline.from_pretrained(folder, torch_dtype=dtype).dtype == dtype
    assert low.to("cpu", torch.float32).dtype == torch.float32


FILES = [f"{part}/{file}" for part, files in model_folder._FILES.items() for file in files]


@pytest.mark.parametrize(
    "file", ["model_index.json", *FILES, "clip/tokenizer.json", "clip/config.json", "clip/tokenizer_config.json"]
)
def test_a_missing_file_is_named(folder, tmp_path, file):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    with pytest.raises(ValueError, match=rf"model\b.*[/ ]{Path(file).name} is missing"):
        DiffAudioPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("file", ["model_index.json", *FILES])
def test_a_damaged_file_is_refused_with_its_place(folder, tmp_path, file):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"model/{file.split('/')[0]}(/[^/]+)?: "):
        DiffAudioPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_diffaudio_version": 2}, "format version 2; this diffaudio reads up to 1, a newer one is needed"),
        ({"_diffaudio_version": None}, "format version None"),
        ({"_class_name": "AudioLDMPipeline"}, "holds a 'AudioLDMPipeline', not a model of diffaudio"),
    ],
)
def test_a_folder_of_another_kind_or_version_is_refused(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model/model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(ValueError, match=message):
        DiffAudioPipeline.from_pretrained(tmp_path / "model")


def test_weights_that_do_not_fit_the_config_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "unet/config.json").read_text())
    (tmp_path / "model/unet/config.json").write_text(json.dumps(config | {"middle_blocks": 2}))
    with pytest.raises(ValueError, match=r"model/unet/.*safetensors: (lacks|should not hold) \d+ tensors, such as mid"):
        DiffAudioPipeline.from_pretrained(tmp_path / "model")


def test_a_scheduler_that_diffusers_does_not_know_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/scheduler/scheduler_config.json").write_text('{"_class_name": "FastestScheduler"}')
    with pytest.raises(
        ValueError, match="model/scheduler/scheduler_config.json: scheduler 'FastestScheduler' is unknown"
    ):
        DiffAudioPipeline.from_pretrained(tmp_path / "model")


def test_a_model_that_is_nowhere_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nowhere: there is no such model folder"):
        DiffAudioPipeline.from_pretrained(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="owner/name: no such folder here, and the hub did not give it"):
        DiffAudioPipeline.from_pretrained("owner/name")


def test_a_model_may_come_from_the_hub(folder, tmp_path, monkeypatch):
    asked = []

    def download(name, **settings):
        asked.append((name, settings["revision"]))
        return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", download)
    pipe = DiffAudioPipeline.from_pretrained("owner/name", revision="v1")
    assert asked == [("owner/name", "v1")]
    assert pipe.name_or_path == "owner/name"


def test_the_bundled_model_is_in_the_package_or_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "__file__", str(tmp_path / "diffaudio/checkpoint.py"))
    with pytest.raises(ValueError, match="this installation of diffaudio comes without a model; name one with --model"):
        model_folder.bundled_model()
    for place in ("checkpoints/mini", "diffaudio/checkpoints/mini"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model_index.json").touch()
        assert model_folder.bundled_model() == tmp_path / place


def test_clip_can_be_saved_and_loaded_again(pipe, tmp_path):
    pipe.clip.save_pretrained(tmp_path / "clip")
    again = diffaudio.Clip.from_pretrained(tmp_path / "clip")
    texts = ["a dog barking", "xyz, rain on the roof!"]
    assert torch.equal(again.encode_text(texts), pipe.clip.encode_text(texts))
    assert torch.equal(again.encode_image(PICTURES), pipe.clip.encode_image(PICTURES))
    assert again.name == pipe.clip.name


def test_a_weaker_model_is_loaded_where_its_predictions_compare(pipe, tmp_path):
    weak = weaker(pipe)
    DiffAudioPipeline(**{**pipe.components, "unet": weak}).save_pretrained(tmp_path / "weak")
    loaded = load_weak_unet(tmp_path / "weak", pipe.components)
    assert torch.equal(loaded.embedding_mlp.linear_1.weight, weak.embedding_mlp.linear_1.weight)


def test_a_model_that_cannot_weaken_another_is_refused(pipe, folder, tmp_path):
    def refusal(**changes):
        other = tmp_path / "-".join(changes)
        DiffAudioPipeline(**{**pipe.components, "unet": weaker(pipe), **changes}).save_pretrained(other)
        with pytest.raises(ValueError) as raised:
            load_weak_unet(other, pipe.components)
        return str(raised.value)

    clip, autoencoder = copy.copy(pipe.clip), copy.deepcopy(pipe.autoencoder)
    clip.name = "other"
    autoencoder.mean += 1
    because = "cannot guide this model, its {} is another; they must have it in common"
    assert because.format("CLIP") in refusal(clip=clip)
    assert because.format("autoencoder") in refusal(autoencoder=autoencoder)
    assert because.format("objective") in refusal(scheduler=training_scheduler("v"))
    with pytest.raises(ValueError, match="tiny: has no effect as weaker model, its U-Net is the same; name an earlier"):
        load_weak_unet(folder, pipe.components)
    with pytest.raises(ValueError, match="nowhere: there is no such model folder"):
        load_weak_unet(tmp_path / "nowhere", pipe.components)


@pytest.mark.gpu
def test_half_precision_on_cuda_sounds_like_the_cpu(folder, pipe):
    fast = DiffAudioPipeline.from_pretrained(folder, dtype=torch.float16).to("cuda")
    latents = [p("rain", generator=seeded(), output_type="latent", **QUICK).audios.cpu() for p in (pipe, fast)]
    assert torch.allclose(*latents, atol=0.05)
    assert fast("rain", **QUICK).audios.isfinite().all()


def test_a_unet_with_noise_levels_receives_the_bridges_for_texts_and_0_for_images(tmp_path):
    parts = tiny_parts(tmp_path / "clip")
    torch.manual_seed(0)
    config = {name: value for name, value in parts["unet"].config.items() if not name.startswith("_")}
    parts["unet"] = UNet1D(**config | {"embedding_noise_level": 0.5}).eval()
    embeddings = torch.nn.functional.normalize(torch.randn(9, 16), dim=1)
    parts["bridge"] = fit_bridge("noise", embeddings, embeddings.flip(0), level=0.3)
    pipe, told = DiffAudioPipeline(**parts), []

    def forward(module, arguments):
        told.append(None if arguments[2].shape[1] == 16 else round(arguments[2][0, -1].item(), 3))

    pipe.unet.register_forward_pre_hook(forward)
    call = {"num_inference_steps": 1, "audio_length_in_s": 0.5, "output_type": "latent", "guidance_scale": 1.0}
    pipe("a dog", **call)
    pipe(image=Image.new("RGB", (16, 16)), **call)
    pipe(image=Image.new("RGB", (16, 16)), embedding_noise=0.5, **call)
    assert told == [0.3, None, 0.5]
    with pytest.raises(UserError, match=r"noise level of embeddings is 0.6; the U-Net was trained with 0 to 0.5"):
        pipe("a dog", embedding_noise=0.6, **call)
    parts["bridge"] = fit_bridge("noise", embeddings, embeddings.flip(0), level=0.7)
    with pytest.raises(UserError, match=r"noise level of embeddings is 0.7; the U-Net was trained with 0 to 0.5"):
        DiffAudioPipeline(**parts)("a dog", **call)
    with pytest.raises(UserError, match=r"embedding_noise has no effect: the U-Net was not trained with noise levels"):
        DiffAudioPipeline(**tiny_parts(tmp_path / "other"))("a dog", embedding_noise=0.1, **call)
