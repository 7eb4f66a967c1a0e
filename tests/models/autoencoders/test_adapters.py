"""Autoencoders of other libraries behind our interface, each against its own library on the same random weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderOobleck, MMAudioVAE, MMAudioVocoder
from fakes import FakeClip, write_clips
from tiny_autoencoders import LIBRARY_FORMATS, write_encodec, write_encodec_stereo, write_mel_vae
from tiny_model import EMBEDDING_DIM, tiny_parts, write_tiny_clip
from torch.nn.utils import parameters_to_vector
from transformers import EncodecModel, SpeechT5HifiGan
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from diffaudio import DiffAudioPipeline, hub
from diffaudio.checkpoint import save_parts
from diffaudio.cli.main import main
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.corpus.encode.run import encode
from diffaudio.diffusion.loss import diffusion_loss
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.models.autoencoders import load_autoencoder
from diffaudio.models.unet import UNet1D
from diffaudio.seeding import BatchDraws

EVERY = pytest.mark.parametrize("kind", LIBRARY_FORMATS)
# name, samples a latent frame
EXPECTED = {
    "encodec": ("encodec_8khz_8x100hz", 80),
    "encodec_stereo": ("encodec_8khz_9x100hz", 80),
    "mel_vae": ("mel_vae_16khz_8x25hz", 640),
    "mmaudio": ("mmaudio_8khz_4x62.5hz", 128),
    "oobleck": ("oobleck_8khz_8x125hz", 64),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("libraries")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {kind: write(root / kind) for kind, write in LIBRARY_FORMATS.items()}


@pytest.fixture(scope="module")
def loaded(folders) -> dict:
    return {kind: load_autoencoder(folder) for kind, folder in folders.items()}


def noise(autoencoder, samples: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    return 0.2 * torch.randn(batch, autoencoder.audio_channels, samples, generator=generator)


def whole(waveform: torch.Tensor, hop: int) -> torch.Tensor:
    return torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % hop))


@torch.no_grad()
def test_encodec_24khz_encodes_and_decodes_as_its_library_with_and_without_the_quantiser(folders):
    autoencoder, library = load_autoencoder(folders["encodec"]), EncodecModel.from_pretrained(folders["encodec"])
    waveform = noise(autoencoder, 2345)
    latents = autoencoder.encode(waveform)
    torch.testing.assert_close(latents, library.encoder(waveform))
    torch.testing.assert_close(autoencoder.decode(latents, num_samples=2345), library.decoder(latents)[..., :2345])
    for bandwidth in (0.4, 1.6):
        made = library.encode(waveform, bandwidth=bandwidth)
        autoencoder.set_bandwidth(bandwidth)
        expected = library.decode(made.audio_codes, made.audio_scales).audio_values
        torch.testing.assert_close(autoencoder.decode(latents), expected)


@torch.no_grad()
def test_encodec_48khz_encodes_and_decodes_as_its_library_where_chunks_do_not_overlap(tmp_path):
    folder = write_encodec_stereo(tmp_path, overlap=0.0)
    autoencoder, library = load_autoencoder(folder), EncodecModel.from_pretrained(folder)
    autoencoder.set_bandwidth(1.6)
    for samples in (1500, 2400, 2401, 7000):
        waveform = noise(autoencoder, samples)
        made = library.encode(waveform, bandwidth=1.6)
        latents = autoencoder.encode(waveform)
        codes = torch.cat(list(made.audio_codes), dim=-1)[..., : latents.shape[-1]]  # the last chunk is padded
        found = autoencoder.network.quantizer.encode(latents[:, :8], 1.6).transpose(0, 1)
        assert torch.equal(found, codes)
        levels = torch.cat(made.audio_scales, dim=1).repeat_interleave(30, dim=1)[:, : latents.shape[-1]]
        torch.testing.assert_close(latents[:, 8].exp(), levels)
        padding = {"last_frame_pad_length": made.last_frame_pad_length}
        expected = library.decode(made.audio_codes, made.audio_scales, **padding).audio_values
        torch.testing.assert_close(autoencoder.decode(latents, num_samples=samples), expected[..., :samples])


@torch.no_grad()
def test_encodec_48khz_lets_chunks_overlap_by_whole_frames(folders):
    folder = folders["encodec_stereo"]
    autoencoder, library = load_autoencoder(folder), EncodecModel.from_pretrained(folder)
    waveform = noise(autoencoder, 59 * 80)  # chunks of 30 frames: 0 to 30, 29 to 59
    latents = autoencoder.encode(waveform)
    for first, last in ((0, 29), (29, 59)):
        chunk = waveform[..., first * 80 : (first + 30) * 80]
        level = chunk.mean(dim=1, keepdim=True).square().mean(dim=-1, keepdim=True).sqrt() + 1e-8
        expected = library.encoder(chunk / level)[..., : last - first]
        torch.testing.assert_close(latents[:, :8, first:last], expected)
        torch.testing.assert_close(latents[:, 8:, first:last].exp(), level.expand(-1, 1, last - first))
    levels = latents[:, 8:].exp().repeat_interleave(80, dim=-1)
    one, other = (library.decoder(latents[:, :8, a:b]) for a, b in ((0, 30), (29, 59)))
    decoded = autoencoder.decode(latents)
    torch.testing.assert_close(decoded[..., : 29 * 80], (one * levels[..., : 30 * 80])[..., : 29 * 80])
    torch.testing.assert_close(decoded[..., 30 * 80 :], (other * levels[..., 29 * 80 :])[..., 80:])
    between = torch.stack([one[..., 29 * 80 :], other[..., :80]]) * levels[..., 29 * 80 : 30 * 80]
    faded = decoded[..., 29 * 80 : 30 * 80]
    assert (faded >= between.amin(0) - 1e-6).all() and (faded <= between.amax(0) + 1e-6).all()


@torch.no_grad()
def test_mel_vae_encodes_and_decodes_as_diffusers_and_transformers_with_audioldms_spectrogram(folders):
    autoencoder, folder = load_autoencoder(folders["mel_vae"]), folders["mel_vae"]
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    vocoder = SpeechT5HifiGan.from_pretrained(folder / "vocoder")
    waveform = noise(autoencoder, 4000)
    filters = mel_filter_bank(513, 16, 0, 8000, 16000, norm="slaney", mel_scale="slaney")
    settings = {"frame_length": 1024, "hop_length": 160, "fft_length": 1024, "power": 1.0, "mel_filters": filters}
    settings |= {"center": True, "pad_mode": "reflect", "mel_floor": 1e-5, "log_mel": "log", "dtype": np.float64}
    window = window_function(1024, "hann", periodic=True)
    padded = whole(waveform, 640)[:, 0].double().numpy()
    mel = torch.tensor(np.stack([spectrogram(item, window, **settings)[:, :28].T for item in padded])).float()
    torch.testing.assert_close(autoencoder.log_mel(whole(waveform, 640)[:, 0])[:, 0], mel, rtol=1e-4, atol=1e-4)
    h = vae.encode(mel[:, None]).latent_dist.mode() * vae.config.scaling_factor
    assert h.shape == (2, 2, 7, 4)  # channels, frames, mels / 4
    latents = autoencoder.encode(waveform)
    for channel in range(2):
        for band in range(4):
            torch.testing.assert_close(latents[:, 4 * channel + band], h[:, channel, :, band], rtol=1e-3, atol=1e-4)
    expected = vocoder(vae.decode(h / vae.config.scaling_factor).sample[:, 0])[:, None, :4000]
    torch.testing.assert_close(autoencoder.decode(latents, num_samples=4000), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_mmaudio_encodes_and_decodes_as_diffusers(folders):
    autoencoder, folder = load_autoencoder(folders["mmaudio"]), folders["mmaudio"]
    vae, vocoder = MMAudioVAE.from_pretrained(folder / "audio_vae"), MMAudioVocoder.from_pretrained(folder / "vocoder")
    waveform = noise(autoencoder, 2000)
    h = vae.encode(whole(waveform, 128)[:, 0]).latent_dist.mode()
    latents = autoencoder.encode(waveform)
    torch.testing.assert_close(latents, h * vae.config.scaling_factor)
    expected = vocoder(vae.decode(h).sample).sample[..., :2000]
    torch.testing.assert_close(autoencoder.decode(latents, num_samples=2000), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_oobleck_encodes_and_decodes_as_diffusers(folders):
    folder = folders["oobleck"]
    autoencoder, library = load_autoencoder(folder), AutoencoderOobleck.from_pretrained(folder / "vae")
    waveform = noise(autoencoder, 2000)
    latents = autoencoder.encode(waveform)
    torch.testing.assert_close(latents, library.encode(whole(waveform, 64)).latent_dist.mode())
    expected = library.decode(latents).sample[..., :2000]
    torch.testing.assert_close(autoencoder.decode(latents, num_samples=2000), expected)


@EVERY
def test_it_says_what_it_is_and_lengths_are_kept(kind, loaded):
    autoencoder = loaded[kind]
    name, hop = EXPECTED[kind]
    assert autoencoder.name == name and autoencoder.latent_rate == autoencoder.sample_rate / hop
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters()) and not autoencoder.training
    for samples in (1, hop - 1, hop, hop + 1, 2501):
        latents = autoencoder.encode(noise(autoencoder, samples, batch=1))
        frames = autoencoder.num_latent_frames(samples / autoencoder.sample_rate)
        assert latents.shape == (1, autoencoder.latent_channels, frames) and frames == math.ceil(samples / hop)
        assert autoencoder.decode(latents, num_samples=samples).shape == (1, autoencoder.audio_channels, samples)
        assert autoencoder.decode(latents).shape[-1] == frames * hop


@EVERY
def test_fitted_latents_have_mean_0_and_deviation_1_and_are_saved_as_safetensors(kind, folders, tmp_path):
    autoencoder = load_autoencoder(folders[kind])
    if kind == "encodec":
        autoencoder.set_bandwidth(0.8)
    waveforms = [noise(autoencoder, samples) * gain for samples, gain in ((3000, 1.0), (4000, 0.5))]
    before = autoencoder.decode(autoencoder.encode(waveforms[0]))
    autoencoder.fit_latents(waveforms)
    latents = torch.cat([autoencoder.encode(waveform).transpose(0, 1).flatten(1) for waveform in waveforms], dim=1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(len(latents)), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std(dim=1, correction=0), torch.ones(len(latents)), rtol=0, atol=1e-3)
    after = autoencoder.decode(autoencoder.encode(waveforms[0]))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)  # of no effect on the way there and back
    autoencoder.save_pretrained(tmp_path / "ours")
    assert {path.suffix for path in (tmp_path / "ours").iterdir()} == {".json", ".safetensors"}
    again = load_autoencoder(tmp_path / "ours")
    assert type(again) is type(autoencoder) and again.name == autoencoder.name
    latents = autoencoder.encode(waveforms[1])
    assert torch.equal(again.encode(waveforms[1]), latents)
    assert torch.equal(again.decode(latents), autoencoder.decode(latents))


@EVERY
def test_a_corpus_is_encoded_the_unet_learns_and_the_pipeline_makes_sound(kind, folders, loaded, tmp_path):
    autoencoder = loaded[kind]
    rate = autoencoder.sample_rate
    sounds = [0.3 * noise(autoencoder, samples, batch=1)[0].clamp(-1, 1) for samples in (rate // 2, rate // 2, rate)]
    clips = write_clips(tmp_path / "clips", sounds, [[(250, 0, 0)]] * 3, sample_rate=rate)
    encode(clips, tmp_path / "latents", autoencoder=autoencoder, clip=FakeClip(), progress=False)
    dataset = LatentDataset(tmp_path / "latents")
    assert (dataset.autoencoder["name"], len(dataset)) == (autoencoder.name, 3)
    unet = UNet1D(
        dataset.latent_channels, EMBEDDING_DIM, channels=(8, 16), blocks_per_level=1, middle_blocks=1,
        attention_levels=(), attention_head_dim=8, condition_dim=16,
    )  # fmt: skip
    scheduler, embedding = training_scheduler("flow"), torch.eye(1, EMBEDDING_DIM)
    latents, generator = dataset[0]["latents"][None], torch.Generator().manual_seed(0)
    more = {"noise": torch.randn(latents.shape, generator=generator), "draws": BatchDraws(0, 0, 1)}
    losses = diffusion_loss(unet, latents, embedding, scheduler=scheduler, **more).items
    before = parameters_to_vector(unet.parameters()).detach()
    losses.mean().backward()
    torch.optim.SGD(unet.parameters(), lr=1e-3).step()
    assert losses.isfinite().all() and not torch.equal(parameters_to_vector(unet.parameters()), before)
    parts = tiny_parts(tmp_path / "clip") | {"unet": unet.eval(), "scheduler": scheduler, "autoencoder": autoencoder}
    save_parts(tmp_path / "model", parts)
    assert load_autoencoder(tmp_path / "model").name == autoencoder.name
    pipe = DiffAudioPipeline.from_pretrained(tmp_path / "model")
    audios = pipe("a dog", num_inference_steps=2, audio_length_in_s=1.0, generator=generator).audios
    assert audios.shape == (1, autoencoder.audio_channels, rate) and audios.abs().max() > 1e-4


def test_the_command_takes_a_folder_in_a_librarys_format(folders, tmp_path):
    sounds = [torch.rand(1, 4000) - 0.5]
    clips = write_clips(tmp_path / "clips", sounds, [[(250, 0, 0)]], sample_rate=8000)
    write_tiny_clip(tmp_path / "clip")
    parts = ["--autoencoder", str(folders["oobleck"]), "--clip", str(tmp_path / "clip"), "--device", "cpu"]
    main(["encode", str(clips), *parts, "-o", str(tmp_path / "latents")])
    assert LatentDataset(tmp_path / "latents").autoencoder["name"] == "oobleck_8khz_8x125hz"


def test_of_a_hub_id_only_the_autoencoder_is_fetched(folders, monkeypatch):
    asked = []

    def download(model, *, allow_patterns):
        asked.append((model, allow_patterns))
        return folders["mel_vae"]

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert load_autoencoder("owner/audioldm").name == "mel_vae_16khz_8x25hz"
    assert asked == [
        ("owner/audioldm", ["*config.json"]),
        ("owner/audioldm", ["vae/*.safetensors*", "vocoder/*.safetensors*"]),
    ]


def test_a_channel_that_hardly_varies_is_not_blown_up(folders):
    autoencoder = load_autoencoder(folders["oobleck"])
    autoencoder.network.encoder.conv2.weight_g[0] = 0  # the first of the means
    autoencoder.fit_latents([noise(autoencoder, 2000)])
    assert autoencoder.latent_scale[0].item() == pytest.approx(autoencoder.latent_scale.max().item() / 100)


def test_errors_say_what_was_given(folders, loaded, tmp_path):
    for kind, channels in (("oobleck", 1), ("mmaudio", 2)):
        with pytest.raises(ValueError, match=rf"waveform is \(1, {channels}, 400\); expected \[batch, .*mix_channels"):
            loaded[kind].encode(torch.zeros(1, channels, 400))
    with pytest.raises(ValueError, match=r"latents are \(1, 3, 5\); expected \[batch, 8, frames\]"):
        loaded["oobleck"].decode(torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match=r"hold 0 frames; give more"):
        loaded["oobleck"].fit_latents([])
    with pytest.raises(ValueError, match=r"bandwidth 6 is unknown; this EnCodec has 0.4, 0.8, 1.6 kbit/s"):
        loaded["encodec"].set_bandwidth(6)
    with pytest.raises(ValueError, match="AutoencoderKL without its vocoder; name the folder that holds both"):
        load_autoencoder(folders["mel_vae"] / "vae")
    with pytest.raises(ValueError, match="nowhere: not an autoencoder folder, config.json is missing"):
        load_autoencoder(tmp_path / "nowhere")
    write_encodec(tmp_path / "two/encodec")
    (tmp_path / "two/vae").symlink_to(folders["oobleck"] / "vae")
    with pytest.raises(ValueError, match="several autoencoders, EncodecModel, AutoencoderOobleck; name the folder"):
        load_autoencoder(tmp_path / "two")


def test_parts_that_do_not_fit_and_weights_that_are_missing_or_pickled_are_refused(folders, tmp_path):
    write_mel_vae(tmp_path / "mel")
    config_file = tmp_path / "mel/vocoder/config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"sampling_rate": 8000}))
    with pytest.raises(ValueError, match="mel: cannot be loaded as AutoencoderKL: mel bands of 0 to 8000 Hz; at 8000"):
        load_autoencoder(tmp_path / "mel")
    config_file.write_text(json.dumps(config | {"upsample_initial_channel": 64}))
    with pytest.raises(ValueError, match=r"mel/vocoder: \d+ weights do not fit config.json, such as "):
        load_autoencoder(tmp_path / "mel")
    folder = write_encodec(tmp_path / "encodec")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_lstm_layers": 2}))
    with pytest.raises(ValueError, match=r"encodec: 8 weights do not fit config.json, such as decoder.layers.1.lstm"):
        load_autoencoder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="encodec: has no weights as .*pickles are not read, convert them first"):
        load_autoencoder(folder)
