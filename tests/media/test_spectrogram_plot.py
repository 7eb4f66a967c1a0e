"""Pictures of sounds."""

import math

import torch

from diffaudio.media.spectrogram_plot import spectrogram_figure, write_spectrogram

SAMPLE_RATE = 8000


def tone(frequency_hz):
    return torch.sin(2 * math.pi * frequency_hz * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)[None]


def test_a_tone_is_a_line_at_its_frequency_and_in_its_time():
    silence = torch.zeros(1, SAMPLE_RATE)
    figure = spectrogram_figure(torch.cat([silence, tone(1000.0)], dim=1), SAMPLE_RATE, title="a $ tone")
    axes = figure.axes[0]
    (image,) = axes.images
    level = torch.tensor(image.get_array().data)
    begin_s, end_s, low, high = image.get_extent()
    assert (begin_s, end_s) == (0, 2)
    position = low + (high - low) * (level.amax(dim=1).argmax() + 0.5) / len(level)
    marks = dict(zip((text.get_text() for text in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    assert abs(position - marks["1000"]) < (high - low) / 40
    assert level.amax() == 0
    assert level[:, : level.shape[1] // 3].amax() == -80
    assert "8000" not in marks
    assert axes.get_title() == "a $ tone"


def test_silence_can_be_drawn_and_a_long_title_is_cut(tmp_path):
    assert len(spectrogram_figure(torch.zeros(2, 4000), SAMPLE_RATE, title="x" * 200).axes[0].get_title()) == 90
    write_spectrogram(tmp_path / "silence.png", torch.zeros(1, 4000), SAMPLE_RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["silence.png"]
    assert (tmp_path / "silence.png").read_bytes().startswith(b"\x89PNG")
