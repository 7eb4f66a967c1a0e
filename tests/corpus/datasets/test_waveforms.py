import json
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import RATE, clip_row, sine, write_clips_corpus

from diffaudio.corpus.augment import AugmentSettings
from diffaudio.corpus.datasets.splits import is_held_out
from diffaudio.corpus.datasets.waveforms import WaveformDataset, decode_corpus, draw_crops
from diffaudio.corpus.store import part_files, read_groups
from diffaudio.media.audio import decode_flac, resample, scale_to_peak

LENGTHS_S = (1.0, 0.5, 2.0, 1.0, 0.2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        clip_row(f"{index}.mp4", samples=sine(300.0 * (index + 1), 0.1 * (index + 1), duration_s))
        for index, duration_s in enumerate(LENGTHS_S)
    ]
    rows[3] = clip_row("3.mp4", samples=0.1 * np.random.default_rng(0).standard_normal(RATE))
    rows.append(clip_row("5.mp4", reason="silent"))
    return write_clips_corpus(tmp_path_factory.mktemp("waveforms") / "corpus", [rows[:2], rows[2:]])


@pytest.fixture(scope="module")
def decoded(corpus: Path) -> Path:
    folder = corpus.parent / "decoded"
    decode_corpus(corpus, folder, sample_rate=RATE, audio_channels=1, peak=0.7)
    return folder


def test_decoded_clips_are_those_of_the_corpus_at_the_peak_to_16_bits(corpus, decoded):
    dataset = WaveformDataset(decoded)
    rows = [row for part in part_files(corpus, "clips") for rows in read_groups(part) for row in rows]
    assert dataset.sources == [f"{index}.mp4" for index in range(5)]  # what a filter condemns is not there
    assert dataset.ids == [row["id"] for row in rows]
    for clip, row in enumerate(rows):
        waveform = scale_to_peak(decode_flac(row["audio"])[0], 0.7)
        torch.testing.assert_close(dataset[clip], waveform, rtol=0, atol=0.51 / 32767)
        torch.testing.assert_close(dataset.segment(clip, 100, 50), dataset[clip][:, 100:150], rtol=0, atol=0)


def test_clips_are_decoded_at_another_rate_and_in_stereo(corpus, tmp_path):
    decode_corpus(corpus, tmp_path / "decoded", sample_rate=6000, audio_channels=2, peak=0.5)
    dataset = WaveformDataset(tmp_path / "decoded")
    assert (dataset.sample_rate, dataset.audio_channels, dataset[2].shape) == (6000, 2, (2, 12000))
    expected = scale_to_peak(resample(torch.from_numpy(sine(900.0, duration_s=2.0)).float()[None], RATE, 6000), 0.5)
    torch.testing.assert_close(dataset[2], expected.expand(2, -1), rtol=0, atol=2e-4)


def test_decoding_is_done_once_and_again_for_other_parts_or_another_format(corpus, decoded, tmp_path):
    folder = tmp_path / "decoded"
    decode_corpus(corpus, folder, sample_rate=RATE, audio_channels=1, peak=0.7)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in decoded.iterdir()
    }
    before = (folder / "samples.s16").stat().st_mtime_ns
    decode_corpus(corpus, folder, sample_rate=RATE, audio_channels=1, peak=0.7)
    assert (folder / "samples.s16").stat().st_mtime_ns == before
    decode_corpus(corpus, folder, sample_rate=RATE, audio_channels=1, peak=0.6)
    assert WaveformDataset(folder)[0].abs().max().item() == pytest.approx(0.6, abs=1e-4)
    (folder / "made_from.json").write_text(json.dumps({"parts": []}))
    decode_corpus(corpus, folder, sample_rate=RATE, audio_channels=1, peak=0.7)
    assert len(WaveformDataset(folder)) == 5


def test_sources_that_are_held_out_are_on_the_other_side(decoded):
    sides = {split: WaveformDataset(decoded, held_out=0.3, split=split).sources for split in ("train", "held_out")}
    assert sides["held_out"] == [f"{index}.mp4" for index in range(5) if is_held_out(f"{index}.mp4", 0.3)]
    assert sorted(sides["train"] + sides["held_out"]) == [f"{index}.mp4" for index in range(5)]
    held_out = WaveformDataset(decoded, held_out=0.3, split="held_out")
    torch.testing.assert_close(held_out[1], WaveformDataset(decoded)[2], rtol=0, atol=0)
    with pytest.raises(ValueError, match="held_out 1 leaves no clips to train on; lower it"):
        WaveformDataset(decoded, held_out=1.0)
    with pytest.raises(ValueError, match=r"held_out 0.01 holds out none of 5 sources; raise it"):
        WaveformDataset(decoded, held_out=0.01, split="held_out")


def test_a_crop_is_a_segment_of_its_clip_and_a_short_clip_is_padded_with_silence(decoded):
    dataset, num_samples = WaveformDataset(decoded), 6000
    seen = set()
    for seed in range(8):
        crops = draw_crops(dataset, [3, 4], num_samples=num_samples, generator=torch.Generator().manual_seed(seed))
        assert crops.shape == (2, 1, num_samples)
        windows = dataset[3][0].unfold(0, num_samples, 1)
        start = int((windows - crops[0, 0]).abs().sum(dim=1).argmin())
        assert torch.equal(windows[start], crops[0, 0])
        inside = crops[1, 0].nonzero()[:, 0]
        assert inside[-1] - inside[0] < dataset.num_samples(4)
        torch.testing.assert_close(crops[1, 0].norm(), dataset[4].norm())
        seen.add((start, int(inside[0])))
    assert len(seen) == 8
    again = draw_crops(dataset, [3, 4], num_samples=num_samples, generator=torch.Generator().manual_seed(7))
    assert torch.equal(crops, again)


def test_augmentation_changes_crops_and_keeps_their_length(decoded):
    dataset = WaveformDataset(decoded)

    def draw(settings: AugmentSettings | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return draw_crops(dataset, [2, 2, 3], num_samples=4000, generator=generator, augment=settings)

    plain = draw(None)
    assert torch.equal(draw(AugmentSettings()), plain)  # off unless it is asked for
    louder = draw(AugmentSettings(probability=1.0, gain_db=6.0))
    gains = louder.abs().amax(dim=2) / 0.7
    assert len(gains.unique()) == 3 and (gains > 0.49).all() and (gains < 2.01).all()
    faster = draw(AugmentSettings(probability=1.0, speed=0.2))
    assert faster.shape == plain.shape
    assert np.count_nonzero(faster[0, 0, -40:]) > 30  # enough of the clip was taken
    frequency = torch.fft.rfft(faster[0, 0]).abs().argmax() * RATE / 4000
    assert 740 < frequency < 1090 and abs(frequency - 900) > 2


def test_a_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no corpus, manifest.json is missing"):
        decode_corpus(tmp_path, tmp_path / "decoded", sample_rate=RATE, audio_channels=1, peak=0.7)
    empty = write_clips_corpus(tmp_path / "empty", [[clip_row("a", reason="silent")]])
    with pytest.raises(ValueError, match=r"empty: holds no clips of sound; see its dropped.csv"):
        decode_corpus(empty, tmp_path / "decoded", sample_rate=RATE, audio_channels=1, peak=0.7)
    assert not (tmp_path / "decoded").exists()
