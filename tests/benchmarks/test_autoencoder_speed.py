"""Every autoencoder's latents and speed, in one run: the bundled one, and the adapters at their published size.

    uv run pytest tests/benchmarks/test_autoencoder_speed.py -m benchmark -s

The adapters have random weights, which take the same time: EnCodec as facebook/encodec_24khz and encodec_48khz,
AudioLDM's VAE and vocoder as in cvssp/audioldm-s-full-v2, MMAudio's and Oobleck with diffusers' own configurations,
which are those of the published weights. What is timed is noise, encoded and decoded whole, a sound at a time, in
float32: medians of several runs after one that does not count.
"""

from collections.abc import Callable

import pytest
import torch

from diffaudio.evaluation.reconstruction import measure_speed
from diffaudio.models.autoencoders import Autoencoder

ENCODEC_48KHZ = {
    "sampling_rate": 48000, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01,
    "use_causal_conv": False, "norm_type": "time_group_norm", "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
}  # fmt: skip
AUDIOLDM_VAE = {
    "sample_size": 512, "in_channels": 1, "out_channels": 1, "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3, "block_out_channels": (128, 256, 512), "layers_per_block": 2,
    "latent_channels": 8, "scaling_factor": 0.9228,
}  # fmt: skip
AUDIOLDM_VOCODER = {
    "model_in_dim": 64, "sampling_rate": 16000, "upsample_initial_channel": 1024, "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4], "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3, "normalize_before": False,
}  # fmt: skip


def bundled() -> Autoencoder:
    from diffaudio.checkpoint import load_coder

    return load_coder()


def encodec_24khz() -> Autoencoder:
    from diffaudio.models.autoencoders.adapters.encodec import EncodecAutoencoder

    return EncodecAutoencoder({})


def encodec_48khz() -> Autoencoder:
    from diffaudio.models.autoencoders.adapters.encodec import EncodecAutoencoder

    return EncodecAutoencoder(ENCODEC_48KHZ)


def audioldm() -> Autoencoder:
    from diffaudio.models.autoencoders.adapters.mel_vae import MelVAEAutoencoder

    return MelVAEAutoencoder(AUDIOLDM_VAE, AUDIOLDM_VOCODER)


def mmaudio() -> Autoencoder:
    from diffaudio.models.autoencoders.adapters.mmaudio import MMAudioAutoencoder

    return MMAudioAutoencoder({}, {})


def oobleck() -> Autoencoder:
    from diffaudio.models.autoencoders.adapters.oobleck import OobleckAutoencoder

    return OobleckAutoencoder({})


ADAPTERS: list[Callable[[], Autoencoder]] = [encodec_24khz, encodec_48khz, audioldm, mmaudio, oobleck]


@pytest.mark.benchmark
def test_the_bundled_autoencoder_encodes_100_and_decodes_60_times_faster_than_real_time():
    head = f"{'autoencoder':42}{'weights':>9}{'million':>9}{'sound':>16}{'latents':>16}{'values/s':>10}"
    print(f"\n{torch.get_num_threads()} threads\n{head}{'encoding':>10}{'decoding':>10}")
    encode_s, decode_s = told(bundled(), "bundled", duration_s=10.0, repeats=9)
    for make in ADAPTERS:
        torch.manual_seed(0)
        told(make(), "random", duration_s=4.0, repeats=3)
    assert 1 / encode_s >= 100
    assert 1 / decode_s >= 60


def told(autoencoder: Autoencoder, weights: str, *, duration_s: float, repeats: int) -> tuple[float, float]:
    encode_s, decode_s = measure_speed(autoencoder, duration_s=duration_s, repeats=repeats)
    million = sum(parameter.numel() for parameter in autoencoder.parameters()) / 1e6
    sound = f"{autoencoder.audio_channels} x {autoencoder.sample_rate} Hz"
    latents = f"{autoencoder.latent_channels} x {autoencoder.latent_rate:.4g} Hz"
    values = autoencoder.latent_channels * autoencoder.latent_rate
    print(
        f"{autoencoder.name:42}{weights:>9}{million:9.1f}{sound:>16}{latents:>16}{values:10.0f}"
        f"{1 / encode_s:9.3g}x{1 / decode_s:9.3g}x",
        flush=True,
    )
    return encode_s, decode_s
