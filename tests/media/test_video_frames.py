from fractions import Fraction

import av
import numpy as np
import pytest
from media import CODECS, noise, numbered_pictures, picture_number, tone, write_media

from diffaudio.media.audio_decoder import decode_audio
from diffaudio.media.container import MediaError, probe
from diffaudio.media.video_frames import read_frames


def frequency(waveform: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(waveform[0] * np.hanning(waveform.shape[1])))
    return spectrum.argmax() * rate / waveform.shape[1]


@pytest.fixture(scope="module")
def long_mkv(tmp_path_factory):
    """12 s: lossless noise at 8 kHz, numbered pictures."""
    path = tmp_path_factory.mktemp("video") / "long.mkv"
    return write_media(path, sound=noise(12, 8000), pictures=numbered_pictures(12))


@pytest.mark.parametrize("suffix", CODECS)
def test_every_container_gives_its_header_sound_and_pictures(tmp_path, suffix):
    rate = CODECS[suffix][2]
    path = write_media(tmp_path / f"a{suffix}", sound=tone(3, rate), pictures=numbered_pictures(3))

    info = probe(path)
    assert info.has_audio and info.has_video
    assert (info.sample_rate, info.audio_channels, info.width, info.height) == (rate, 1, 64, 48)
    assert info.duration_s == pytest.approx(3, abs=0.3)
    assert info.frame_rate == pytest.approx(4)

    waveform, sample_rate = decode_audio(path)
    assert sample_rate == rate and waveform.dtype == np.float32
    assert waveform.shape[1] / rate == pytest.approx(3, abs=0.1)
    assert frequency(waveform[:, rate // 2 : 2 * rate], rate) == pytest.approx(440, abs=2)
    assert np.abs(waveform).max() == pytest.approx(0.3, abs=0.03)

    frames = read_frames(path, [0.1, 1.4])
    late = 1 if suffix == ".avi" else 0  # which has no place for the delay of the encoder
    assert [picture_number(picture) for _, picture in frames] == [0, 5 - late]


@pytest.mark.parametrize(("suffix", "channels"), [(".mkv", 2), (".mp4", 2), (".mp4", 6)])
def test_channels_come_back_as_they_are(tmp_path, suffix, channels):
    rate = CODECS[suffix][2]
    sound = np.concatenate([tone(1, rate, frequency=300 + 200 * c) for c in range(channels)])
    waveform, _ = decode_audio(write_media(tmp_path / f"a{suffix}", sound=sound))
    assert waveform.shape[0] == channels
    heard = [frequency(waveform[c : c + 1, :rate], rate) for c in range(channels)]
    low_frequency_channel = 3  # the codec leaves only bass there
    for c in set(range(channels)) - {low_frequency_channel}:
        assert heard[c] == pytest.approx(300 + 200 * c, abs=2)


@pytest.mark.parametrize("start_s", [0.25, 3.0, 7.3, 11.5])
def test_seeking_gives_the_same_samples_as_reading_through(long_mkv, start_s):
    whole, rate = decode_audio(long_mkv)
    part, _ = decode_audio(long_mkv, start_s=start_s, duration_s=1.5)
    first = round(start_s * rate)
    assert np.array_equal(part, whole[:, first : first + round(1.5 * rate)])


def test_seeking_in_a_lossy_sound_warms_the_decoder_up(tmp_path):
    t = np.arange(6 * 44100) / 44100  # a rising tone: AAC decodes noise differently each time
    sound = 0.3 * np.sin(2 * np.pi * (300 * t + 100 * t**2))[None].astype(np.float32)
    path = write_media(tmp_path / "a.mp4", sound=sound, pictures=numbered_pictures(6))
    whole, rate = decode_audio(path)
    part, _ = decode_audio(path, start_s=3.0, duration_s=1.0)
    assert np.allclose(part, whole[:, 3 * rate : 4 * rate], atol=1e-3)


def test_sound_past_the_end_is_empty(long_mkv):
    waveform, rate = decode_audio(long_mkv, start_s=20, duration_s=1)
    assert waveform.shape == (1, 0) and rate == 8000


def test_sound_that_begins_late_has_silence_before_it(tmp_path):
    sound = noise(2, 8000)
    path = write_media(tmp_path / "a.mkv", sound=sound, pictures=numbered_pictures(3), sound_start_s=0.5)
    waveform, _ = decode_audio(path)
    assert waveform.shape[1] == 20000
    assert not waveform[:, :4000].any()
    assert np.allclose(waveform[:, 4000:], sound, atol=1e-4)


def test_a_gap_in_the_sound_is_silence_of_its_length(tmp_path):
    sound = noise(3, 8000)
    path = write_media(tmp_path / "a.mkv", sound=sound, pictures=numbered_pictures(4), gap=(1.0, 0.8))
    waveform, _ = decode_audio(path)
    assert waveform.shape[1] == 3.8 * 8000
    silent = (waveform == 0).sum()
    assert 0.8 * 8000 <= silent < 0.8 * 8000 + 20
    assert np.allclose(waveform[:, -8000:], sound[:, -8000:], atol=1e-4)

    within, _ = decode_audio(path, start_s=1.5, duration_s=0.2)
    assert within.shape[1] == 1600


def test_time_stamps_that_do_not_begin_at_zero_are_counted_from_the_beginning(tmp_path):
    path = write_media(tmp_path / "a.ts", sound=tone(3, 44100), pictures=numbered_pictures(3), begin_s=100)
    with av.open(str(path)) as container:
        assert container.start_time > 99 * av.time_base
    (time_s, picture), *_ = read_frames(path, [1.4])
    assert time_s == pytest.approx(1.25, abs=0.05) and picture_number(picture) == 5
    assert decode_audio(path)[0].shape[1] / 44100 == pytest.approx(3, abs=0.1)


def test_pictures_are_those_on_screen_each_once_in_order_of_time(long_mkv):
    frames = read_frames(long_mkv, [11.9, 0.0, 0.2, 0.26, 6.6, 3.0])
    assert [(time_s, picture_number(picture)) for time_s, picture in frames] == [
        (0.0, 0),
        (0.25, 1),
        (3.0, 12),
        (6.5, 26),
        (11.75, 47),
    ]


def test_times_after_the_last_picture_give_nothing(tmp_path):
    path = write_media(tmp_path / "a.mkv", sound=tone(9, 8000), pictures=numbered_pictures(2))
    assert [picture_number(p) for _, p in read_frames(path, [1.0, 5.0, 8.5])] == [4]
    assert read_frames(path, [5.0, 8.5]) == []


def test_large_images_are_reduced_and_small_ones_unchanged(long_mkv):
    ((_, small),) = read_frames(long_mkv, [1.0], max_side=32)
    ((_, same),) = read_frames(long_mkv, [1.0], max_side=640)
    assert small.size == (32, 24) and same.size == (64, 48) and small.mode == "RGB"


@pytest.mark.parametrize(("rotation", "bright_side"), [(90, "top"), (-90, "bottom"), (180, "left"), (0, "right")])
def test_pictures_are_upright(tmp_path, rotation, bright_side):
    """The right half is bright; turned by 90 degrees counterclockwise, it lies at the top."""
    picture = numbered_pictures(0.25)[0]
    picture.paste((250, 250, 250), (32, 0, 64, 48))
    path = write_media(tmp_path / "a.mp4", pictures=[picture] * 4, rotation=rotation)
    ((_, turned),) = read_frames(path, [0.0])
    pixels = np.asarray(turned.convert("L")).astype(float)
    height, width = pixels.shape
    halves = {
        "top": pixels[: height // 2],
        "bottom": pixels[height // 2 :],
        "left": pixels[:, : width // 2],
        "right": pixels[:, width // 2 :],
    }
    assert max(halves, key=lambda side: halves[side].mean()) == bright_side


def test_non_square_pixels_become_square(tmp_path):
    path = write_media(tmp_path / "a.mp4", pictures=numbered_pictures(1), pixel_aspect=Fraction(2, 1))
    ((_, picture),) = read_frames(path, [0.0])
    assert picture.size == (128, 48)


def test_cover_art_is_no_picture_track(tmp_path):
    art = {"pictures": numbered_pictures(0.25), "picture_codec": "mjpeg", "cover": True}
    path = write_media(tmp_path / "a.mp4", sound=tone(1, 44100), **art)
    info = probe(path)
    assert info.has_audio and not info.has_video


def test_damaged_sound_is_silent_where_it_does_not_decode(tmp_path):
    sound = noise(6, 8000)
    path = write_media(tmp_path / "a.mkv", sound=sound)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = b"\x55" * 400
    path.write_bytes(data)
    waveform, _ = decode_audio(path)
    assert waveform.shape[1] == pytest.approx(6 * 8000, abs=4096)
    assert np.allclose(waveform[:, :16000], sound[:, :16000], atol=1e-4)


def test_a_file_that_is_cut_off_gives_what_is_left(tmp_path):
    path = write_media(tmp_path / "a.mkv", sound=noise(6, 8000), pictures=numbered_pictures(6))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    waveform, _ = decode_audio(path)
    assert 2 * 8000 < waveform.shape[1] < 5 * 8000
    assert [picture_number(p) for _, p in read_frames(path, [0.3, 1.0])] == [1, 4]


def test_errors_name_the_file_and_what_is_wrong(tmp_path):
    empty, junk = tmp_path / "empty.mp4", tmp_path / "junk.mp4"
    empty.write_bytes(b"")
    junk.write_bytes(b"this is text " * 100)
    silent_film = write_media(tmp_path / "film.mp4", pictures=numbered_pictures(1))
    radio = write_media(tmp_path / "radio.mp4", sound=tone(1, 44100))
    with pytest.raises(MediaError, match=r"none\.mp4: there is no such file"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(MediaError, match=r"empty\.mp4: the file is empty"):
        probe(empty)
    with pytest.raises(MediaError, match=r"junk\.mp4: cannot be read as a media file"):
        decode_audio(junk)
    with pytest.raises(MediaError, match=r"film\.mp4: has no sound track"):
        decode_audio(silent_film)
    with pytest.raises(MediaError, match=r"radio\.mp4: has no picture track"):
        read_frames(radio, [0.0])
    assert not probe(silent_film).has_audio and not probe(radio).has_video


def test_a_playlist_under_a_false_name_reads_nothing_else(tmp_path):
    write_media(tmp_path / "real.mp4", sound=tone(1, 44100))
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/real.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError, match=r"list\.mp4: cannot be read"):
        probe(path)
