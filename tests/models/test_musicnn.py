"""musicnn: every layer against its published equation, worked out in NumPy, and files that hold something else."""

import numpy as np
import pytest
import torch
from random_musicnn import variables

from diffaudio.models.tagger import FRONT_ENDS, musicnn
from diffaudio.models.tagger.musicnn import TAGS, Musicnn, load_musicnn, log_mel


def published(x, v):
    """musicnn on [steps, bands], as its authors define it: channels last, one sound. Returns embedding, tags, parts."""

    def normalised(x, number):
        name = "batch_normalization" + (f"_{number}" if number else "")
        scale = v[f"{name}/gamma"] / np.sqrt(v[f"{name}/moving_variance"] + 1e-3)
        return (x - v[f"{name}/moving_mean"]) * scale + v[f"{name}/beta"]

    def convolved(x, name):
        """[steps, bands, 1], valid: one sum for each place of the kernel."""
        kernel, bias = v[f"{name}/kernel"][:, :, 0], v[f"{name}/bias"]
        steps, bands = x.shape[0] - kernel.shape[0] + 1, x.shape[1] - kernel.shape[1] + 1
        out = np.zeros((steps, bands, kernel.shape[2])) + bias
        for t in range(kernel.shape[0]):
            for b in range(kernel.shape[1]):
                out += x[t : t + steps, b : b + bands, None] * kernel[t, b]
        return np.maximum(out, 0)

    x = normalised(x[..., None], 0)[..., 0]
    front = []
    for number, name in enumerate(("conv2d", "conv2d_1"), start=1):
        padded = np.pad(x, ((3, 3), (0, 0)))
        front.append(normalised(convolved(padded, name), number).max(axis=1))
    for number, (name, length) in enumerate((("conv2d_2", 128), ("conv2d_3", 64), ("conv2d_4", 32)), start=3):
        before = (length - 1) // 2  # TensorFlow's 'same' padding has the odd one at the end
        padded = np.pad(x, ((before, length - 1 - before), (0, 0)))
        front.append(normalised(convolved(padded, name), number).max(axis=1))
    front = np.concatenate(front, axis=1)
    parts, y = [front], front
    for number, name in enumerate(("conv2d_5", "conv2d_6", "conv2d_7"), start=6):
        new = normalised(convolved(np.pad(y, ((3, 3), (0, 0))), name)[:, 0], number)
        y = new if number == 6 else y + new
        parts.append(y)
    features = np.concatenate(parts, axis=1)
    pooled = np.stack([features.max(axis=0), features.mean(axis=0)], axis=1).reshape(-1)  # maximum, mean, maximum, …
    units = np.maximum(normalised(pooled, 9) @ v["dense/kernel"] + v["dense/bias"], 0)
    embedding = normalised(units, 10)
    return embedding, embedding @ v["dense_1/kernel"] + v["dense_1/bias"], front


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file of random variables, and they themselves."""
    path = tmp_path_factory.mktemp("musicnn") / "mtt.npz"
    np.savez(path, **variables())
    return path, variables()


@torch.no_grad()
@pytest.mark.parametrize("steps", [9, 40])
def test_every_layer_is_the_published_one(small, steps):
    path, v = small
    network = load_musicnn(path)
    mel = np.random.default_rng(1).uniform(0, 3, (steps, 96))
    embedding, tags, front = published(mel, v)
    x = torch.from_numpy(mel.T.copy()).float()[None]
    torch.testing.assert_close(network.front(x)[0].T.double(), torch.from_numpy(front), atol=1e-4, rtol=1e-4)
    found = network(x)
    torch.testing.assert_close(found[0][0].double(), torch.from_numpy(embedding), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found[1][0].double(), torch.from_numpy(tags), atol=2e-4, rtol=1e-3)


def test_the_front_end_is_the_definition_by_librosa():
    """One frame of a tone by hand: power of 512 points under a periodic Hann window, triangles of unit area."""
    rate, step = 16000, 20
    x = 0.4 * torch.sin(2 * torch.pi * 1000 * torch.arange(rate) / rate)
    mel = log_mel(x)
    assert mel.shape == (96, 63)
    frame = x[step * 256 - 256 : step * 256 + 256].double().numpy() * (
        0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    )
    power = np.abs(np.fft.rfft(frame)) ** 2

    def hz_to_mel(hz):  # Slaney: linear below 1 kHz
        return hz / (200 / 3) if hz < 1000 else 15 + np.log(hz / 1000) / (np.log(6.4) / 27)

    def mel_to_hz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * np.exp((np.log(6.4) / 27) * (mel - 15))

    edges = [mel_to_hz(value) for value in np.linspace(0, hz_to_mel(8000), 98)]
    for band in (20, 29, 30, 70):
        low, centre, high = edges[band : band + 3]
        bins = np.arange(257) * rate / 512
        weights = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
        total = float((weights * 2 / (high - low) * power).sum())
        assert float(mel[band, step]) == pytest.approx(np.log10(10000 * total + 1), abs=2e-3)


def test_its_front_end_can_be_trained_at_any_width():
    features = FRONT_ENDS["mel_musicnn"](4, 40)(torch.randn(2, 40, 30))
    assert features.shape == (2, 44, 30)


def test_both_lists_of_tags_have_fifty():
    assert {name: (len(tags), len(set(tags))) for name, tags in TAGS.items()} == {"mtt": (50, 50), "msd": (50, 50)}
    assert Musicnn().to_tags.out_features == 50


def test_files_that_hold_something_else_are_refused(tmp_path, monkeypatch):
    def refused(message, **changed):
        v = {name: value for name, value in (variables() | changed).items() if value is not None}
        np.savez(tmp_path / "mtt.npz", **v)
        with pytest.raises(ValueError, match=message):
            load_musicnn(tmp_path / "mtt.npz")

    refused("holds no musicnn: its variable dense_1/bias is missing", **{"dense_1/bias": None})
    refused("holds no musicnn: its variable conv2d_6/kernel is missing", **{"conv2d_6/kernel": None})
    refused(r"mid.1.weight would get the shape \(64, 64, 5\); musicnn's is \(64, 64, 7\)",
            **{"conv2d_6/kernel": np.zeros((5, 64, 1, 64), np.float32)})  # fmt: skip
    refused(r"conv2d_6/kernel has the shape \(3,\); 4 dimensions", **{"conv2d_6/kernel": np.zeros(3, np.float32)})
    refused("front.norm_in.bias holds values that are not finite",
            **{"batch_normalization/beta": np.full(1, np.nan, np.float32)})  # fmt: skip
    refused("cannot be read as an .npz of arrays: Object arrays", **{"dense/bias": np.array([object()])})
    monkeypatch.setattr(musicnn, "MAX_BYTES", 10**6)
    refused("mtt.npz: unpacks to 3 MB")
    (tmp_path / "mtt.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read as an .npz of arrays"):
        load_musicnn(tmp_path / "mtt.npz")
