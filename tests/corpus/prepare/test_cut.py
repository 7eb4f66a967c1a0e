"""One file -> clips. What every ordinary and every bad file becomes is in `test_prepare` too."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from media import noise, numbered_pictures, tone, write_media
from PIL import Image

from diffaudio.corpus.prepare import cut, fragments
from diffaudio.corpus.prepare.cut import cut_clips
from diffaudio.corpus.prepare.fragments import CutReport, Fragment, write_fragment
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media, Segment
from diffaudio.media.audio import decode_flac

SMALL = PrepareSettings(clip_s=2.0, min_clip_s=0.5, sample_rate=8000, frames_per_clip=2, max_duplicate_distance=None)
SOUND = noise(7, 8000)
WHOLE = (Segment(),)


def cut_file(path: Path, settings: PrepareSettings = SMALL, segments=WHOLE) -> tuple[list[dict], list[dict]]:
    """Rows, and what was dropped."""
    media = Media(path.name, str(path), tuple(segments))
    dropped: list[dict] = []
    rows = list(cut_clips(media, settings, CutReport(media, dropped)))
    return rows, dropped


def spans(rows: list[dict]) -> list[tuple[float, float]]:
    return [(row["start_s"], round(row["duration_s"], 3)) for row in rows]


def times(rows: list[dict]) -> list[list[float]]:
    return [[frame["time_s"] for frame in row["frames"]] for row in rows]


def reasons(dropped: list[dict]) -> list[tuple[float, str]]:
    return [(row["start_s"], row["reason"]) for row in dropped]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """7 s of lossless noise and numbered pictures."""
    return write_media(tmp_path_factory.mktemp("cut") / "a.mkv", sound=SOUND, pictures=numbered_pictures(7))


def rewritten(path: Path, target: Path, change, *, sound_first: bool = False) -> Path:
    """The same packets in another order, or with other time stamps.

    Args:
        change: gets all packets in their order and gives those to write.
        sound_first: whether the first stream is the sound.
    """
    with av.open(str(path)) as source, av.open(str(target), "w") as sink:
        ordered = sorted(source.streams, key=lambda stream: (stream.type == "audio") != sound_first)
        streams = {stream.index: sink.add_stream_from_template(stream) for stream in ordered}
        packets = [packet for packet in source.demux() if packet.size]
        for packet in change(packets):
            packet.stream = streams[packet.stream_index]
            sink.mux(packet)
    return target


def test_clips_contain_the_sound_and_frames_of_their_segment_and_tile_it_without_gaps(film):
    rows, dropped = cut_file(film)
    assert spans(rows) == [(0, 2), (2, 2), (4, 2), (6, 1)] and dropped == []
    assert times(rows) == [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5], [6.25, 6.75]]
    heard = np.concatenate([decode_flac(row["audio"])[0].numpy() for row in rows], axis=1)
    assert heard.shape == SOUND.shape and np.abs(heard - SOUND).max() < 1e-3


def test_sound_that_is_lost_because_time_stamps_go_back_is_recorded(film, monkeypatch):
    """As of a container that has an index, whose stamps are taken as they are."""
    assert cut_file(film)[1] == []
    whole = cut.AudioTrack.feed

    def feed(track, packets):
        for packet in packets:
            if packet.pts is not None and packet.pts * packet.time_base >= 4:
                packet.pts = packet.dts = packet.pts - round(3 / packet.time_base)
        return whole(track, packets)

    monkeypatch.setattr(cut.AudioTrack, "feed", feed)
    (lost,) = [row for row in cut_file(film)[1] if row["reason"] == "overlapping"]
    assert lost["duration_s"] == pytest.approx(3, abs=0.2)
    assert lost["detail"].endswith("s of sound lie at times that have other sound")


def test_only_the_wanted_segments_are_cut_and_keep_their_captions(film):
    segments = [Segment(0.5, 1.75, "a dog"), Segment(3.0, 6.2, "a cat"), Segment(6.5, None, "the end")]
    rows, dropped = cut_file(film, segments=segments)
    assert spans(rows) == [(0.5, 1.25), (3, 2), (5, 1.2), (6.5, 0.5)] and dropped == []
    assert [row["caption"] for row in rows] == ["a dog", "a cat", "a cat", "the end"]
    assert times(rows)[0] == [0.75, 1.25]
    waveform, _ = decode_flac(rows[1]["audio"])
    assert np.abs(waveform.numpy() - SOUND[:, 24000:40000]).max() < 1e-3


def test_segments_that_are_too_short_or_behind_the_end_are_dropped_each_for_itself(film):
    segments = [Segment(0, 0.3), Segment(1, 3), Segment(6.9), Segment(8, 9), Segment(50)]
    rows, dropped = cut_file(film, segments=segments)
    assert spans(rows) == [(1, 2)]
    assert reasons(dropped) == [(0, "too_short"), (6.9, "too_short"), (8, "too_short"), (50, "too_short")]
    assert dropped[-1]["detail"] == "0.00 s of sound, below 0.5 s"


def test_segments_far_apart_are_sought(tmp_path, monkeypatch):
    """Of a minute, the few seconds around the segments are decoded."""
    path = write_media(tmp_path / "a.mkv", sound=noise(60, 8000), pictures=numbered_pictures(60, first=10))
    heard = []
    whole = cut.AudioTrack.feed
    monkeypatch.setattr(cut.AudioTrack, "feed", lambda track, packets: heard.extend(packets) or whole(track, packets))
    rows, _ = cut_file(path, segments=[Segment(10, 12), Segment(50, 52)])
    assert spans(rows) == [(10, 2), (50, 2)] and times(rows) == [[10.5, 11.5], [50.5, 51.5]]
    original = noise(60, 8000)[:, 400000:416000]
    assert np.abs(decode_flac(rows[1]["audio"])[0].numpy() - original).max() < 1e-3
    assert len(heard) * 576 / 8000 < 8


def test_overlapping_clips_are_the_same_as_each_alone(film):
    rows, _ = cut_file(film, replace(SMALL, hop_s=0.75))
    assert [row["start_s"] for row in rows] == [index * 0.75 for index in range(9)]
    alone, _ = cut_file(film, segments=[Segment(2.25, 4.25)])
    assert rows[3]["audio"] == alone[0]["audio"] and rows[3]["frames"] == alone[0]["frames"]


def test_a_file_whose_pictures_all_come_before_its_sound_gives_the_same_clips(film, tmp_path, monkeypatch):
    expected, _ = cut_file(film)
    by_kind = rewritten(film, tmp_path / "a.mkv", lambda packets: sorted(packets, key=lambda p: p.stream_index))
    reverse = rewritten(film, tmp_path / "b.mkv", lambda packets: sorted(packets, key=lambda p: -p.stream_index))
    for most_open in (64, 1):  # with one, pictures are fetched from where they are
        monkeypatch.setattr(cut, "MAX_OPEN", most_open)
        for path in (by_kind, reverse):
            rows, dropped = cut_file(path)
            assert dropped == []
            assert [row["audio"] for row in rows] == [row["audio"] for row in expected]
            assert [row["frames"] for row in rows] == [row["frames"] for row in expected]


@pytest.mark.parametrize("sound_first", [False, True])
def test_the_last_pictures_and_the_last_of_the_sound_are_there_whatever_the_order_of_tracks(
    film, tmp_path, sound_first
):
    """The ends of both streams come at once, and the last pictures of a file are decoded only then."""
    expected, _ = cut_file(film)
    path = rewritten(film, tmp_path / "a.mkv", lambda packets: packets, sound_first=sound_first)
    with av.open(str(path)) as container:
        assert (container.streams[0].type == "audio") is sound_first
    rows, dropped = cut_file(path)
    assert dropped == [] and [row["frames"] for row in rows] == [row["frames"] for row in expected]
    one = write_media(tmp_path / "one.mkv", sound=SOUND[:, :8000], pictures=numbered_pictures(0.25))
    ((row,), _) = cut_file(rewritten(one, tmp_path / "b.mkv", lambda packets: packets, sound_first=sound_first))
    assert times([row]) == [[0.0]]


def test_no_more_clips_are_held_than_wait_for_little(tmp_path):
    """Pictures end after 2 s and sound after 20: clips without a picture do not pile up until the end."""
    path = write_media(tmp_path / "a.mkv", sound=noise(20, 8000), pictures=numbered_pictures(2))
    settings = replace(SMALL, clip_s=0.125, min_clip_s=0.125, frames_per_clip=1, min_length_ratio=0.0)
    rows, dropped = cut_file(path, settings)
    assert len(rows) == 22 and {row["reason"] for row in dropped} == {"no_picture"}  # the last picture stands 1 s
    assert len(rows) + len(dropped) == 160


def test_a_time_stamp_that_jumps_a_million_hours_ahead_makes_one_gap(film, tmp_path):
    def jump(packets):
        for packet in packets:
            if packet.pts > 3000:  # the time base is a millisecond
                packet.pts += 3_600_000_000
                packet.dts = packet.pts
        return packets

    rows, dropped = cut_file(rewritten(film, tmp_path / "a.mkv", jump))
    assert [row["start_s"] for row in rows][:2] == [0, 2] and len(rows) + len(dropped) < 9
    (gap,) = [row for row in dropped if row["reason"] == "silent" and row["duration_s"] > 10]
    assert gap["duration_s"] == pytest.approx(3_600_000, rel=1e-3)
    assert gap["detail"].startswith("no sound from 6.0 s to 36")


def test_a_header_with_a_wrong_duration_changes_nothing(film, tmp_path):
    expected, _ = cut_file(film)
    data = film.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # EBML: Duration, 8 bytes
    for duration_ms in (1.0, 3.6e12):
        path = tmp_path / f"{duration_ms}.mkv"
        path.write_bytes(data[:at] + np.array([duration_ms], ">f8").tobytes() + data[at + 8 :])
        rows, dropped = cut_file(path)
        assert dropped == [] and [row["audio"] for row in rows] == [row["audio"] for row in expected]
        assert times(rows) == times(expected)


def test_what_fills_up_the_last_packet_is_no_sound(tmp_path):
    path = write_media(tmp_path / "a.mp4", sound=tone(3, 44100), pictures=numbered_pictures(3))
    (row,), _ = cut_file(path, replace(SMALL, clip_s=10.0, sample_rate=44100))
    assert row["duration_s"] == pytest.approx(3.0, abs=1e-3)


def test_rejected_clips_are_kept_with_the_reason_on_request(tmp_path):
    quiet = np.concatenate([0 * SOUND[:, :16000], SOUND[:, :32000]], axis=1)
    black = [*numbered_pictures(4), *[Image.new("RGB", (64, 48))] * 8]
    path = write_media(tmp_path / "a.mkv", sound=quiet, pictures=black)
    rows, dropped = cut_file(path)
    assert spans(rows) == [(2, 2)] and rows[0]["reason"] is None
    kept, again = cut_file(path, replace(SMALL, keep_dropped=True))
    assert again == dropped and reasons(dropped) == [(0, "silent"), (4, "black")]
    assert [(row["start_s"], row["reason"]) for row in kept] == [(0, "silent"), (2, None), (4, "black")]
    assert kept[1] == rows[0] and [len(row["frames"]) for row in kept] == [2, 2, 2]


def test_files_and_clips_without_sound_or_picture_are_not_kept_even_where_dropped_ones_are(tmp_path):
    settings = replace(SMALL, keep_dropped=True)
    film = write_media(tmp_path / "film.mkv", pictures=numbered_pictures(1))
    ends = write_media(tmp_path / "ends.mkv", sound=noise(7, 8000), pictures=numbered_pictures(2))
    assert cut_file(film, settings)[0] == []
    rows, dropped = cut_file(ends, settings)
    assert spans(rows) == [(0, 2), (2, 2)] and reasons(dropped) == [(4, "no_picture"), (6, "no_picture")]


def test_a_clip_too_short_is_kept_where_dropped_ones_are_but_no_rest_of_a_longer_one(tmp_path):
    settings = replace(SMALL, keep_dropped=True)
    short = write_media(tmp_path / "short.mkv", sound=SOUND[:, :2400], pictures=numbered_pictures(1))
    longer = write_media(tmp_path / "longer.mkv", sound=SOUND[:, :18400], pictures=numbered_pictures(3))
    ((row,), dropped) = cut_file(short, settings)
    assert row["reason"] == "too_short" and reasons(dropped) == [(0, "too_short")]
    assert spans(cut_file(longer, settings)[0]) == [(0, 2)] and cut_file(longer, settings)[1] == []


def test_fingerprints_are_computed_if_duplicates_are_searched_for(film):
    assert {row["fingerprint"] for row in cut_file(film)[0]} == {None}
    rows, _ = cut_file(film, replace(SMALL, max_duplicate_distance=0.2))
    assert len({row["fingerprint"] for row in rows}) == 4


def test_the_note_says_how_much_sound_was_looked_at(film):
    media = Media("a", str(film), (Segment(1, 3),))
    report = CutReport(media)
    list(cut_clips(media, SMALL, report))
    assert 2 <= report.media_seconds < 4
    report = CutReport(media)
    list(cut_clips(replace(media, segments=(Segment(),)), SMALL, report))
    assert report.media_seconds == pytest.approx(7)


def test_silence_is_judged_by_the_sound_that_the_clip_has_after_its_channels_were_mixed(tmp_path):
    """The channels cancel out in the first clip, and differ in the second."""
    left = noise(4, 8000)
    right = np.concatenate([-left[:, :16000], 0.5 * left[:, 16000:]], axis=1)
    path = write_media(tmp_path / "a.mkv", sound=np.concatenate([left, right]), pictures=numbered_pictures(4))
    rows, dropped = cut_file(path)
    assert spans(rows) == [(2, 2)] and reasons(dropped) == [(0, "silent")]
    rows, dropped = cut_file(path, replace(SMALL, channels=2))
    assert spans(rows) == [(0, 2), (2, 2)] and dropped == []
    (row, _), dropped = cut_file(path, replace(SMALL, keep_dropped=True))
    assert row["reason"] == "silent" and np.abs(decode_flac(row["audio"])[0].numpy()).max() < 1e-3


def test_a_decoder_without_memory_drops_the_file_for_that(film, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(cut.AudioTrack, "feed", fail)
    assert reasons(cut_file(film)[1]) == [(0, "out_of_memory")]


def test_signs_of_life_are_given_while_a_file_is_read(film, monkeypatch):
    monkeypatch.setattr(cut, "PACKETS_PER_SIGN", 4)
    signs = []
    media = Media("a", str(film))
    list(cut_clips(media, SMALL, CutReport(media), lambda: signs.append(1)))
    assert len(signs) > 5


def test_a_fragment_gives_back_clips_and_what_was_dropped(film, tmp_path, monkeypatch):
    monkeypatch.setattr(fragments, "DROPPED_ROWS", 2)
    media = Media("a", str(film))
    report = CutReport(media)
    rows = list(cut_clips(media, SMALL, report))

    def rows_with_drops():
        for index, row in enumerate(rows):
            report.drop(float(index), None, ("silent", "ü"))
            yield row

    write_fragment(tmp_path / "f.arrow", rows_with_drops(), report)
    read = Fragment.read(tmp_path / "f.arrow")
    assert read.clips.to_pylist() == rows and read.media_seconds == report.media_seconds
    expected = {"source": "a", "duration_s": None, "reason": "silent", "detail": "ü"}
    assert read.dropped.to_pylist() == [expected | {"start_s": float(index)} for index in range(len(rows))]
    write_fragment(tmp_path / "f.arrow", [], CutReport(media))
    assert Fragment.read(tmp_path / "f.arrow").clips.num_rows == 0
    fragments.remove_fragment(tmp_path / "f.arrow")
    assert list(tmp_path.iterdir()) == []
