"""What is opened, and what its header says."""

import os
import struct
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition
from media import numbered_pictures, patched, tone, write_media

from diffaudio.media import container
from diffaudio.media.audio_decoder import decode_audio
from diffaudio.media.container import MediaError, open_media, probe


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ffconcat version 1.0\nfile real.mp4\n", "an FFmpeg list of files"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nreal.mp4\n#EXT-X-ENDLIST\n", "an HLS playlist"),
        ('<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"/>', "an XML document"),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n", "a format that is not"),
        ("ffconcat version 1.0\nfile list.mp4\n", "an FFmpeg list of files"),
    ],
)
def test_a_list_of_other_files_under_a_false_name_is_refused_with_the_reason(tmp_path, text, kind):
    write_media(tmp_path / "real.mp4", sound=tone(1, 44100))
    path = tmp_path / "list.mp4"
    path.write_text(text)
    with pytest.raises(MediaError, match=rf"list\.mp4: cannot be read as a media file \(.*({kind}|Invalid data)"):
        probe(path)


def test_only_formats_that_hold_their_own_content_are_opened():
    others = {"concat", "hls", "dash", "imf", "image2", "sdp", "rtsp", "lavfi", "tty", "webm_dash_manifest", "vobsub"}
    assert not others & set(container.FORMATS)
    assert {"mov", "matroska", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "dv", "mxf"} <= set(container.FORMATS)


def test_pipes_devices_and_folders_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match=r"pipe\.mp4: is a pipe or a device; give a file"):
        probe(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="/dev/zero: is a pipe or a device"):
        probe("/dev/zero")
    with pytest.raises(MediaError, match="is a folder; give a file"):
        probe(tmp_path)
    with pytest.raises(MediaError, match="there is no such file"):
        probe(tmp_path / "a\0b.mp4")


def test_the_default_sound_track_is_read_not_the_first(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as file:
        streams = [file.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(2)]
        streams[0].disposition, streams[1].disposition = Disposition(0), Disposition.default
        for stream, gain in zip(streams, (0.0, 0.5), strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), gain * 32767, np.int16), layout="mono")
            frame.sample_rate, frame.pts = 8000, 0
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    assert decode_audio(path)[0].mean() == pytest.approx(0.5, abs=1e-3)


def test_sound_of_an_unknown_codec_is_not_called_missing(tmp_path):
    path = write_media(tmp_path / "a.mov", sound=tone(1, 44100), pictures=numbered_pictures(1))
    unknown = patched(path, tmp_path / "b.mov", b"sowt", b"ac-4")
    info = probe(unknown)
    assert not info.has_audio and "ac4" in (info.unknown_audio_codec or "")
    with pytest.raises(MediaError, match=r"b\.mov: its sound is coded as ac4.*, which cannot be decoded"):
        decode_audio(unknown)


def test_a_file_begins_with_its_sound_or_picture_not_with_other_streams():
    def stream(start_s):
        return SimpleNamespace(start_time=round(start_s * 90000), time_base=1 / 90000)

    file = SimpleNamespace(start_time=700_000)  # of a data stream
    assert container._begin_s(file, stream(1.42), stream(1.43)) == pytest.approx(1.42)
    assert container._begin_s(file, stream(0.7), stream(1.43)) == pytest.approx(0.7)
    assert container._begin_s(SimpleNamespace(start_time=None), None, None) == 0.0


def test_what_claims_an_absurd_sample_rate_is_refused(tmp_path):
    for rate in (1, 900, 4_000_000_000):
        form = (b"RIFF", 4036, b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 2, 16, b"data", 4000)
        header = struct.pack("<4sI4s4sIHHIIHH4sI", *form)
        (tmp_path / "a.wav").write_bytes(header + bytes(4000))
        with pytest.raises(MediaError, match="sample rate|cannot be read"):
            decode_audio(tmp_path / "a.wav")


def test_a_seek_lands_before_the_time_also_where_key_frames_are_far_apart(tmp_path):
    path = write_media(tmp_path / "a.ts", sound=tone(30, 44100), pictures=numbered_pictures(30, first=20), gop_size=24)
    with open_media(path) as media:
        for time_s in (19.0, 7.3, 28.9, 0.0):
            assert media.seek(time_s, media.video)
            keys = (p for p in media.packets(media.video) if p.is_keyframe and p.stream_index == media.video.index)
            assert media.time_s(next(keys)) <= time_s + 1e-3
