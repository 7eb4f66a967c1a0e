"""What is decoded, and where it lies; `test_video` sees the same through whole files."""

from fractions import Fraction

import av
import numpy as np
import pytest
from media import noise, numbered_pictures, picture_number, tone, write_media
from PIL import Image

from diffaudio.media import video_decoder
from diffaudio.media.audio_decoder import AudioTrack
from diffaudio.media.container import open_media
from diffaudio.media.video_decoder import VideoTrack
from diffaudio.media.video_frames import read_frames


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """10 s at 10 pictures a second, with B-frames that others refer to and such that none does; a key frame in 20."""
    path = tmp_path_factory.mktemp("tracks") / "moving.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, width=64, height=48, pix_fmt="yuv420p")
        video.codec_context.gop_size = 20
        video.options = {"threads": "1", "bf": "3", "b-pyramid": "normal", "sc_threshold": "0", "b_strategy": "0"}
        for index in range(100):
            picture = Image.new("RGB", (64, 48), (40, 40, 40))
            picture.paste((200, 180, 90), (index % 50, 5, index % 50 + 14, 40))
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


@pytest.fixture
def fed(monkeypatch):
    """Packets that went into a decoder."""
    packets = []
    whole = video_decoder.decode_packet
    monkeypatch.setattr(video_decoder, "decode_packet", lambda packet: packets.append(packet) or whole(packet))
    return packets


def follow(path, times_s):
    found = {}
    with open_media(path) as media:
        track = VideoTrack(media.video, media.begin_s, None)
        for time_s in times_s:
            track.request(time_s, lambda at, picture, time_s=time_s: found.update({time_s: picture and (at, picture)}))
        for packet in media.packets(media.video):
            track.feed(packet)
        track.finish()
    return found


def test_wanted_pictures_are_those_of_decoding_everything(moving):
    with av.open(str(moving)) as container:
        every = {frame.time: frame.to_image(interpolation="BICUBIC") for frame in container.decode(video=0)}
    assert len(every) == 100
    times_s = [0.0, 0.31, 0.38, 1.0, 2.75, 5.19, 5.2, 7.83, 9.95]
    found = follow(moving, times_s)
    assert {time_s: at for time_s, (at, _) in found.items()} == pytest.approx(
        {time_s: np.floor(time_s * 10 + 1e-6) / 10 for time_s in times_s}
    )
    assert all(np.array_equal(picture, every[at]) for at, picture in found.values())


def test_nothing_is_decoded_between_key_frames_where_nothing_is_wanted(moving, fed):
    assert follow(moving, [0.0])[0.0]
    assert len(fed) < 10
    fed.clear()
    assert follow(moving, [6.05])[6.05][0] == pytest.approx(6.0)  # the key frame at 6 s is the fourth
    assert len([packet for packet in fed if packet.size]) < 10 and fed[0].is_keyframe
    fed.clear()
    assert follow(moving, []) == {} and fed == []


def test_of_pictures_to_which_none_refers_only_the_wanted_ones_are_decoded(moving):
    shown = []

    class Counting(VideoTrack):
        def _show(self, frame):
            shown.append(frame.time)
            super()._show(frame)

    with open_media(moving) as media:
        track = Counting(media.video, media.begin_s, None)
        track.request(1.85, lambda *_: None)
        for packet in media.packets(media.video):
            track.feed(packet)
    assert len(shown) < 14 and any(time_s == pytest.approx(1.8) for time_s in shown)


def test_pictures_wanted_before_the_first_are_the_first_and_after_the_last_are_none(tmp_path):
    path = write_media(tmp_path / "a.mkv", sound=tone(9, 8000), pictures=numbered_pictures(2))
    found = follow(path, [1.99, 2.5, 4.0])
    assert picture_number(found[1.99][1]) == picture_number(found[2.5][1]) == 7
    assert found[4.0] is None


def test_what_is_forgotten_is_not_asked_for_again(moving):
    taken = []

    def take(time_s, picture):
        taken.append(time_s)

    with open_media(moving) as media:
        track = VideoTrack(media.video, media.begin_s, None)
        track.request(1.0, take)
        track.request(2.0, lambda *_: taken.append("other"))
        assert track.next_requested_s == 1.0
        track.cancel(take)
        assert track.next_requested_s == 2.0
        track.finish()
    assert taken == ["other"]


def test_a_frame_is_converted_once_for_all_requests(moving):
    pictures = []
    with open_media(moving) as media:
        track = VideoTrack(media.video, media.begin_s, 32)
        for time_s in (3.01, 3.02):
            track.request(time_s, lambda _, picture: pictures.append(picture))
        for packet in media.packets(media.video):
            track.feed(packet)
    assert pictures[0] is pictures[1] and pictures[0].size == (32, 24)


def listen(path):
    with open_media(path) as media:
        track = AudioTrack(media.begin_s)
        track.feed(media.packets(media.audio))
    return track


def test_sound_is_cut_where_it_is_asked_for(tmp_path):
    sound = noise(3, 8000)
    track = listen(write_media(tmp_path / "a.mkv", sound=sound, gap=(1.0, 0.5)))
    assert track.sample_rate == 8000 and track.end_s == 3.5
    laid = track.cut(0.0, None)
    assert laid.shape == (1, 28000)
    assert np.allclose(np.sort(laid[laid != 0])[:9], np.sort(sound[0])[:9], atol=1e-4)  # all of it is there
    for start_s, end_s in ((0, 3.5), (0.9, 1.2), (1.1, 1.4), (1.5, 2.0), (0.2, None), (3.0, 9.0), (4.0, 5.0)):
        expected = laid[:, round(start_s * 8000) : None if end_s is None else round(end_s * 8000)]
        assert np.array_equal(track.cut(start_s, end_s), expected), (start_s, end_s)
    assert track.decoded_s == 3.0


def test_sound_that_was_forgotten_takes_no_memory_and_is_silent(tmp_path):
    track = listen(write_media(tmp_path / "a.mkv", sound=noise(3, 8000), gap=(1.0, 0.5)))
    track.cut(0, None)
    assert len(track._pieces) == 2
    track.discard_before(1.4)
    assert len(track._pieces) == 1
    assert not track.cut(0, 1.0).any() and track.cut(2, 3).any()


def test_stamps_that_go_back_put_sound_over_what_was_there(tmp_path):
    sound = noise(2, 8000)
    path = write_media(tmp_path / "a.mkv", sound=sound)
    with open_media(path) as media:
        track = AudioTrack(media.begin_s)
        packets = [packet for packet in media.packets(media.audio) if packet.size]
        track.feed(packets)
        media.seek(0.0, media.audio)
        track.reset()
        track.feed(media.packets(media.audio))
    assert track.end_s == 2.0
    assert np.allclose(track.cut(0, 2), sound, atol=1e-4)
    assert track.decoded_s == 4.0


def test_sound_that_changes_its_rate_and_channels_midway_is_kept_and_mixed(tmp_path):
    left = np.concatenate([tone(1, 44100, frequency=1000), np.zeros((1, 44100), np.float32)])
    first = write_media(tmp_path / "a.mkv", sound=tone(1, 8000))
    second = write_media(tmp_path / "b.mov", sound=left)
    track = listen(first)
    with open_media(second) as media:
        for packet in media.packets(media.audio):
            packet.pts = packet.dts = None
            track.feed([packet])
    track.reset()
    assert track.sample_rate == 8000 and track.end_s == pytest.approx(2.0, abs=1e-3)
    before, after = track.cut(0, 1), track.cut(1.1, 1.9)
    assert before.shape == (1, 8000) and after.shape == (2, 6400)
    assert np.abs(after[0]).max() == pytest.approx(0.3, abs=0.02) and np.abs(after[1]).max() < 1e-3
    both = track.cut(0.5, 1.5)
    assert len(both) == 2 and np.abs(both[1, :3900]).max() == pytest.approx(0.3, abs=0.02)
    assert np.abs(track.cut(1.1, 1.9, channels=1)).max() == pytest.approx(0.15, abs=0.01)


def test_large_pictures_waiting_undecoded_take_no_endless_memory(moving, fed, monkeypatch):
    monkeypatch.setattr(video_decoder, "MAX_WAITING", 100)
    assert follow(moving, [1.85])[1.85][0] == pytest.approx(1.8)
    assert len(fed) > 18


def test_reading_times_far_apart_seeks(moving, fed):
    assert len(read_frames(moving, [0.0, 9.0])) == 2
    assert len([packet for packet in fed if packet.size]) < 30
