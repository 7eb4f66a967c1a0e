import csv
import io
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from killing import DIFFAUDIO, contents, everything, kill, start, start_two, wait_for
from media import noise, numbered_pictures, picture_number, tone, write_media
from PIL import Image

from diffaudio.corpus import store
from diffaudio.corpus.prepare import deduplicate
from diffaudio.corpus.prepare import run as run_module
from diffaudio.corpus.prepare.cut import cut_clips
from diffaudio.corpus.prepare.fragments import CutReport, write_fragment
from diffaudio.corpus.prepare.run import UnavailableSourcesError, _Job, prepare
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.worker_pool import CutFile, cut_in_workers
from diffaudio.folder_lock import locked_folder
from diffaudio.media.audio import decode_flac

SMALL = PrepareSettings(
    clip_s=2.0, min_clip_s=0.5, sample_rate=8000, frames_per_clip=2, sources_per_part=2, max_duplicate_distance=None
)


def cut_here(media, settings, *, num_workers, folder, limits):
    """Stands for `workers.cut_in_workers`, which has tests of its own, and takes a second to start."""
    folder.mkdir(parents=True)
    for index, item in enumerate(media):
        report = CutReport(item)
        write_fragment(folder / f"{index}.arrow", cut_clips(item, settings, report), report)
        yield CutFile(item, folder / f"{index}.arrow")


@pytest.fixture(autouse=True, scope="module")
def _without_workers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffaudio.corpus.prepare.run.cut_in_workers", cut_here)
        yield


def rows_of(corpus: Path, *, rejected: bool = False) -> list[dict]:
    groups = (store.read_groups(part, rejected=rejected) for part in store.part_files(corpus, "clips"))
    return [row for part in groups for group in part for row in group]


def dropped_of(corpus: Path) -> list[dict]:
    with (corpus / "dropped.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(sources: Path | list[Path], out: Path, settings: PrepareSettings = SMALL):
    return prepare(sources if isinstance(sources, list) else [sources], out, settings, progress=False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five ordinary files, one of them 5 s long and in a folder below."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("b.mkv", "a.mkv", "名前 with spaces & ünïcode.mkv", "d.mkv")):
        write_media(folder / name, sound=noise(1, 8000, seed=seed), pictures=numbered_pictures(1))
    (folder / "below").mkdir()
    write_media(folder / "below" / "long.mkv", sound=noise(5.2, 8000, seed=9), pictures=numbered_pictures(5.25))
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.mkv").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def corpus(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpora") / "clips"
    run(videos, out)
    return out


def test_every_kind_of_bad_file_is_dropped_for_its_reason(tmp_path):
    files, black = tmp_path / "files", [Image.new("RGB", (64, 48))] * 4
    files.mkdir()
    pictures = numbered_pictures(1)
    sound = noise(1, 8000)
    write_media(files / "good.mkv", sound=sound, pictures=pictures)
    write_media(files / "no_sound.mkv", pictures=pictures)
    write_media(files / "no_picture.mkv", sound=sound)
    write_media(files / "silent.mkv", sound=0 * sound, pictures=pictures)
    write_media(files / "clipped.mkv", sound=np.clip(20 * sound, -1, 1), pictures=pictures)
    write_media(files / "black.mkv", sound=sound, pictures=black)
    write_media(files / "too_short.mkv", sound=sound[:, :2000], pictures=pictures[:1])
    (files / "empty.mp4").write_bytes(b"")
    (files / "text.mp4").write_bytes(b"no media " * 50)
    (files / "cut.mkv").write_bytes((files / "good.mkv").read_bytes()[:100])

    report = run(files, tmp_path / "out")

    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["good.mkv"]
    dropped = {row["source"]: row for row in dropped_of(tmp_path / "out")}
    assert {source: row["reason"] for source, row in dropped.items()} == {
        "no_sound.mkv": "no_sound",
        "no_picture.mkv": "no_picture",
        "silent.mkv": "silent",
        "clipped.mkv": "clipped",
        "black.mkv": "black",
        "too_short.mkv": "too_short",
        "empty.mp4": "unreadable",
        "text.mp4": "unreadable",
        "cut.mkv": "unreadable",
    }
    assert dropped["too_short.mkv"]["detail"] == "0.25 s of sound, below 0.5 s"
    assert dropped["empty.mp4"]["detail"] == "the file is empty"
    assert (report.sources, report.clips, report.dropped) == (10, 1, 9)
    assert report.reasons["unreadable"] == 3
    manifest = store.read_manifest(tmp_path / "out", "diffaudio-clips", 3)
    assert asdict(report).items() <= manifest.items()


def test_a_row_contains_the_sound_and_frames_of_its_segment(corpus):
    rows = [row for row in rows_of(corpus) if row["source"] == "below/long.mkv"]
    assert [row["start_s"] for row in rows] == [0, 2, 4]
    assert [row["duration_s"] for row in rows] == pytest.approx([2, 2, 1.2], abs=0.01)
    assert len({row["id"] for row in rows}) == 3
    original = torch.from_numpy(noise(5.2, 8000, seed=9))
    for row in rows:
        waveform, rate = decode_flac(row["audio"])
        first = round(row["start_s"] * 8000)
        assert rate == row["sample_rate"] == 8000
        assert torch.allclose(waveform, original[:, first : first + waveform.shape[1]], atol=1e-3)
        assert waveform.shape[1] == row["duration_s"] * 8000
        for frame in row["frames"]:
            picture = Image.open(io.BytesIO(frame["image"]))
            assert picture.format == "JPEG" and picture_number(picture) == frame["time_s"] * 4
        assert [frame["time_s"] for frame in row["frames"]] == pytest.approx(
            [row["start_s"] + row["duration_s"] * at for at in (0.25, 0.75)], abs=0.25
        )


def test_the_corpus_says_what_it_holds(corpus):
    manifest = store.read_manifest(corpus, "diffaudio-clips", 3)
    assert manifest["finished"] is True
    assert (manifest["clips"], manifest["dropped"]) == (7, 0)
    assert manifest["seconds"] == pytest.approx(9.2, abs=0.02)
    assert manifest["settings"]["clip_s"] == 2.0
    assert (corpus / "dropped.csv").read_text().strip() == "source,start_s,duration_s,reason,detail"
    parts = store.part_files(corpus, "clips")
    assert [part.name for part in parts] == [f"clips-0000{index}.parquet" for index in range(3)]
    assert all(pq.read_schema(part).remove_metadata() == store.CLIP_SCHEMA for part in parts)


def test_the_corpus_does_not_depend_on_the_order_of_the_files(videos, corpus, tmp_path):
    files = [path for path in videos.rglob("*.mkv") if not path.name.startswith(".")]
    random.Random(1).shuffle(files)
    run([*files, videos], tmp_path / "again")
    assert contents(tmp_path / "again") == contents(corpus)


def test_running_again_does_only_what_is_missing(videos, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    report = run(videos, out)
    (out / "clips-00001.parquet").unlink()
    times = {path: path.stat().st_mtime_ns for path in store.part_files(out, "clips")}
    assert run(videos, out) == report
    assert contents(out) == contents(corpus)
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())

    monkeypatch.setattr("diffaudio.corpus.prepare.run.cut_in_workers", lambda *_, **__: pytest.fail("nothing was left"))
    monkeypatch.setattr(
        "diffaudio.corpus.prepare.finalise.drop_duplicates", lambda *_, **__: pytest.fail("nothing was new")
    )
    assert run(videos, out) == report


def test_new_files_make_new_parts(videos, tmp_path):
    files, out = tmp_path / "files", tmp_path / "out"
    files.mkdir()
    for name in ("a.mkv", "b.mkv", "d.mkv"):
        (files / name).write_bytes((videos / name).read_bytes())
    run(files, out)
    before = contents(out)
    (files / "aa.mkv").write_bytes((videos / "a.mkv").read_bytes())
    (files / "bad.mkv").write_bytes(b"bad")
    report = run(files, out)
    assert (report.sources, report.clips, report.dropped) == (5, 4, 1)
    assert set(contents(out)) - set(before) == {"clips-00002.parquet", "dropped-00002.pq"}
    assert all(contents(out)[name] == data for name, data in before.items() if name.endswith(".parquet"))
    assert [row["source"] for row in dropped_of(out)] == ["bad.mkv"]


def test_what_a_killed_run_left_is_cleared_and_its_finished_parts_stay(videos, corpus, tmp_path):
    out = tmp_path / "out"
    run(videos, out)
    first, second, third = store.part_files(out, "clips")
    (out / ".work" / "some-run-1").mkdir(parents=True)
    second.rename(out / ".work" / "some-run-1" / "0.parquet")
    third.rename(out / ".clips-00002.99999999.part.parquet")
    (out / ".lock").touch()
    store.write_manifest(out, store.read_manifest(out, "diffaudio-clips", 3) | {"finished": False})
    kept = first.stat().st_mtime_ns
    run(videos, out)
    assert first.stat().st_mtime_ns == kept
    assert contents(out) == contents(corpus)


def test_killed_at_any_moment_and_begun_again_by_any_number_of_processes_it_ends_the_same(videos, tmp_path):
    """`tests/benchmarks/test_prepare_killed.py` kills twenty times, and all kinds of processes."""
    run([*videos.rglob("[!.]*.mkv"), videos], tmp_path / "undisturbed", replace(SMALL, sources_per_part=1))
    out, log, rng = tmp_path / "out", tmp_path / "log", random.Random(0)
    names = ("clip_s", "min_clip_s", "sample_rate", "frames_per_clip")
    choice = [str(word) for name in names for word in (f"--{name.replace('_', '-')}", getattr(SMALL, name))]
    command = ["prepare", videos, "-o", out, *choice, "--sources-per-part", "1", "--max-duplicate-distance", "none"]
    process = start([*DIFFAUDIO, *command, "--workers", "2"], log)
    wait_for(process, lambda: bool(store.part_files(out, "clips")))
    time.sleep(rng.uniform(0, 0.2))
    kill(process, everything)
    log_of_two = tmp_path / "log_of_two"
    two = start_two([*DIFFAUDIO, *command], log_of_two)
    assert [process.wait(timeout=240) for process in two] == [0, 0], log_of_two.read_text()
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert log_of_two.read_text().count(f"{out}: 7 clips") == 1


def test_a_corpus_that_another_run_writes_to_is_left_alone(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("diffaudio.corpus.prepare.run.PATIENCE_S", 0.0)
    (tmp_path / "out").mkdir()
    with locked_folder(tmp_path / "out", "diffaudio prepare"):
        with pytest.raises(ValueError, match="out: `diffaudio prepare`, process .* is writing to this folder; wait"):
            run(videos, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    run(videos / "below", tmp_path / "out")


def unavailable_until(fixed: list[str], why: str = "Input/output error"):
    """Stands for `cut_in_workers` where some files cannot be read, those whose name holds one of `fixed`."""

    def cut(media, settings, **choice):
        for file in cut_here(media, settings, **choice):
            is_broken = any(part in file.media.name for part in fixed)
            yield file._replace(unavailable=why) if is_broken else file

    return cut


def test_files_that_cannot_be_read_now_are_left_for_the_next_run_which_comes_to_the_same_end(
    videos, corpus, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("diffaudio.corpus.prepare.run.cut_in_workers", unavailable_until(["b.mkv", "long"]))
        with pytest.raises(UnavailableSourcesError) as raised:
            run(videos, out)
    assert str(raised.value) == (
        f"{out}: 2 of 3 parts are left to be tried again, for 2 files cannot be read now, such as b.mkv (Input/output "
        "error); run the same command again when they can be read, or take them out of the sources"
    )
    assert not store.read_manifest(out, "diffaudio-clips", 3)["finished"]
    assert not (out / "dropped.csv").exists() and not (out / ".work").exists()
    kept = {part: part.stat().st_mtime_ns for part in store.part_files(out, "clips")}
    assert len(kept) == 1
    run(videos, out)
    assert contents(out) == contents(corpus)
    assert all(part.stat().st_mtime_ns == before for part, before in kept.items())


def test_a_share_that_is_gone_stops_the_run_after_some_files(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("diffaudio.corpus.prepare.run.MAX_UNAVAILABLE", 3)
    monkeypatch.setattr("diffaudio.corpus.prepare.run.cut_in_workers", unavailable_until([""]))
    with pytest.raises(UnavailableSourcesError, match="3 of 3 parts are left to be tried again, for 3 files cannot"):
        run(videos, tmp_path / "out")


def test_inputs_that_vanish_midway_are_not_recorded_and_come_back(videos, tmp_path, monkeypatch):
    """With real workers, and exit status 2 of the command."""
    monkeypatch.setattr("diffaudio.corpus.prepare.run.cut_in_workers", cut_in_workers)
    share, away, out = tmp_path / "share", tmp_path / "away", tmp_path / "out"
    shutil.copytree(videos, share)
    settings = replace(SMALL, sources_per_part=1)
    run(videos, tmp_path / "undisturbed", settings)
    finish = run_module._join

    def take_away(*arguments) -> None:
        finish(*arguments)
        if share.exists():
            share.rename(away)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_join", take_away)
        patch.setattr("diffaudio.corpus.prepare.worker_pool.AHEAD_PER_WORKER", 1)
        with pytest.raises(UnavailableSourcesError, match="its folder .*share.* is not there|No such file"):
            run(share, out, settings)
    assert 1 <= len(store.part_files(out, "clips")) < 5
    away.rename(share)
    run(share, out, settings)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_what_was_passed_over_is_listed_and_counted(videos, tmp_path):
    assert run(videos, tmp_path / "out").not_looked_at == 1
    listed = (tmp_path / "out" / "not_looked_at.csv").read_text().splitlines()
    assert listed == ["source,why", "notes.txt,its suffix is not one of a media file"]
    assert store.read_manifest(tmp_path / "out", "diffaudio-clips", 3)["not_looked_at"] == 1


def test_other_settings_are_refused_for_a_corpus_that_was_begun(videos, corpus):
    with pytest.raises(ValueError, match=r"prepared with other settings \(clip_s was 2.0, now 3.0\); use the same"):
        run(videos, corpus, replace(SMALL, clip_s=3.0))


def test_folders_that_hold_something_else_are_refused(videos, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds letter\.txt, but no manifest\.json of a corpus"):
        run(videos, tmp_path)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        run(videos, tmp_path / "letter.txt")
    (tmp_path / "other").mkdir()
    store.write_manifest(tmp_path / "other", {"format": "diffaudio-latents", "version": 1})
    with pytest.raises(ValueError, match="is a corpus of format 'diffaudio-latents', wanted is 'diffaudio-clips'"):
        run(videos, tmp_path / "other")
    store.write_manifest(tmp_path / "other", {"format": "diffaudio-clips", "version": 9})
    with pytest.raises(ValueError, match="the corpus has version 9, this diffaudio reads 3"):
        run(videos, tmp_path / "other")


def test_sources_that_hold_no_media_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: there is no such file or folder"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="no media files found in"):
        run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_clip_ends_with_its_sound_and_needs_its_picture(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    write_media(files / "sound_ends.mkv", sound=noise(3, 8000), pictures=numbered_pictures(8))
    write_media(files / "picture_ends.mkv", sound=noise(8, 8000), pictures=numbered_pictures(2))
    run(files, tmp_path / "out")
    kept = [(row["source"], row["start_s"], round(row["duration_s"], 1)) for row in rows_of(tmp_path / "out")]
    assert kept == [
        ("picture_ends.mkv", 0, 2),
        ("picture_ends.mkv", 2, 2),
        ("sound_ends.mkv", 0, 2),
        ("sound_ends.mkv", 2, 1),
    ]
    dropped = {(row["source"], float(row["start_s"])): row["reason"] for row in dropped_of(tmp_path / "out")}
    assert dropped[("picture_ends.mkv", 4.0)] == dropped[("picture_ends.mkv", 6.0)] == "no_picture"


def test_clips_overlap_where_the_hop_is_shorter(videos, tmp_path):
    settings = replace(SMALL, hop_s=1.0)
    run(videos / "below", tmp_path / "out", settings)
    assert [row["start_s"] for row in rows_of(tmp_path / "out")] == [0, 1, 2, 3, 4]


def test_black_pictures_are_left_out_of_a_clip_that_has_others(tmp_path):
    pictures = [Image.new("RGB", (64, 48))] * 4 + numbered_pictures(1)
    path = write_media(tmp_path / "a.mkv", sound=noise(2, 8000), pictures=pictures)
    run(path, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert [frame["time_s"] for frame in row["frames"]] == [1.5]


def test_sound_beyond_full_scale_is_attenuated_rather_than_clipped(tmp_path):
    """A few samples of decoded AAC or MP3 lie there in many recordings; they are no reason to drop one."""
    sound = noise(1, 44100, gain=0.02)
    sound[:, 20000:23000] = tone(3000 / 44100, 44100, frequency=1000, gain=1.4)
    path = write_media(tmp_path / "a.mov", sound=sound, pictures=numbered_pictures(1), sound_codec="pcm_f32le")
    run(path, tmp_path / "out", replace(SMALL, sample_rate=44100))
    (row,) = rows_of(tmp_path / "out")
    waveform, _ = decode_flac(row["audio"])
    assert 0.99 < waveform.abs().max() <= 1
    assert (waveform.abs() > 0.99).sum() < 600  # 270 of a sine that reaches 1, 1480 of one cut off there


@pytest.mark.parametrize("field", ["clip_s", "min_clip_s", "sample_rate", "frames_per_clip", "frame_size"])
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0; it must be above 0"):
        PrepareSettings(**{field: 0})


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="min_clip_s is 20, above clip_s, which is 10"):
        PrepareSettings(min_clip_s=20, clip_s=10)
    with pytest.raises(ValueError, match="channels is 5; choose 1"):
        PrepareSettings(channels=5)
    with pytest.raises(ValueError, match="hop_s is -1; it must be above 0"):
        PrepareSettings(hop_s=-1)


class Told:
    """Stands for `accelerate.PartialState` of one of two processes, which hear from the first what `told` holds."""

    num_processes = 2

    def __init__(self, process_index: int, told: list) -> None:
        self.process_index, self.told = process_index, told
        self.is_main_process = process_index == 0

    def wait_for_everyone(self) -> None:
        pass

    def broadcast_object_list(self, outcomes: list) -> list:
        if self.is_main_process:
            self.told.extend(outcomes)
            return outcomes
        return [self.told.pop(0)]


def test_what_is_wrong_is_the_same_error_on_all_processes(tmp_path, monkeypatch):
    told = []
    for index in (0, 1):
        state = Told(index, told)
        monkeypatch.setattr("accelerate.utils.broadcast_object_list", state.broadcast_object_list)
        with pytest.raises(ValueError, match="nowhere: there is no such file or folder"):
            prepare([tmp_path / "nowhere"], tmp_path / "out", SMALL, state=state, progress=False)


def test_a_machine_that_does_not_see_the_folder_says_so(videos, tmp_path, monkeypatch):
    state = Told(1, [_Job("run", [], True)])
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", state.broadcast_object_list)
    with pytest.raises(ValueError, match="out: is not there on all machines; name a folder that they share"):
        prepare([videos], tmp_path / "out", SMALL, state=state, progress=False)


def test_segments_and_captions_come_from_a_manifest(videos, tmp_path):
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,start,end,caption\n{videos}/below/long.mkv,1,3.5,rain\n{videos}/below/long.mkv,4,,sea\n")
    run(manifest, tmp_path / "out")
    found = [(row["start_s"], row["duration_s"], row["caption"]) for row in rows_of(tmp_path / "out")]
    assert found == [(1, 2, "rain"), (3, 0.5, "rain"), (4, pytest.approx(1.2, abs=0.01), "sea")]

    manifest.write_text(f"path,start,end,caption\n{videos}/below/long.mkv,1,3.5,snow\n")
    with pytest.raises(ValueError, match=r"clips-00000\.parquet: was made when other stretches or captions of its sou"):
        run(manifest, tmp_path / "out")


def test_files_do_not_come_twice_because_their_names_count_from_another_folder(tmp_path):
    for name in ("one/a.mp4", "one/below/b.mp4", "two/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"bad")
    run(tmp_path / "one", tmp_path / "out")
    with pytest.raises(ValueError, match="new names, such as one/a.mp4 to what the corpus has as a.mp4, and all would"):
        run([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    with pytest.raises(ValueError, match="new names, such as b.mp4 to what the corpus has as below/b.mp4"):
        run(tmp_path / "one/below", tmp_path / "out")
    (tmp_path / "one/a.mp4").rename(tmp_path / "one/below/a.mp4")  # one of several may well have moved
    assert run(tmp_path / "one", tmp_path / "out").sources == 3


def test_a_corpus_of_an_older_format_is_not_continued(videos, tmp_path):
    old = {"format": "diffaudio-clips", "version": 1, "settings": asdict(SMALL), "finished": True}
    store.write_manifest(tmp_path, old)
    with pytest.raises(
        ValueError, match=r"was made by an older diffaudio \(version 1 of the format, now 3\); it stays"
    ):
        run(videos, tmp_path)


def test_preparing_needs_no_torch():
    program = "import sys, diffaudio.cli.prepare, diffaudio.corpus.prepare.run as p; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.fixture(scope="module")
def with_copies(videos, tmp_path_factory):
    """a.mkv again under two names, and long.mkv again with other pictures."""
    folder = tmp_path_factory.mktemp("copies")
    for name, like in (("a.mkv", "a.mkv"), ("b.mkv", "b.mkv"), ("c.mkv", "a.mkv"), ("d.mkv", "a.mkv")):
        (folder / name).write_bytes((videos / like).read_bytes())
    return folder


DEDUPLICATED = replace(SMALL, max_duplicate_distance=0.2)


def test_a_sound_that_is_there_already_is_dropped_and_the_clip_it_repeats_is_named(with_copies, tmp_path):
    report = run(with_copies, tmp_path / "out", DEDUPLICATED)
    first, second = rows_of(tmp_path / "out")
    assert [first["source"], second["source"]] == ["a.mkv", "b.mkv"]
    detail = f"sounds like a.mkv at 0 s (clip {first['id']})"
    assert dropped_of(tmp_path / "out") == [
        {"source": name, "start_s": "0.0", "duration_s": "1.0", "reason": "duplicate", "detail": detail}
        for name in ("c.mkv", "d.mkv")
    ]
    assert (report.sources, report.clips, report.seconds, report.dropped) == (4, 2, 2.0, 2)
    assert report.reasons == {"duplicate": 2}


def test_duplicates_may_stay_marked(with_copies, tmp_path):
    settings = replace(DEDUPLICATED, keep_dropped=True)
    report = run(with_copies, tmp_path / "out", settings)
    reasons = {row["source"]: row["reason"] for row in rows_of(tmp_path / "out", rejected=True)}
    assert reasons == {"a.mkv": None, "b.mkv": None, "c.mkv": "duplicate", "d.mkv": "duplicate"}
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["a.mkv", "b.mkv"]
    assert (report.clips, report.seconds, report.rejected, report.dropped) == (2, 2.0, 2, 2)


@pytest.mark.parametrize("keep", [False, True])
def test_stopped_between_two_parts_the_search_for_duplicates_comes_to_the_same_end(with_copies, tmp_path, keep):
    settings = replace(DEDUPLICATED, sources_per_part=1, keep_dropped=keep)
    run(with_copies, tmp_path / "whole", settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplicate, "_rewrite", stop_after(deduplicate._rewrite, 1))
        with pytest.raises(KeyboardInterrupt):
            run(with_copies, tmp_path / "stopped", settings)
    assert not store.read_manifest(tmp_path / "stopped", "diffaudio-clips", 3)["finished"]
    run(with_copies, tmp_path / "stopped", settings)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def stop_after(function, times: int):
    """`function`, stopped when it is called once more than so often."""
    left = iter(range(times))

    def called(*given, **named):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*given, **named)

    return called
