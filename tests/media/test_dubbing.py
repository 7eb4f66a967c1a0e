"""Sounds put under the picture of a video."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media import noise, numbered_pictures, picture_number, tone, write_media

from diffaudio.errors import UserError
from diffaudio.media.audio_streams import stream_audio
from diffaudio.media.dubbing import check_dubbing, dub
from diffaudio.media.file_extensions import MEDIA_SUFFIXES, VIDEO_CONTAINERS
from diffaudio.media.video_frames import read_frames

RATE = 24000
CLICKS_S = (0.5, 1.25)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds with two short bursts of noise."""
    waveform = np.zeros((1, 3 * RATE), np.float32)
    for time_s in CLICKS_S:
        start = round(time_s * RATE)
        waveform[:, start : start + 480] = noise(0.02, RATE, gain=0.25)
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    soundfile.write(path, waveform.T, RATE)
    return path


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def click_times_s(path: Path) -> list[float]:
    """When the bursts of the file's sound begin."""
    chunks = list(stream_audio(path))
    rate, waveform = chunks[0][0], np.concatenate([x for _, x in chunks], axis=1)[0]
    loud = np.flatnonzero(np.abs(waveform) > 0.1)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-rate) > rate // 10)]
    return [start / rate for start in starts]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (".mp4", ".mp4"),
        (".mp4", ".mkv"),
        (".mp4", ".mov"),
        (".webm", ".webm"),
        (".webm", ".mkv"),
        (".avi", ".avi"),
        (".ts", ".mp4"),
        (".mkv", ".ts"),
    ],
)
def test_the_picture_is_copied_and_the_sound_begins_with_it(tmp_path, sound, source, target):
    begin_s = 1.5 if source in (".ts", ".mkv") else 0.0
    video = write_media(tmp_path / f"a{source}", pictures=numbered_pictures(2), sound=tone(2, 48000), begin_s=begin_s)
    output = tmp_path / f"b{target}"
    dub(video, sound, output)
    with av.open(str(output)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.audio[0].codec_context.name == VIDEO_CONTAINERS[target][1].removeprefix("lib")
        starts_s = [float(stream.start_time * stream.time_base) for stream in container.streams]
    if (source, target) not in ((".ts", ".mp4"), (".mkv", ".ts")):  # whose H.264 differs in its framing alone
        assert packets(output) == packets(video)
    times_s = [(number + 0.5) / 4 for number in range(9)]
    frames = read_frames(output, times_s)
    assert [picture_number(picture) for _, picture in frames] == list(range(8))
    picture_s = starts_s[0] - min(starts_s)  # some containers cannot say that an encoder's delay is to be left out
    np.testing.assert_allclose(np.subtract(click_times_s(output), picture_s), CLICKS_S, atol=0.005)


def test_a_picture_keeps_its_rotation(tmp_path, sound):
    upright = numbered_pictures(1)[0].size
    video = write_media(tmp_path / "a.mp4", pictures=numbered_pictures(1), rotation=90)
    dub(video, sound, tmp_path / "b.mp4")
    assert read_frames(tmp_path / "b.mp4", [0.1])[0][1].size == upright[::-1]


def test_a_sound_that_is_shorter_or_longer_leaves_the_picture_whole(tmp_path):
    video = write_media(tmp_path / "a.mp4", pictures=numbered_pictures(2))
    for channels, duration_s in ((1, 0.5), (2, 5.0)):
        soundfile.write(tmp_path / "s.wav", tone(duration_s, 44100, channels=channels).T, 44100)
        dub(video, tmp_path / "s.wav", tmp_path / "b.mkv")
        assert packets(tmp_path / "b.mkv") == packets(video)
        found = np.concatenate([x for _, x in stream_audio(tmp_path / "b.mkv")], axis=1)
        assert found.shape == (channels, round(duration_s * 44100))


def test_relative_paths_count_from_the_current_folder_whenever_the_decoder_was_started(tmp_path, sound, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_media(Path("a.mp4"), pictures=numbered_pictures(1))
        soundfile.write("s.wav", tone(1, 8000).T, 8000)
        dub("a.mp4", "s.wav", "b.mp4")
        assert packets(Path("b.mp4")) == packets(Path("a.mp4"))
        assert sorted(path.name for path in Path().iterdir()) == ["a.mp4", "b.mp4", "s.wav"]


def test_the_duration_of_the_picture_is_that_of_its_packets(tmp_path):
    video = write_media(tmp_path / "a.mkv", pictures=numbered_pictures(2), sound=tone(3, 8000), begin_s=1.0)
    assert check_dubbing(video, "b.mp4").duration_s == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        (".mp4", "b.webm", r"a\.mp4: a \.webm file cannot hold its h264 picture \(.*\); choose another, such as \.mkv"),
        (".mp4", "b.mpg", r"a\.mp4: a \.mpg file cannot hold its h264 picture \(it would not be recognised\)"),
        (".webm", "b.ts", r"a\.webm: a \.ts file cannot hold its vp9 picture"),
        (".mp4", "b.xyz", r"b\.xyz: cannot write \.xyz; a video is \.mp4, "),
        (".mp4", "b", r"b: cannot write this; a video is \.mp4, "),
    ],
)
def test_a_container_that_cannot_hold_the_picture_is_refused(tmp_path, source, output, message):
    video = write_media(tmp_path / f"a{source}", pictures=numbered_pictures(1))
    with pytest.raises(UserError, match=message) as raised:
        check_dubbing(video, output)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{source}"]


def test_what_has_no_picture_cannot_be_dubbed(tmp_path, sound):
    with pytest.raises(UserError, match=r"sound\.wav: has no picture track"):
        check_dubbing(sound, "b.mp4")
    with pytest.raises(UserError, match=r"gone\.mp4: there is no such file"):
        check_dubbing(tmp_path / "gone.mp4", "b.mp4")


def test_videos_that_are_written_can_be_read():
    assert set(VIDEO_CONTAINERS) - {".nut"} <= set(MEDIA_SUFFIXES)
