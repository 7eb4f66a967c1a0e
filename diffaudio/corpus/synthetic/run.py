"""A synthetic corpus: mp4 files of simple moving objects with matching sound; labels in a separate file.

    videos/000/000/000000000.mp4 …   H.264 and AAC; at most 1,000 entries in a folder, up to 1,000,000,000 clips
    labels.csv                       file (below videos/), label
    manifest.json                    settings and number of clips; `finished` is false until every clip is written

Clip i depends only on the settings and on i, and is byte-identical on one machine: a corpus can be extended, and an
interrupted run resumes. A clip's name does not reveal its kind; each block of twelve consecutive clips that starts at a
multiple of twelve contains every kind once.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.random import Generator, default_rng
from tqdm import tqdm

from diffaudio.atomic_io import atomic_file
from diffaudio.corpus import store
from diffaudio.corpus.synthetic.scenes import KINDS, SAMPLE_RATE, Canvas, Scene, backdrop
from diffaudio.errors import UserError

__all__ = ["KINDS", "SynthesisSettings", "clip_kind", "clip_path", "synthesise_corpus", "write_clip"]

FORMAT, VERSION = "diffaudio-synthetic", 1
MAX_CLIPS = 10**9
H264 = {"preset": "ultrafast", "crf": "20", "threads": "1"}  # one thread: with several, the bytes differ
# Constant quality: for simple sounds, rate control to a target bit rate takes longer than everything else combined.
AAC = {"aac_coder": "fast", "flags": "+qscale", "global_quality": "118"}
PEAKS = (0.25, 0.8)  # range of a clip's peak amplitude


@dataclass(frozen=True)
class SynthesisSettings:
    """Settings of a synthetic corpus.

    Attributes:
        seed: random seed; different seeds give different clips.
        duration_s: duration of each clip in seconds, 0.5 to 600.
        side: width and height of the frames in pixels, even, 32 to 2048.
        frame_rate: frames per second, 1 to 60.
    """

    seed: int = 0
    duration_s: float = 5.0
    side: int = 128
    frame_rate: int = 25

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; choose 0 or more")
        for name, low, high in (("duration_s", 0.5, 600), ("side", 32, 2048), ("frame_rate", 1, 60)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name} is {getattr(self, name):g}; choose {low:g} to {high:g}")
        if self.side % 2:
            raise UserError(f"side is {self.side}; choose an even number, as H.264 wants")


def synthesise_corpus(
    out: Path, num_clips: int, settings: SynthesisSettings | None = None, *, progress: bool = True
) -> int:
    """Write the missing clips, then the labels.

    Args:
        out: folder of the corpus, created if missing; a corpus started with the same settings is resumed.
        num_clips: total number of clips in the corpus; at least as many as before.
        progress: show a progress bar.

    Returns:
        The number of clips written.

    Raises:
        ValueError: `num_clips` is out of range, or `out` holds something else, more clips, or clips of other settings.
    """
    settings = settings or SynthesisSettings()
    if not 1 <= num_clips <= MAX_CLIPS:
        raise UserError(f"num_clips is {num_clips}; choose 1 to {MAX_CLIPS:,}")
    _begin(out, num_clips, settings)
    written = 0
    for index in tqdm(range(num_clips), unit="clip", disable=not progress):
        path = out / "videos" / clip_path(index)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, clip_kind(index, settings.seed), settings, index)
            written += 1
    _write_labels(out / "labels.csv", ((clip_path(i), clip_kind(i, settings.seed)) for i in range(num_clips)))
    _write_manifest(out, num_clips, settings, finished=True)
    return written


def clip_path(index: int) -> str:
    """The path of clip i, relative to `videos`."""
    return f"{index // 1_000_000:03}/{index // 1000 % 1000:03}/{index:09}.mp4"


def clip_kind(index: int, seed: int) -> str:
    """The kind of clip i: all kinds in turn, reshuffled for each round."""
    turn, place = divmod(index, len(KINDS))
    return list(KINDS)[default_rng([seed, turn, 0]).permutation(len(KINDS))[place]]


def write_clip(path: Path, kind: str, settings: SynthesisSettings | None = None, index: int = 0) -> None:
    """Write one mp4 file atomically.

    Args:
        path: output file, in an existing folder.
        kind: one of `KINDS`.
        index: index of the clip; with the seed, it seeds the random generator.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"kind '{kind}' is unknown; choose from {', '.join(KINDS)}")
    settings = settings or SynthesisSettings()
    rng = default_rng([settings.seed, index])
    scene = KINDS[kind](rng, settings.duration_s)
    sound = _stereo(scene, peak=rng.uniform(*PEAKS))
    with atomic_file(path) as temporary:
        _encode(temporary, scene, sound, settings, rng)


def _stereo(scene: Scene, *, peak: float) -> np.ndarray:
    """[2, samples] float32: constant-power panning to the position of the source, scaled to `peak`."""
    angle = np.pi / 2 * np.clip(scene.x, 0, 1)
    sound = np.stack([np.cos(angle) * scene.sound, np.sin(angle) * scene.sound])
    return (sound * (peak / np.abs(sound).max())).astype(np.float32)


def _encode(path: Path, scene: Scene, sound: np.ndarray, settings: SynthesisSettings, rng: Generator) -> None:
    """Write video and audio interleaved, in the order a player reads them.

    Args:
        sound: [2, samples].
        rng: random generator for the grain of the background.
    """
    rate, background = settings.frame_rate, backdrop(scene, rng, settings.side)
    num_frames, num_samples = max(1, round(settings.duration_s * rate)), sound.shape[1]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options=H264)
        video.width = video.height = settings.side
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo", options=AAC)
        to_yuv = VideoReformatter()  # shared by all frames: creating one takes as long as encoding a frame
        for index in range(num_frames):
            canvas = Canvas(background)
            scene.draw(canvas, index / rate)
            frame = to_yuv.reformat(av.VideoFrame.from_image(canvas.picture()), format="yuv420p", threads=1)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(video.encode(frame))
            first, last = (num_samples * (index + more) // num_frames for more in (0, 1))
            piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, first:last]), "fltp", "stereo")
            piece.sample_rate, piece.pts, piece.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(piece))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _begin(out: Path, num_clips: int, settings: SynthesisSettings) -> None:
    """Create the folder, or check that the corpus in it is compatible with this one."""
    if (out / "manifest.json").is_file():
        before = store.read_manifest(out, FORMAT, VERSION)
        changed = [
            f"{k} was {before['settings'].get(k)}, now {v}"
            for k, v in asdict(settings).items()
            if before["settings"].get(k) != v
        ]
        if changed:
            raise UserError(
                f"{out}: was made with other settings ({'; '.join(changed)}); use the same, or another folder"
            )
        if before["clips"] > num_clips:
            raise UserError(
                f"{out}: holds {before['clips']} clips or is meant to; ask for as many or more, or name another folder"
            )
        if before["finished"] and before["clips"] == num_clips:
            return
    else:
        store.make_folder(out)
    _write_manifest(out, num_clips, settings, finished=False)


def _write_manifest(out: Path, num_clips: int, settings: SynthesisSettings, *, finished: bool) -> None:
    head = {"format": FORMAT, "version": VERSION, "settings": asdict(settings)}
    store.write_manifest(out, {**head, "clips": num_clips, "finished": finished})


def _write_labels(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows(rows)
