"""Time stamps that do not tell the time."""

import struct

import av
import numpy as np
import pytest
from media import noise, numbered_pictures, patched, picture_number, tone, write_media
from PIL import Image

from diffaudio.media.audio_decoder import AudioTrack, decode_audio
from diffaudio.media.container import open_media
from diffaudio.media.video_frames import read_frames


def dominant_hz(x: np.ndarray, rate: int) -> float:
    return np.abs(np.fft.rfft(x[0] * np.hanning(x.shape[1]))).argmax() * rate / x.shape[1]


def joined(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
@pytest.mark.parametrize("num_parts", [2, 3])
def test_files_joined_end_to_end_give_each_tone_with_its_colour(tmp_path, suffix, num_parts):
    rate = 48000 if suffix == ".mpg" else 44100
    parts = []
    for index in range(num_parts):
        picture = Image.new("RGB", (64, 48), [(250, 0, 0), (0, 0, 250), (0, 250, 0)][index])
        sound = tone(6, rate, frequency=400 + 300 * index)
        pictures = [picture] * (150 if suffix == ".mpg" else 24)
        parts.append(write_media(tmp_path / f"{index}{suffix}", sound=sound, pictures=pictures))
    path = joined(tmp_path / f"all{suffix}", *parts)
    x, found_rate = decode_audio(path)
    assert x.shape[1] / found_rate == pytest.approx(6 * num_parts, abs=0.3)
    for index in range(num_parts):
        middle_s = 6.0 * index + 3
        part = x[:, round((middle_s - 1) * rate) : round((middle_s + 1) * rate)]
        assert dominant_hz(part, rate) == pytest.approx(400 + 300 * index, abs=2)
        late, _ = decode_audio(path, start_s=middle_s, duration_s=1.0)
        assert dominant_hz(late, rate) == pytest.approx(400 + 300 * index, abs=2)
        ((_, picture),) = read_frames(path, [middle_s])
        assert np.argmax(np.asarray(picture).mean((0, 1))) == [0, 2, 1][index]


def test_a_single_wrong_stamp_is_no_restart(tmp_path):
    sound = noise(3, 8000)
    path = write_media(tmp_path / "a.mkv", sound=sound, sound_codec="pcm_s16le")
    with open_media(path) as media:
        from diffaudio.media.timestamps import Timestamps

        packets = [packet for packet in media.packets(media.audio) if packet.size]
        packets[len(packets) // 2].pts = packets[len(packets) // 2].dts = 0
        stamps = Timestamps(media._container)
        track = AudioTrack(media.begin_s)
        track.feed(stamps.corrected(packets))
    assert not stamps.restarted
    assert np.allclose(track.cut(0, None), sound, atol=1e-4)


def test_stamps_that_jitter_leave_no_holes(tmp_path):
    sound = noise(3, 8000)
    path = write_media(tmp_path / "a.mkv", sound=sound, sound_codec="pcm_s16le")
    rng = np.random.default_rng(0)
    with open_media(path) as media:
        track = AudioTrack(media.begin_s)
        for packet in media.packets(media.audio):
            if packet.pts:
                packet.pts += round(rng.uniform(-0.045, 0.045) / packet.time_base)
            track.feed([packet])
    assert np.allclose(track.cut(0, None), sound, atol=1e-4)


def test_a_clock_that_starts_again_after_26_hours_is_followed(tmp_path):
    wrap_s = 2**33 / 90_000
    sound = tone(6, 44100)
    path = write_media(tmp_path / "a.ts", sound=sound, pictures=numbered_pictures(6), begin_s=wrap_s - 3)
    x, rate = decode_audio(path)
    assert x.shape[1] / rate == pytest.approx(6, abs=0.1)
    assert np.abs(x[:, rate : 5 * rate].reshape(40, -1)).max(axis=1).min() > 0.25
    assert [picture_number(picture) for _, picture in read_frames(path, [1.1, 4.6])] == [4, 18]


@pytest.mark.parametrize("factor", [100, 4, 0.2])
def test_an_avi_header_that_misstates_the_rate_of_its_sound_does_not_matter(tmp_path, factor):
    path = write_media(tmp_path / "a.avi", sound=tone(6, 44100), pictures=numbered_pictures(6))
    data = path.read_bytes()
    at = data.index(b"auds") + 20
    scale, rate = struct.unpack("<II", data[at : at + 8])
    wrong = struct.pack("<II", scale, round(rate * factor))
    false = patched(path, tmp_path / "b.avi", b"", wrong, after=b"auds", skip=16)
    right, _ = decode_audio(path)
    x, _ = decode_audio(false)
    assert x.shape[1] == pytest.approx(right.shape[1], abs=3 * 1152)
    n = min(x.shape[1], right.shape[1]) - 44100
    assert np.abs(x[:, 22050:n]).max() == pytest.approx(0.3, abs=0.05)
    assert dominant_hz(x[:, 3 * 44100 : 5 * 44100], 44100) == pytest.approx(440, abs=2)
    late, _ = decode_audio(false, start_s=3.0, duration_s=1.0)
    assert late.shape[1] == 44100 and np.abs(late).max() > 0.2


def test_channels_that_change_midway_are_mixed_as_they_are_at_each_moment(tmp_path):
    left_only = np.concatenate([tone(3, 44100), np.zeros((1, 3 * 44100), np.float32)])
    centre_only = np.zeros((6, 3 * 44100), np.float32)
    centre_only[2] = tone(3, 44100, frequency=1000)[0]
    first = write_media(tmp_path / "a.ts", sound=left_only, pictures=numbered_pictures(3))
    second = write_media(tmp_path / "b.ts", sound=centre_only, pictures=numbered_pictures(3), begin_s=3)
    x, rate = decode_audio(joined(tmp_path / "c.ts", first, second), channels=2)
    assert x.shape[1] / rate == pytest.approx(6, abs=0.2)
    before, after = x[:, rate : 2 * rate], x[:, 4 * rate : 5 * rate]
    assert np.abs(before[0]).max() > 0.2 and np.abs(before[1]).max() < 0.02
    assert dominant_hz(after, rate) == pytest.approx(1000, abs=2)
    assert np.allclose(after[0], after[1], atol=0.01) and np.abs(after).max() > 0.05
    raw, _ = decode_audio(tmp_path / "c.ts")
    assert raw.shape == x.shape


def write_raw(path, codec, rate, layout, frequency):
    """Two seconds of a tone in a stream without a container."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        channels = stream.codec_context.layout.nb_channels
        packed = np.repeat(tone(2, rate, frequency=frequency).T, channels, axis=1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format="flt", layout=layout)
        frame.rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    return path


@pytest.mark.parametrize("codec", ["aac", "ac3"])
def test_a_rate_that_changes_midway_in_a_raw_stream_leaves_no_holes(tmp_path, codec):
    """FFmpeg makes the stamps up, as if the first rate were that of all."""
    slow = write_raw(tmp_path / f"a.{codec}", codec, 32000, "mono", 440)
    fast = write_raw(tmp_path / f"b.{codec}", codec, 48000, "5.1", 1000)
    for parts in ((slow, fast), (fast, slow)):
        x, rate = decode_audio(joined(tmp_path / f"c.{codec}", *parts), channels=1)
        assert x.shape[1] / rate == pytest.approx(4, abs=0.2)
        heard = [dominant_hz(x[:, round(s * rate) : round((s + 1.4) * rate)], rate) for s in (0.3, 2.3)]
        assert heard == pytest.approx([440, 1000] if parts[0] == slow else [1000, 440], abs=3)
        late, _ = decode_audio(tmp_path / f"c.{codec}", start_s=2.5, duration_s=1.0, channels=1)
        assert late.shape[1] == rate
        assert dominant_hz(late, rate) == pytest.approx(1000 if parts[0] == slow else 440, abs=3)


def test_a_time_stamp_hours_away_does_not_fill_the_memory(tmp_path):
    path = write_media(tmp_path / "a.ts", sound=tone(2, 44100), pictures=numbered_pictures(2))
    late = write_media(tmp_path / "b.ts", sound=tone(2, 44100), pictures=numbered_pictures(2), begin_s=20_000)
    with pytest.raises(ValueError, match=r"c\.ts: a time stamp leaves a gap of \d+ s without sound"):
        decode_audio(joined(tmp_path / "c.ts", path, late))


def test_pictures_are_right_where_every_sample_is_flagged_as_a_key_frame(tmp_path):
    pictures = numbered_pictures(12, first=20)
    path = write_media(tmp_path / "a.mp4", pictures=pictures, picture_codec="mpeg4", gop_size=12)
    assert path.read_bytes().count(b"stss") == 1
    false = patched(path, tmp_path / "b.mp4", b"stss", b"free")
    with av.open(str(false)) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    for times_s in ([2.1], [0.1, 5.6, 11.3], [10.9]):
        for path_ in (path, false):
            found = [picture_number(picture, first=20) for _, picture in read_frames(path_, times_s)]
            assert found == [int(time_s * 4) for time_s in times_s], path_


def test_pictures_are_right_where_the_wrong_samples_are_flagged(tmp_path):
    path = write_media(tmp_path / "a.mp4", pictures=numbered_pictures(12, first=20), picture_codec="mpeg4", gop_size=12)
    data = bytearray(path.read_bytes())
    at = data.index(b"stss") + 8
    (count,) = struct.unpack(">I", data[at : at + 4])
    for index in range(1, count):
        entry = at + 4 + 4 * index
        (sample,) = struct.unpack(">I", data[entry : entry + 4])
        data[entry : entry + 4] = struct.pack(">I", sample + 5)
    (tmp_path / "b.mp4").write_bytes(data)
    times_s = [1.1, 4.6, 8.1, 11.3]
    found = [picture_number(picture, first=20) for _, picture in read_frames(tmp_path / "b.mp4", times_s)]
    assert found == [int(time_s * 4) for time_s in times_s]
