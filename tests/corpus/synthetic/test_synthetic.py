"""The synthetic corpus: sounds follow their physics, pictures agree with them, files are there whole and the same."""

import csv
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from diffaudio.cli.main import main
from diffaudio.corpus.datasets.labelled import read_labels
from diffaudio.corpus.prepare.run import prepare
from diffaudio.corpus.synthetic import acoustics
from diffaudio.corpus.synthetic import run as synthetic
from diffaudio.corpus.synthetic.run import SynthesisSettings, clip_kind, clip_path, synthesise_corpus, write_clip
from diffaudio.corpus.synthetic.scenes import KINDS, SAMPLE_RATE, Canvas, Scene, backdrop
from diffaudio.corpus.synthetic.struck import BELL, MEMBRANE, STRINGS_HZ
from diffaudio.media.audio_decoder import decode_audio
from diffaudio.media.container import probe
from diffaudio.media.video_frames import read_frames

SMALL = SynthesisSettings(duration_s=0.5, side=32, frame_rate=4)


class Recorder:
    """A canvas that remembers what is drawn, by method: what was asked for, in order."""

    def __init__(self) -> None:
        self.drawn: dict[str, list[tuple]] = {}

    def __getattr__(self, name):
        return lambda *arguments: self.drawn.setdefault(name, []).append(arguments)


def seen(scene: Scene, time_s: float) -> dict[str, list[tuple]]:
    recorder = Recorder()
    scene.draw(recorder, time_s)  # type: ignore[arg-type]
    return recorder.drawn


def onsets(sound: np.ndarray) -> np.ndarray:
    """When a sound becomes louder all at once, in seconds, to 5 ms; high frequencies count most."""
    window = SAMPLE_RATE // 200
    sharp = np.abs(np.diff(sound, n=2))
    level = sharp[: len(sharp) // window * window].reshape(-1, window).max(axis=1)
    before = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.zeros(10), level[:-1]]), 10).max(axis=1)
    rises = (level > 1.5 * before + 0.02 * level.max()).nonzero()[0]
    return np.array([rise for rise, last in zip(rises, [-99, *rises[:-1]], strict=True) if rise > last + 6]) / 200


def peak_finder(sound: np.ndarray) -> Callable[[float, float], float]:
    """A function that gives the strongest frequency between two, in Hz."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 4 * len(sound)))
    step = SAMPLE_RATE / (4 * len(sound))

    def peak(low_hz: float, high_hz: float) -> float:
        first, last = int(np.ceil(low_hz / step)), int(high_hz / step) + 1
        return step * (first + int(power[first:last].argmax()))

    return peak


def spectrum_peak(sound: np.ndarray, low_hz: float, high_hz: float) -> float:
    """The strongest frequency between two, in Hz."""
    return peak_finder(sound)(low_hz, high_hz)


def made(kind: str, seed: int = 0, duration_s: float = 3.0) -> Scene:
    return KINDS[kind](default_rng(seed), duration_s)


# Kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_sounds_from_the_beginning_moves_and_is_another_for_another_seed(kind):
    scene, same, other = (made(kind, seed, 1.0) for seed in (3, 3, 4))
    assert scene.sound.shape == (SAMPLE_RATE,)
    assert np.isfinite(scene.sound).all()
    level = np.abs(scene.sound)
    assert level[: SAMPLE_RATE // 2].max() > 0.2 * level.max() > 0
    assert np.array_equal(scene.sound, same.sound)
    assert not np.array_equal(scene.sound, other.sound)
    assert seen(scene, 0.5) == seen(same, 0.5)
    assert seen(scene, 0.5) != seen(other, 0.5)
    pictures = []
    for time_s in (0.1, 0.3):
        canvas = Canvas(backdrop(scene, default_rng(0), 64))
        scene.draw(canvas, time_s)
        pictures.append(np.asarray(canvas.picture(), float))
    assert pictures[0].shape == (64, 64, 3)
    changed = np.abs(pictures[1] - pictures[0]).max(axis=2) > 25
    assert changed.mean() > 0.001


@pytest.mark.parametrize("seed", range(3))
def test_a_bounce_is_heard_when_the_ball_touches_the_ground_and_loses_speed_by_a_constant_factor(seed):
    scene = made("bounce", seed)

    def above(time_s: float) -> float:
        drawn = seen(scene, time_s)
        (_, floor, *_), (_, y, radius, _) = drawn["ellipse"][0], drawn["disc"][0]
        return floor - (y + radius)

    times_s = onsets(scene.sound)
    assert len(times_s) >= 4
    for time_s, next_s in pairwise(times_s):
        assert min(above(time_s + late_s) for late_s in np.arange(-0.006, 0.007, 0.001)) == pytest.approx(0, abs=0.01)
        assert above((time_s + next_s) / 2) > 0.01
    first, second, third = np.diff(times_s)[:3]
    assert second / first == pytest.approx(third / second, abs=0.03)
    assert 0.65 < second / first < 0.88


def test_the_partials_of_a_bell_are_those_that_were_measured_and_no_harmonics():
    peak = peak_finder(made("bell", 1).sound[-2 * SAMPLE_RATE :])

    def is_prime(f: float) -> bool:
        return all(abs(peak(0.95 * ratio * f, 1.05 * ratio * f) - ratio * f) < 1 for ratio in (0.501, 1, 1.204))

    prime = next(f for f in np.arange(300, 760, 0.5) if is_prime(f))
    for ratio in BELL[:6]:
        assert peak(0.97 * ratio * prime, 1.03 * ratio * prime) == pytest.approx(ratio * prime, rel=3e-3)
    assert abs(np.array(BELL) / BELL[0] - np.round(np.array(BELL) / BELL[0])).max() > 0.3


def test_a_bell_is_heard_at_both_ends_of_its_swing():
    scene = made("bell", 1)
    for time_s in onsets(scene.sound):
        clapper = [seen(scene, time_s + late_s)["disc"][0][0] for late_s in (-0.1, 0.0, 0.1)]
        assert (clapper[1] - clapper[0]) * (clapper[2] - clapper[1]) < 0


def test_a_drum_is_heard_when_the_stick_is_down_and_has_the_modes_of_a_membrane():
    scene = made("drum", 2)
    times_s = onsets(scene.sound)
    assert len(times_s) >= 5
    height = {late: [seen(scene, t + late)["disc"][0][1] for t in times_s[:-1]] for late in (0.0, 0.1)}
    assert np.ptp(height[0.0]) < 0.02
    assert min(height[0.0]) > max(height[0.1]) + 0.05
    struck = scene.sound[round(times_s[0] * SAMPLE_RATE) : round(times_s[1] * SAMPLE_RATE)]
    low = spectrum_peak(struck, 90, 280)
    assert spectrum_peak(struck, 1.45 * low, 1.75 * low) / low == pytest.approx(3.832 / 2.405, abs=0.04)
    assert [zero / 2.405 for _, zero in MEMBRANE[:4]] == pytest.approx([1, 1.594, 2.136, 2.296], abs=1e-3)


def test_a_clock_ticks_when_its_pendulum_hangs_straight_down():
    scene = made("clock", 5)
    times_s = onsets(scene.sound)
    assert np.ptp(np.diff(times_s)) < 0.011
    for time_s in times_s:
        (top, bob), *_ = seen(scene, time_s)["line"][0]
        assert bob[0] == pytest.approx(top[0], abs=0.015)


def test_an_engine_fires_when_its_piston_is_at_the_top():
    for seed in range(8):
        scene = made("engine", seed)
        times_s = onsets(scene.sound)[1:]
        top = min(seen(scene, t)["box"][2][1] for t in np.arange(0.5, 1.5, 0.002))
        if len(times_s) <= 15:  # one cylinder or two; with four the others fire, too
            for time_s in times_s:
                assert min(seen(scene, time_s + late)["box"][2][1] for late in (-0.005, 0, 0.005)) < top + 0.02
            return
    raise AssertionError("no engine with few cylinders among the seeds")


def test_a_step_is_heard_when_the_legs_are_farthest_apart():
    scene = made("footsteps", 1)
    apart = lambda t: abs(seen(scene, t)["line"][0][0][1][0] - seen(scene, t)["line"][3][0][1][0])  # noqa: E731
    widest = max(apart(t) for t in np.arange(0, 1.5, 0.01))
    first = onsets(scene.sound)[0]
    assert apart(first) > 0.95 * widest
    assert apart(first + 0.2) < 0.95 * widest


def test_the_pitch_of_a_siren_moves_and_its_lamp_is_brightest_where_it_is_highest():
    scene = made("siren", 0, 4.0)
    pitch, lamp = [], []
    for time_s in np.arange(0.1, 3.8, 0.05):
        first = round(time_s * SAMPLE_RATE)
        pitch.append(spectrum_peak(scene.sound[first - 1024 : first + 1024], 300, 1700))
        lamp.append(max(seen(scene, time_s)["box"][2][4]))
    assert max(pitch) > 1.6 * min(pitch)
    assert np.corrcoef(np.log(pitch), lamp)[0, 1] > 0.98


def test_a_whistle_trills_while_breath_is_seen_and_is_silent_otherwise():
    scene = made("whistle", 0)
    blown, silent = [], []
    for time_s in np.arange(0.05, 2.9, 0.01):
        level = np.abs(scene.sound[round(time_s * SAMPLE_RATE) :][:100]).max()
        (blown if len(seen(scene, time_s)["disc"]) > 3 else silent).append(level)
    assert np.quantile(blown, 0.1) > 0.3
    assert np.quantile(silent, 0.8) == 0
    assert 1500 < spectrum_peak(scene.sound, 500, 8000) < 6000


def test_a_guitar_shows_the_string_that_sounds():
    scene = made("guitar", 1)
    time_s = onsets(scene.sound)[0]
    swings = [np.ptp([y for _, y in line[0]]) for line in seen(scene, time_s + 0.01)["line"]]
    lowest = spectrum_peak(scene.sound[: SAMPLE_RATE // 4], 70, 520)
    frets = 12 * np.log2(lowest / STRINGS_HZ[int(np.argmax(swings))]) % 12  # an octave is a partial of the same string
    assert abs(frets - round(frets)) < 0.25
    assert sorted(swings)[-1] > 100 * sorted(swings)[-2]


def test_the_blades_of_a_helicopter_pass_as_often_as_it_slaps():
    scene = made("helicopter", 0)
    envelope = np.square(scene.sound)[: len(scene.sound) // 441 * 441].reshape(-1, 441).mean(axis=1)
    power = np.abs(np.fft.rfft(envelope - envelope.mean()))
    heard_hz = np.fft.rfftfreq(len(envelope), 0.01)[power[: len(power) // 2].argmax()]
    blades = len(seen(scene, 0)["line"]) - 5  # two skids' legs, one skid, mast, tail rotor
    tips = [seen(scene, t)["line"][4][0] for t in np.arange(0, 3, 0.005)]
    across = np.array([tip[0] - hub[0] for hub, tip in tips])
    seen_hz = np.fft.rfftfreq(len(across), 0.005)[np.abs(np.fft.rfft(across)).argmax()]
    assert heard_hz == pytest.approx(blades * seen_hz, abs=0.4 * blades)


def test_more_drops_of_rain_are_seen_where_more_are_heard():
    scenes = [made("rain", seed) for seed in range(12)]
    rings = [len(seen(scene, 1.0).get("circle", [])) + len(seen(scene, 2.0).get("circle", [])) for scene in scenes]
    crests = [np.mean(scene.sound**4) / np.mean(scene.sound**2) ** 2 for scene in scenes]  # single drops stand out
    assert max(rings) > 2 * min(rings)
    assert np.corrcoef(rings, crests)[0, 1] < -0.2


def test_a_train_goes_by_in_the_picture_where_it_is_heard():
    scene = made("train", 0)
    assert isinstance(scene.x, np.ndarray)
    for time_s in (0.2, 0.8, 1.4):
        boxes = [box for box in seen(scene, time_s)["box"] if box[2] - box[0] > 0.3]
        assert (boxes[0][0] + boxes[0][2]) / 2 == pytest.approx(scene.x[round(time_s * SAMPLE_RATE)], abs=1e-6)


# Physics


def test_what_comes_nearer_is_higher_by_the_doppler_shift():
    t = acoustics.clock_of(1.0)
    source = np.sin(2 * np.pi * 1000 * t)
    for speed in (-30.0, 0.0, 30.0):  # growing distance
        heard = acoustics.moving(source, 100 + speed * t) * (100 + speed * t)
        assert spectrum_peak(heard[SAMPLE_RATE // 2 :], 800, 1200) == pytest.approx(1000 / (1 + speed / 343), abs=0.5)


def test_a_plucked_string_has_its_pitch_and_harmonics_and_dies_away():
    heard = acoustics.pluck(default_rng(0), 220.0, 0.5, 2.0)
    pitch = SAMPLE_RATE / (round(SAMPLE_RATE / 220 - 0.5) + 0.5)
    assert spectrum_peak(heard, 200, 240) == pytest.approx(pitch, abs=0.5)
    assert spectrum_peak(heard, 2 * 200, 2 * 240) == pytest.approx(2 * pitch, abs=1)
    early, late = (np.square(heard[first:][:22050]).mean() for first in (0, 66150))
    assert late < early * np.exp(-2 * 1.5 / 0.5)


def test_a_mode_has_its_frequency_and_its_decay():
    heard = acoustics.ring([500.0, 30000.0], [1.0, 1.0], [0.2, 1.0])
    assert spectrum_peak(heard, 20, 20000) == pytest.approx(500, abs=0.5)
    t = acoustics.clock_of(0.5)
    assert np.allclose(heard[: len(t)], np.exp(-t / 0.2) * np.sin(2 * np.pi * 500 * t))


def test_noise_stays_in_its_band():
    power = np.abs(np.fft.rfft(acoustics.band_noise(default_rng(0), SAMPLE_RATE, 500, 2000))) ** 2
    assert power[500:2000].mean() > 20 * power[:150].mean()
    assert power[500:2000].mean() > 20 * power[8000:].mean()


# Files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "synthetic"
    synthesise_corpus(out, 3, SMALL, progress=False)
    return out


def test_a_file_holds_picture_and_sound_of_the_scene_in_time(tmp_path):
    settings = SynthesisSettings(seed=1, duration_s=2.0, side=64, frame_rate=25)
    write_clip(tmp_path / "drum.mp4", "drum", settings, 7)
    info = probe(tmp_path / "drum.mp4")
    assert (info.width, info.height, info.frame_rate, info.sample_rate) == (64, 64, 25.0, SAMPLE_RATE)
    assert info.audio_channels == 2
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    rng = default_rng([1, 7])
    scene = KINDS["drum"](rng, 2.0)
    sound, _ = decode_audio(tmp_path / "drum.mp4", duration_s=2.0)
    mono = sound.sum(axis=0)
    lags = range(-600, 601, 5)
    heard = mono[600:-600]
    fits = [float(np.dot(heard, scene.sound[600 + lag :][: len(heard)])) for lag in lags]
    assert abs(lags[int(np.argmax(fits))]) < 0.002 * SAMPLE_RATE
    times_s = np.arange(25) / 25
    pictures = [np.asarray(picture, float) for _, picture in read_frames(tmp_path / "drum.mp4", list(times_s + 0.001))]
    rng.uniform()  # the level
    background = backdrop(scene, rng, 64)
    for index in (0, 9, 20):
        drawn = []
        for time_s in times_s:
            canvas = Canvas(background)
            scene.draw(canvas, time_s)
            drawn.append(np.abs(np.asarray(canvas.picture(), float) - pictures[index]).mean())
        assert drawn[index] == min(drawn) < 6


def test_labels_lie_apart_and_name_every_video(corpus):
    labels = read_labels(corpus / "labels.csv")
    assert labels == {clip_path(i): clip_kind(i, 0) for i in range(3)}
    assert set(labels) == set(contents(corpus / "videos"))
    assert json.loads((corpus / "manifest.json").read_text())["finished"] is True
    assert not any(kind in path.as_posix() for path in (corpus / "videos").rglob("*") for kind in KINDS)


def test_the_kinds_come_equally_often_in_an_order_that_the_seed_gives():
    kinds = [clip_kind(i, 5) for i in range(5 * len(KINDS))]
    for first in range(0, len(kinds), len(KINDS)):
        assert sorted(kinds[first : first + len(KINDS)]) == sorted(KINDS)
    assert kinds[: len(KINDS)] != kinds[len(KINDS) : 2 * len(KINDS)]
    assert kinds != [clip_kind(i, 6) for i in range(len(kinds))]


def test_no_folder_holds_more_than_a_thousand():
    paths = [Path(clip_path(index)) for index in (0, 999, 1000, 999_999, 1_000_000, 999_999_999)]
    assert [path.parent.as_posix() for path in paths] == [
        "000/000",
        "000/000",
        "000/001",
        "000/999",
        "001/000",
        "999/999",
    ]
    assert len({path.name for path in paths}) == len(paths)


def test_the_same_settings_give_the_same_bytes_and_a_corpus_can_grow(corpus, tmp_path):
    out = tmp_path / "out"
    assert synthesise_corpus(out, 1, SMALL, progress=False) == 1
    assert synthesise_corpus(out, 3, SMALL, progress=False) == 2
    assert contents(out) == contents(corpus)
    other = tmp_path / "other"
    synthesise_corpus(other, 1, SynthesisSettings(1, 0.5, 32, 4), progress=False)
    assert contents(other / "videos")[clip_path(0)] != contents(out / "videos")[clip_path(0)]


def test_an_interrupted_run_resumes(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"

    class Killed(Exception):
        pass

    def kill(path, *arguments):
        path.write_bytes(b"half a file")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_encode", kill)
        with pytest.raises(Killed):
            synthesise_corpus(out, 3, SMALL, progress=False)
    assert contents(out / "videos") == {}
    assert not (out / "labels.csv").exists()
    assert json.loads((out / "manifest.json").read_text())["finished"] is False
    assert synthesise_corpus(out, 3, SMALL, progress=False) == 3
    (out / "videos" / clip_path(1)).unlink()
    assert synthesise_corpus(out, 3, SMALL, progress=False) == 1
    assert contents(out) == contents(corpus)


def test_prepare_keeps_a_clip_of_every_kind(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for kind in KINDS:
        write_clip(videos / f"{kind}.mp4", kind, SynthesisSettings(duration_s=1.0, side=64, frame_rate=10))
    report = prepare([videos], tmp_path / "clips", progress=False)
    assert (report.clips, report.dropped) == (len(KINDS), 0)
    assert report.seconds == pytest.approx(len(KINDS), rel=0.05)


def test_the_command_makes_videos_and_says_where(tmp_path, capsys):
    arguments = ["synthesise-corpus", "-o", str(tmp_path / "out"), "--clips", "2", "--duration", "0.5", "--size", "32"]
    assert main([*arguments, "--frame-rate", "4"]) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}/out/videos: 2 videos of {len(KINDS)} kinds, 2 of them new" in told.replace("\\", "/")
    with (tmp_path / "out/labels.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [clip_path(0), clip_path(1)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--clips", "0"], "--clips: expected a whole number above 0, got '0'"),
        ([], "--clips must be given"),
        (["--clips", "2", "--duration", "0.1"], "duration_s is 0.1; choose 0.5 to 600"),
        (["--clips", "2", "--size", "33"], "side is 33; choose an even number, as H.264 wants"),
        (["--clips", "2", "--seed", "-1"], "seed is -1; choose 0 or more"),
        (["--clips", "3", "--duration", "0.5"], "with other settings (side was 32, now 128; frame_rate was 4, now 25)"),
        (
            ["--clips", "2", "--duration", "0.5", "--size", "32", "--frame-rate", "4"],
            "holds 3 clips or is meant to; ask",
        ),
    ],
)
def test_errors_are_one_line_messages(corpus, capsys, arguments, told):
    before = contents(corpus)
    assert main(["synthesise-corpus", "-o", str(corpus), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert contents(corpus) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt, but no manifest.json of a corpus"):
        synthesise_corpus(tmp_path, 1, SMALL, progress=False)
    (tmp_path / "manifest.json").write_text('{"format": "diffaudio-clips", "version": 1}')
    with pytest.raises(ValueError, match="is a corpus of format 'diffaudio-clips', wanted is 'diffaudio-synthetic'"):
        synthesise_corpus(tmp_path, 1, SMALL, progress=False)


def test_an_unknown_kind_and_numbers_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind 'cat' is unknown; choose from bell, bounce, clock"):
        write_clip(tmp_path / "cat.mp4", "cat")
    for wrong, told in (
        ({"seed": -1}, "seed is -1; choose 0 or more"),
        ({"duration_s": 0.1}, "duration_s is 0.1; choose 0.5 to 600"),
        ({"side": 16}, "side is 16; choose 32 to 2048"),
        ({"frame_rate": 0}, "frame_rate is 0; choose 1 to 60"),
    ):
        with pytest.raises(ValueError, match=told):
            SynthesisSettings(**wrong)
    with pytest.raises(ValueError, match="num_clips is 0; choose 1 to 1,000,000,000"):
        synthesise_corpus(tmp_path / "out", 0)


def test_picture_sizes_other_than_the_usual_are_drawn_alike():
    scene = made("bounce")
    small, large = (Canvas(backdrop(scene, default_rng(0), side)) for side in (32, 128))
    for canvas in (small, large):
        scene.draw(canvas, 0.4)
    shrunk = large.picture().resize((32, 32), Image.Resampling.BOX)
    assert np.abs(np.asarray(shrunk, float) - np.asarray(small.picture(), float)).mean() < 6
