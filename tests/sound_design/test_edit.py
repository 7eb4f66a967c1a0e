"""Sound design by the pipeline, with tiny random weights: what is kept is kept, and what is generated fits in."""

import math

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import LATENT_CHANNELS, SAMPLE_RATE, tiny_parts

from diffaudio import DiffAudioPipeline
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.metrics.audio_checks import loudness_lufs
from diffaudio.sound_design import edit

FRAME = 320  # samples of a latent frame
QUICK = {"num_inference_steps": 3, "guidance_scale": 2.0}
SEAM = round(0.02 * SAMPLE_RATE)


@pytest.fixture(scope="module", params=["flow", "v"])
def pipe(request, tmp_path_factory):
    return DiffAudioPipeline(**tiny_parts(tmp_path_factory.mktemp("models") / "clip", objective=request.param))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return DiffAudioPipeline(**tiny_parts(tmp_path_factory.mktemp("models") / "clip"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def recording(num_samples=8000, gain=0.3):
    """Noise with a tone, of a second."""
    noise = torch.randn(1, num_samples, generator=seeded(7)) * 0.2
    return gain * (noise + torch.sin(torch.arange(num_samples) * 0.2)).clamp(-1, 1)


def test_strength_0_is_the_round_trip_and_strength_1_is_generation(pipe):
    sound = recording()
    gain = 0.7 / float(sound.abs().max())
    round_trip = pipe.autoencoder.decode(pipe.autoencoder.encode(sound[None] * gain), num_samples=8000) / gain
    found = pipe("rain", init_audio=sound, strength=0, loudness=None, **QUICK).audios
    torch.testing.assert_close(found, round_trip, atol=1e-6, rtol=1e-5)

    latent = {"output_type": "latent", "generator": seeded(1), **QUICK}
    generated = pipe("rain", audio_length_in_s=1.0, **latent).audios
    replaced = pipe("rain", init_audio=sound, strength=1, **latent | {"generator": seeded(1)}).audios
    assert torch.equal(replaced, generated)


def test_without_a_duration_a_sound_is_as_long_as_the_commands_default_or_its_recording(flow):
    latents = flow("rain", output_type="latent", **QUICK).audios
    assert latents.shape[-1] == flow.autoencoder.num_latent_frames(GenerationSettings.duration_s)
    assert flow("rain", init_audio=recording(3000), **QUICK).audios.shape == (1, 1, 3000)


def test_more_strength_leaves_less_of_the_recording(pipe):
    latents = pipe.autoencoder.encode(recording()[None] * 0.7 / recording().abs().max())

    def distance(strength):
        settings = {"strength": strength, "output_type": "latent", "generator": seeded(), **QUICK}
        return float((pipe("rain", init_audio=recording(), **settings).audios - latents).square().mean())

    distances = [distance(strength) for strength in (0, 0.3, 0.6, 1)]
    assert distances[0] < 1e-9 and distances == sorted(distances)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m_sde", "unipc", "sa"])
@pytest.mark.parametrize("mask", [[(0.3, 0.5)], [(0.0, 0.2), (0.61, 0.8)], [(0.7, 1.0)]])
def test_outside_of_masks_and_their_seams_every_sample_is_the_recordings(pipe, mask, sampler):
    sound = recording(gain=1.0)  # at full scale
    found = pipe("rain", init_audio=sound, mask=mask, sampler=sampler, **QUICK).audios[0]
    is_kept = torch.ones(8000, dtype=torch.bool)
    for start, end in mask:
        span = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        is_kept[max(0, span.start - SEAM) : span.stop + SEAM] = False
        assert (found - sound)[:, span].abs().max() > 0.01
    assert torch.equal(found[:, is_kept], sound[:, is_kept])


def test_the_edges_of_a_mask_do_not_click(flow):
    """The steps between samples there are no larger than elsewhere; cut hard, they are."""
    sound = 0.3 * torch.sin(torch.arange(8000) * 0.1)[None]
    found = flow("rain", init_audio=sound, mask=[(0.3, 0.5)], generator=seeded(), **QUICK).audios[0]
    steps = found.diff().abs()[0]
    at_edges = torch.cat([steps[edge - SEAM - 2 : edge + SEAM + 2] for edge in (2400, 4000)])
    assert at_edges.max() <= 1.2 * max(steps[2400:4000].max(), sound.diff().abs().max())


def test_what_lies_in_a_mask_has_no_effect(pipe):
    sound, other = recording(), recording()
    other[:, 2400:4000] = 5 * torch.randn(1, 1600, generator=seeded(3))
    first, second = (
        pipe("rain", init_audio=each, mask=[(0.3, 0.5)], generator=seeded(), **QUICK).audios for each in (sound, other)
    )
    assert torch.equal(first, second)


def test_what_is_generated_in_a_mask_has_the_level_of_its_surroundings_whatever_that_is(pipe):
    """Twice the recording is twice the result."""
    first, second = (
        pipe("rain", init_audio=gain * recording(), mask=[(0.3, 0.5)], generator=seeded(), **QUICK).audios
        for gain in (0.01, 0.02)
    )
    torch.testing.assert_close(2 * first, second, rtol=1e-3, atol=1e-5)


def test_a_loudness_applies_to_filled_recordings_only_on_request(flow):
    loud = flow("rain", init_audio=recording(), mask=[(0.3, 0.5)], loudness=-30, **QUICK).audios[0]
    assert loudness_lufs(loud, SAMPLE_RATE) == pytest.approx(-30, abs=0.1)
    assert loudness_lufs(flow("rain", audio_length_in_s=1, **QUICK).audios[0], SAMPLE_RATE) == pytest.approx(
        -23, abs=0.1
    )


def test_continuation_begins_with_the_recording_and_lead_in_ends_with_it(pipe):
    sound = recording(2000)
    after = pipe("rain", continue_audio=sound, audio_length_in_s=0.6, **QUICK).audios[0]
    before = pipe("rain", lead_in_audio=sound, audio_length_in_s=0.6, **QUICK).audios[0]
    both = pipe("rain", continue_audio=sound, lead_in_audio=sound, audio_length_in_s=0.9, **QUICK).audios[0]
    assert torch.equal(after[:, : 2000 - SEAM], sound[:, : 2000 - SEAM])
    assert torch.equal(before[:, -2000 + SEAM :], sound[:, SEAM:])
    assert torch.equal(both[:, : 2000 - SEAM], sound[:, : 2000 - SEAM])
    assert torch.equal(both[:, -2000 + SEAM :], sound[:, SEAM:])
    assert after.shape == before.shape == (1, 4800)
    assert both[:, 2000:-2000].abs().max() > 0.001


def test_a_file_of_any_rate_is_taken(flow, tmp_path):
    t = np.arange(22050) / 22050
    soundfile.write(tmp_path / "in.flac", np.stack([np.sin(2000 * t), np.sin(2000 * t)], 1) * 0.5, 22050)
    found = flow("rain", init_audio=tmp_path / "in.flac", mask=[(0.3, 0.5)], **QUICK).audios[0]
    assert found.shape == (1, 8000)
    expected = 0.5 * torch.sin(2000 * torch.arange(8000) / 8000)
    assert (found[0, 200:2200] - expected[200:2200]).abs().max() < 0.01


def test_the_end_of_a_loop_is_followed_by_its_beginning(flow):
    found = flow("rain", loop=True, audio_length_in_s=0.8, generator=seeded(), **QUICK).audios[0]
    plain = flow("rain", audio_length_in_s=0.8, generator=seeded(), **QUICK).audios[0]
    assert found.shape == plain.shape == (1, 6400)
    step = torch.cat([found[:, -1:], found[:, :1]], dim=1).diff().abs()
    assert step < found.diff().abs().quantile(0.99)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_turning_the_noise_of_a_loop_turns_the_loop(flow):
    """No frame is special: turned by a multiple of the U-Net's stride, the latents are the same but for their place."""
    noise = torch.randn(1, LATENT_CHANNELS, 20, generator=seeded())
    settings = {"audio_length_in_s": 0.8, "output_type": "latent", "sampler": "ddim", "loop": True, **QUICK}
    loops = [flow("rain", latents=each, **settings).audios for each in (noise, noise.roll(8, -1))]
    # the U-Net sees a little further than the windows reach around the loop
    torch.testing.assert_close(loops[0].roll(8, -1), loops[1], atol=0.05, rtol=0)
    settings |= {"loop": False}
    ends = [flow("rain", latents=each, **settings).audios for each in (noise, noise.roll(8, -1))]
    assert (ends[0].roll(8, -1) - ends[1]).abs().max() > 0.2


@pytest.fixture
def short_windows(monkeypatch):
    """Windows of 0.96 s, overlapping by 0.32; blocks of 2.56 s, with 0.64 s of context."""
    for name, frames in {"WINDOW_S": 24, "OVERLAP_S": 8, "MARGIN_S": 0, "BLOCK_S": 64, "CONTEXT_S": 16}.items():
        monkeypatch.setattr(edit, name, frames * FRAME / SAMPLE_RATE)


def test_a_long_sound_has_its_length_and_its_stream_is_the_same_sound(flow, short_windows):
    settings = {"audio_length_in_s": 24.99, **QUICK}
    whole = flow("rain", loudness=None, generator=seeded(), **settings).audios
    pieces = list(flow("rain", output_type="stream", generator=seeded(), **settings).audios)
    assert whole.shape == (1, 1, 199920)
    assert len(pieces) > 1
    streamed = torch.cat(pieces, dim=-1)
    gain = float(whole.abs().max() / streamed.abs().max())
    torch.testing.assert_close(whole, gain * streamed, atol=1e-5, rtol=1e-4)


def test_a_block_is_sampled_only_when_its_piece_is_asked_for(flow, short_windows):
    steps = []
    stream = flow("rain", audio_length_in_s=30, output_type="stream", generator=seeded(),
                  callback_on_step_end=lambda *given: steps.append(given[1]), **QUICK).audios  # fmt: skip
    next(stream)
    assert len(steps) < flow.num_timesteps / 2
    assert sum(1 for _ in stream) > 0
    assert steps == list(range(flow.num_timesteps))


def test_the_beginning_of_a_long_sound_does_not_depend_on_its_length(flow, short_windows):
    first, longer = (
        flow("rain", audio_length_in_s=duration, output_type="latent", generator=seeded(), **QUICK).audios
        for duration in (5.12, 9)
    )
    torch.testing.assert_close(first[..., :64], longer[..., :64])


def test_a_long_recording_is_sampled_only_around_its_masks(flow, short_windows):
    sound = recording(9 * SAMPLE_RATE)
    output = flow("rain", init_audio=sound, mask=[(4.0, 4.2)], **QUICK)
    assert output.num_passes <= 2 * 3 * 2  # two windows at most, each with guidance
    assert torch.equal(output.audios[0][:, : 4 * SAMPLE_RATE - SEAM], sound[:, : 4 * SAMPLE_RATE - SEAM])


def test_each_prompt_has_its_time(flow):
    """Where one prompt alone is active, far from the others, it decides; the sound differs where the prompts do."""
    ranges = [(0.0, 1.0), (1.0, 2.0)]
    settings = {"audio_length_in_s": 2.0, "output_type": "latent", "sampler": "ddim", **QUICK}
    same = flow(["rain", "rain"], prompt_ranges=ranges, generator=seeded(), **settings).audios
    other = flow(["rain", "a dog"], prompt_ranges=ranges, generator=seeded(), **settings).audios
    alone = flow("rain", generator=seeded(), **settings).audios
    torch.testing.assert_close(same, alone, atol=1e-4, rtol=0)
    assert other.shape == alone.shape
    difference = (other - same).abs().mean(dim=(0, 1))
    assert difference[-10:].mean() > 20 * difference[:5].mean()


def test_prompts_in_time_have_one_negative_prompt(flow):
    settings = {"audio_length_in_s": 0.4, "prompt_ranges": [(0, 0.3), (0.2, 0.4)], "output_type": "latent", **QUICK}
    prompts = ["rain", "a dog"]
    plain, other = (
        flow(prompts, negative_prompt=negative, generator=seeded(), **settings).audios
        for negative in (None, "the roof")
    )
    assert plain.shape == other.shape and not torch.allclose(plain, other, atol=1e-3)
    with pytest.raises(UserError, match="2 negative prompts for 1 prompts"):
        flow(prompts, negative_prompt=["a", "b"], **settings)


def test_a_recording_can_be_the_start_of_a_loop_whose_last_part_of_a_frame_is_cut_off(flow):
    found = flow("rain", init_audio=recording(6500), loop=True, audio_length_in_s=0.8, **QUICK).audios
    assert found.shape == (1, 1, 6400)


def test_several_takes_of_several_prompts_in_time_are_independent(flow):
    found = flow(["rain", "a dog"], prompt_ranges=[(0, 0.3), (0.2, 0.4)], num_waveforms_per_prompt=2,
                 audio_length_in_s=0.4, generator=[seeded(0), seeded(1)], **QUICK).audios  # fmt: skip
    assert found.shape == (2, 1, 3200)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": [(0.1, 0.2)]}, "a mask has no effect without init audio"),
        ({"strength": 0.5}, "strength has no effect without init audio"),
        ({"init_audio": recording(), "strength": 1.2}, "strength is 1.2; choose 0"),
        ({"init_audio": recording(), "mask": [(0.5, 1.5)]}, "mask 0.5:1.5 lies outside of the sound, which has 1 s"),
        ({"init_audio": recording(), "mask": [(-0.5, 0.5)]}, "mask -0.5:0.5 lies outside of the sound"),
        ({"init_audio": recording(), "mask": [(0.5, 0.5)]}, "mask 0.5:0.5 is empty"),
        ({"init_audio": recording(), "mask": [(0.5, math.nan)]}, "mask 0.5:nan is empty"),
        ({"init_audio": recording(), "mask": [(0.1, 0.3), (0.2, 0.4)]}, "masks 0.1:0.3 and 0.2:0.4 overlap"),
        ({"init_audio": recording(), "mask": [(0, 1)]}, "the masks cover the whole sound"),
        ({"init_audio": recording(100)}, r"init audio: has 0.013 s of sound; 0.04 s, a frame of the model, are needed"),
        ({"init_audio": recording() * math.nan}, "init audio: holds samples that are NaN or infinite"),
        ({"init_audio": recording().repeat(2, 1)}, r"init audio is \[2, 8000\]; expected \[1, samples\] at 8000 Hz"),
        ({"init_audio": "no.wav"}, "no.wav: there is no such file"),
        ({"init_audio": recording(), "audio_length_in_s": 0.5}, "has 1.00 s where the duration is 0.5 s"),
        ({"init_audio": recording(), "audio_length_in_s": 2}, "duration is 2 s; leave it out, or use continue"),
        ({"continue_audio": recording(), "audio_length_in_s": 1}, "so that nothing is left to generate"),
        ({"continue_audio": recording(), "lead_in_audio": recording(), "audio_length_in_s": 1.5}, "have 2.00 s"),
        ({"init_audio": recording(), "continue_audio": recording()}, "init audio and continue contradict"),
        ({"loop": True, "continue_audio": recording(), "audio_length_in_s": 2}, "loop and continue contradict"),
        ({"loop": True, "audio_length_in_s": 0.5}, r"a loop of 0.5 s is not a whole number of the model's frames; "
                                                   r"choose 0.48 or 0.52 s"),
        ({"resamples": 2}, "resamples has no effect without a mask"),
        ({"prompt_ranges": [(0, 1), (1, 2)]}, "2 time ranges for 1 prompts"),
        ({"prompt_ranges": [(0, 9)]}, "the time range 0 to 9 s does not lie in the sound, which has 5 s"),
        ({"prompt_ranges": [(0, 2)]}, "no prompt is active at 2"),
        ({"output_type": "stream", "loudness": -20}, "a stream has no recording, loop or loudness"),
    ],
)  # fmt: skip
def test_bad_input_is_named_in_one_line(flow, arguments, message):
    with pytest.raises(UserError, match=message):
        flow("rain", **QUICK | arguments)
