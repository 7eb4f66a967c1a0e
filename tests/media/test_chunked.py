"""Sound in pieces: what is made window by window is what is made of the whole."""

import math
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from media import CODECS, numbered_pictures, write_media
from media import noise as white
from tiny_autoencoders import LIBRARY_FORMATS, randomised_ends

from diffaudio.media.audio import read_audio, resample, write_audio
from diffaudio.media.chunked import map_windows, read_chunks, resample_chunks, write_chunks
from diffaudio.models.autoencoders import Autoencoder, SpectralAutoencoder, load_autoencoder
from diffaudio.models.autoencoders.windows import decode_windows, encode_windows

# largest difference by the RMS of the whole: latents, waveform; see the module's header
EXACT = {
    "spectral": (1e-3, 1e-3),
    "spectral_learned": (1e-3, 1e-3),
    "encodec_stereo": (1e-3, 1e-3),
    "oobleck": (1e-3, 1e-3),
}
FADING = {"encodec": (1e-3, 1e-3)}
EVERYTHING = {"mel_vae": 0.5, "mmaudio": 0.01}  # the RMS of the difference instead


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory) -> dict[str, Autoencoder]:
    root = tmp_path_factory.mktemp("libraries")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = {kind: load_autoencoder(write(root / kind)) for kind, write in LIBRARY_FORMATS.items()}
        settings: dict[str, Any] = {"n_fft": 256, "hop_length": 80, "num_mels": 32, "latent_channels": 128}
        spectral = SpectralAutoencoder(8000, **settings, audio_channels=2)
        parts = {"detail": {"channels": 16, "blocks": 2, "temperature": 1.0}, "vocoder": {"channels": 16, "blocks": 2}}
        learned = SpectralAutoencoder(8000, **settings, **parts, inversion={"iterations": 3})
        randomised_ends(learned)
    return loaded | {"spectral": spectral, "spectral_learned": learned}


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Five seconds of two channels in several formats; the mp4 with a gap."""
    folder = tmp_path_factory.mktemp("media")
    for name in ("a.wav", "a.flac"):
        write_audio(folder / name, torch.from_numpy(white(5.0, 44100, channels=2)), 44100)
    for name in ("a.mp4", "a.mkv", "a.webm"):
        sound = white(5.0, CODECS[f".{name[2:]}"][2], channels=2)
        write_media(
            folder / name, sound=sound, pictures=numbered_pictures(5.0), gap=(2.0, 0.5) if name == "a.mp4" else None
        )
    return folder


def noise(autoencoder: Autoencoder, duration_s: float) -> torch.Tensor:
    samples = round(duration_s * autoencoder.sample_rate) + 17  # no whole frame
    generator = torch.Generator().manual_seed(0)
    swell = 0.2 + 0.15 * torch.sin(torch.arange(samples) / autoencoder.sample_rate * 5)
    return swell * torch.randn(1, autoencoder.audio_channels, samples, generator=generator)


def in_pieces(values: torch.Tensor, size: int) -> list[torch.Tensor]:
    return list(values.split(size, dim=-1))


def joined(pieces) -> torch.Tensor:
    return torch.cat(list(pieces), dim=-1)


def difference(found: torch.Tensor, whole: torch.Tensor) -> float:
    assert found.shape == whole.shape
    return ((found - whole).abs().max() / whole.square().mean().sqrt()).item()


def rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


@pytest.mark.parametrize("kind", [*EXACT, *FADING])
def test_windows_give_what_the_whole_gives_within_the_stated_tolerance(kind, autoencoders):
    autoencoder = autoencoders[kind]
    of_latents, of_sound = (EXACT | FADING)[kind]
    waveform = noise(autoencoder, 5.0)
    whole = autoencoder.encode(waveform)
    pieces = list(encode_windows(autoencoder, in_pieces(waveform, 3001), window_s=1.0))
    assert len(pieces) >= 3
    assert difference(joined(pieces), whole) < of_latents
    decoded = list(decode_windows(autoencoder, in_pieces(whole, 7), window_s=1.0, num_samples=waveform.shape[-1]))
    assert len(decoded) >= 3
    assert difference(joined(decoded), autoencoder.decode(whole, num_samples=waveform.shape[-1])) < of_sound
    assert autoencoder.reach.exact == (kind in EXACT)


@pytest.mark.parametrize("kind", EXACT)
def test_context_is_needed_and_as_much_as_it_says_is_enough(kind, autoencoders):
    """Without context the seam shows."""
    autoencoder = autoencoders[kind]
    reach = autoencoder.reach
    frames = 4 * (reach.decode + reach.grid)
    latents = torch.randn(1, autoencoder.latent_channels, frames, generator=torch.Generator().manual_seed(0))
    first = 2 * reach.grid * math.ceil(reach.decode / reach.grid)
    hop = round(autoencoder.sample_rate / autoencoder.latent_rate)
    whole = autoencoder.decode(latents)[..., first * hop :]

    def worst(context: int) -> float:
        made = autoencoder.decode_window(latents[..., first - context :], first_frame=first - context)
        return difference(made[..., context * hop :], whole)

    assert worst(math.ceil(reach.decode / reach.grid) * reach.grid) < 1e-3
    assert worst(0) > 1e-2


@pytest.mark.parametrize("kind", EVERYTHING)
def test_what_looks_at_everything_keeps_its_length_and_has_no_seams(kind, autoencoders):
    autoencoder = autoencoders[kind]
    waveform = noise(autoencoder, 6.0)
    whole = autoencoder.encode(waveform)
    latents = joined(encode_windows(autoencoder, waveform, window_s=2.0))
    assert latents.shape == whole.shape and not autoencoder.reach.exact
    assert rms(latents - whole) < EVERYTHING[kind] * rms(whole)
    at_once = autoencoder.decode(whole)
    decoded = joined(decode_windows(autoencoder, whole, window_s=2.0))
    assert decoded.shape == at_once.shape
    assert rms(decoded - at_once) < EVERYTHING[kind] * rms(at_once)
    jumps = decoded.diff(dim=-1).abs()
    assert jumps.max() < 2 * at_once.diff(dim=-1).abs().max()


def test_a_short_sound_is_one_window_and_nothing_differs(autoencoders):
    for autoencoder in autoencoders.values():
        waveform = noise(autoencoder, 0.5)
        latents = autoencoder.encode(waveform)
        assert torch.equal(joined(encode_windows(autoencoder, waveform)), latents)
        decoded = joined(decode_windows(autoencoder, latents, num_samples=1234))
        assert torch.equal(decoded, autoencoder.decode(latents, num_samples=1234))


def test_random_numbers_belong_to_the_step_in_the_sound(autoencoders):
    inversion = autoencoders["spectral"].inversion
    whole = inversion.random(0, 300, 129)
    assert whole.shape == (300, 129) and 0 <= whole.min() < 0.01 and 0.99 < whole.max() < 1
    assert torch.equal(inversion.random(0, 10, 129), whole[:10])
    assert torch.equal(inversion.random(61, 150, 129), whole[61:211])
    other = SpectralAutoencoder(8000, n_fft=256, hop_length=80, num_mels=32, latent_channels=8, inversion={"seed": 1})
    assert not torch.equal(other.inversion.random(0, 300, 129), whole)


def test_windows_hold_only_a_window_of_a_stream(autoencoders):
    """What was read and not yet written never exceeds a window with its context."""
    spectral = autoencoders["spectral"]
    read = 0

    def stream():
        nonlocal read
        for _ in range(100):
            read += 4000
            yield torch.zeros(1, 2, 4000)

    written, most = 0, 0
    for piece in decode_windows(spectral, encode_windows(spectral, stream(), window_s=1.0), window_s=1.0):
        most = max(most, read - written)
        written += piece.shape[-1]
    assert written == read == 400_000
    assert most < 5 * 8000


@pytest.mark.parametrize("rates", [(44100, 24000), (48000, 16000), (8000, 44100), (22050, 22050)])
def test_a_stream_is_resampled_as_the_whole_is(rates):
    waveform = torch.randn(2, 5 * rates[0] + 123, generator=torch.Generator().manual_seed(0))
    whole = resample(waveform, *rates)
    torch.testing.assert_close(joined(resample_chunks(in_pieces(waveform, 12345), *rates)), whole, rtol=0, atol=1e-5)


def test_a_cross_fade_goes_from_one_window_to_the_next_in_a_straight_line():
    numbered = iter([1.0, 3.0, 3.0])
    made = map_windows(
        [torch.zeros(10)], lambda window, _: torch.full_like(window, next(numbered)),
        step=1, outputs_per_step=1, size=4, before=1, after=0, fade=2,
    )  # fmt: skip
    assert joined(made).tolist() == [1, 1, 1, 1, 1.5, 2.5, 3, 3, 3, 3]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp4", "a.mkv", "a.webm"])
@pytest.mark.parametrize("part", [(0.0, None), (1.3, None), (2.1001, 1.77), (4.5, 3.0), (9.0, None)])
def test_a_file_is_read_in_pieces_as_it_is_read_whole(name, part, media):
    whole, _ = read_audio(media / name, sample_rate=16000, channels=1, start_s=part[0], duration_s=part[1])
    pieces = read_chunks(media / name, sample_rate=16000, channels=1, start_s=part[0], duration_s=part[1])
    found = joined([torch.zeros(1, 0), *pieces])
    assert found.shape == whole.shape
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)


def test_a_file_that_cannot_be_read_is_reported(media):
    with pytest.raises(ValueError, match=r"nothing\.wav: there is no such file"):
        list(read_chunks(media / "nothing.wav", sample_rate=8000, channels=1))
    (media / "broken.wav").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.wav: cannot be read as a sound file"):
        list(read_chunks(media / "broken.wav", sample_rate=8000, channels=1))
    write_media(media / "silent.mp4", pictures=numbered_pictures(1.0))
    with pytest.raises(ValueError, match=r"silent\.mp4: has no sound track"):
        list(read_chunks(media / "silent.mp4", sample_rate=8000, channels=1))


def test_a_stream_is_written_as_a_file_whole_or_not_at_all(tmp_path: Path):
    waveform = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name in ("a.wav", "a.flac"):
        assert write_chunks(tmp_path / name, in_pieces(waveform, 300), 8000) == 1000
        samples, rate = soundfile.read(tmp_path / name, dtype="float32")
        assert rate == 8000
        torch.testing.assert_close(torch.from_numpy(samples.T), waveform, rtol=0, atol=1e-4)

    def broken():
        yield waveform
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write_chunks(tmp_path / "b.wav", broken(), 8000)
    with pytest.raises(ValueError, match=r"c\.wav: there is no sound to write"):
        write_chunks(tmp_path / "c.wav", [], 8000)
    with pytest.raises(ValueError, match=r"cannot write \.aac; choose \.wav, \.flac, \.ogg, \.opus or \.mp3"):
        write_chunks(tmp_path / "c.aac", [waveform], 8000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.flac", "a.wav"]


def test_windows_that_are_too_short_are_refused(autoencoders):
    with pytest.raises(ValueError, match=r"window_s is 0\.1; choose 0\.5 or more"):
        list(encode_windows(autoencoders["spectral"], torch.zeros(1, 2, 100), window_s=0.1))
    with pytest.raises(ValueError, match=r"window_s is nan; choose 0\.5 or more"):
        list(decode_windows(autoencoders["spectral"], torch.zeros(1, 128, 10), window_s=math.nan))
