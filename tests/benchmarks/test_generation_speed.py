"""10 s of sound: the bundled model at 25 steps, and AudioLDM's components at 10 steps, in the same run.

    uv run pytest tests/benchmarks/test_generation_speed.py -m benchmark -s

AudioLDM (Liu et al. 2023, arXiv:2301.12503) stands here with the configuration of its small model,
cvssp/audioldm-s-full-v2, as diffusers' conversion script writes it, and with random weights: U-Net, VAE of the mel
spectrogram and HiFi-GAN vocoder. Both run in float32 with guidance on; loading is not timed. The time of the bundled
model includes reading the text, AudioLDM's does not.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

DURATION_S = 10.0
STEPS, AUDIOLDM_STEPS = 25, 10


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


class AudioLDM:
    """The parts of AudioLDM's small model that turn noise into sound."""

    def __init__(self) -> None:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

        self.unet = UNet2DConditionModel(
            sample_size=128,
            in_channels=8,
            out_channels=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(128, 256, 384, 640),
            layers_per_block=2,
            cross_attention_dim=(128, 256, 384, 640),
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=512,
            class_embeddings_concat=True,
        ).eval()
        self.vae = AutoencoderKL(
            sample_size=512,
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(128, 256, 512),
            latent_channels=8,
            layers_per_block=2,
            scaling_factor=0.9228,
        ).eval()
        self.vocoder = SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=64,
                sampling_rate=16000,
                upsample_initial_channel=1024,
                upsample_rates=[5, 4, 2, 2, 2],
                upsample_kernel_sizes=[16, 16, 8, 4, 4],
                resblock_kernel_sizes=[3, 7, 11],
                resblock_dilation_sizes=[[1, 3, 5]] * 3,
                normalize_before=False,
            )
        ).eval()
        self.scheduler = DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        )

    @torch.no_grad()
    def __call__(self, steps: int, duration_s: float) -> torch.Tensor:
        """[1, duration_s * 16000], guidance scale 2.5."""
        mel_frames = round(duration_s * 100)
        latents = torch.randn(1, 8, mel_frames // 4, 16)
        text = torch.nn.functional.normalize(torch.randn(2, 512), dim=-1)  # stands for CLAP's, without and with prompt
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            pair = self.scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            without, with_text = self.unet(pair, timestep, encoder_hidden_states=None, class_labels=text).sample.chunk(
                2
            )
            guided = without + 2.5 * (with_text - without)
            latents = self.scheduler.step(guided, timestep, latents).prev_sample
        mel = self.vae.decode(latents / self.vae.config["scaling_factor"]).sample
        return self.vocoder(mel.squeeze(1))[:, : round(duration_s * 16000)]  # its kernels reach past the end


@pytest.mark.benchmark
def test_ten_seconds_of_sound_come_eight_times_faster_than_from_audioldm():
    from diffaudio import DiffAudioPipeline, bundled_model

    pipe = DiffAudioPipeline.from_pretrained(bundled_model())
    torch.manual_seed(0)
    audioldm = AudioLDM()
    unet_parameters = sum(p.numel() for p in audioldm.unet.parameters())
    assert round(unet_parameters / 1e6) == 185

    def ours(steps: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "a dog barking", num_inference_steps=steps, audio_length_in_s=DURATION_S, generator=generator
        ).audios

    ours(1)
    audioldm(1, DURATION_S)
    ours_s = []
    for _ in range(3):
        seconds, audio = timed(lambda: ours(STEPS))
        ours_s.append(seconds)
        assert audio.shape[-1] == round(DURATION_S * pipe.autoencoder.sample_rate)
    audioldm_s, audio = timed(lambda: audioldm(AUDIOLDM_STEPS, DURATION_S))
    assert audio.shape[-1] == round(DURATION_S * 16000)
    ratio = audioldm_s / sorted(ours_s)[1]

    own_parameters = sum(p.numel() for p in pipe.unet.parameters())
    print(f"\n{DURATION_S:g} s of sound, guidance on, float32, {torch.get_num_threads()} threads")
    print(
        f"  bundled model  U-Net {own_parameters / 1e6:5.1f} M  {STEPS} steps  {sorted(ours_s)[1]:7.2f} s (median of 3)"
    )
    print(f"  AudioLDM       U-Net {unet_parameters / 1e6:5.1f} M  {AUDIOLDM_STEPS} steps  {audioldm_s:7.2f} s")
    print(f"  ratio          {ratio:.1f}")
    assert ratio >= 8
