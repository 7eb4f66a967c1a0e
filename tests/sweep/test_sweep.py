"""`diffaudio sweep`: the grid, what it makes and keeps, and its tables; killed, resumed and shared by processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_backbone import BandBackbone
from PIL import Image
from scripts import REPO
from tiny_model import SAMPLE_RATE, write_tiny_model

from diffaudio.cli.sweep import run
from diffaudio.diffusion.settings import GenerationSettings, Projection
from diffaudio.errors import report_errors
from diffaudio.evaluation.embed import Embedder
from diffaudio.folder_lock import locked_folder
from diffaudio.media.audio import read_audio, write_audio
from diffaudio.models.tagger import Tagger
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.sweep import run as sweeping
from diffaudio.sweep.axes import AXES
from diffaudio.sweep.grid import suitable

SCRIPT = REPO / "sample/sweep.py"
PROMPTS = "prompt,label,name\na dog barking,band 1,dog\nrain,band 2,rain\nthe sea,band 0,\n"
GRID = ["--samplers", "ddim,euler", "--steps", "2,3", "--guidance-scale", "1,3"]


class Process:
    """Stands for `accelerate.PartialState` of a single process."""

    process_index, num_processes, is_main_process, is_local_main_process = 0, 1, True, True
    device = torch.device("cpu")

    def __init__(self, *, patience):
        self.patience = patience

    def wait_for_everyone(self):
        pass

    def destroy_process_group(self):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipe(model):
    return DiffAudioPipeline.from_pretrained(model)


def write_prompts_and_recordings(folder: Path) -> None:
    (folder / "prompts.csv").write_text(PROMPTS, encoding="utf-8")
    (folder / "real").mkdir()
    lines = ["file,label"]
    for index in range(12):
        tone = torch.sin(torch.arange(SAMPLE_RATE) * (0.2 + 0.4 * (index % 3) + 0.01 * index))[None]
        write_audio(folder / f"real/{index}.wav", 0.5 * tone, SAMPLE_RATE)
        lines.append(f"{index}.wav,band {index % 3}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def sweep(model, tmp_path, monkeypatch, capsys):
    """Sweeps over three prompts in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffaudio.distributed.join_processes", Process)
    monkeypatch.setattr("diffaudio.evaluation.rows.load_embedder", lambda *_, **__: Embedder([BandBackbone()]))
    write_prompts_and_recordings(tmp_path)

    def run_it(*arguments, grid=GRID, real=True, duration="1"):
        same = ["--prompts", "prompts.csv", "--out", "out", "--model", str(model), "--resamples", "20"]
        real = ["--reference", "real", "--labels", "labels.csv"] if real else []
        code = report_errors(lambda: run([*same, *grid, *real, "--duration", duration, *arguments]))
        return code, *capsys.readouterr()

    return run_it


def table(folder="out"):
    with Path(folder, "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def times(pattern, folder="out"):
    return {path.as_posix(): path.stat().st_mtime_ns for path in Path(folder).glob(pattern)}


def sidecars(folder="out"):
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("sounds/*/*.json"))]


def test_every_combination_is_generated_from_the_same_seeds_and_measured(sweep):
    code, printed, told = sweep()
    assert (code, printed, told) == (0, "out/index.html: 8 combinations of 3 sounds\n", "")
    made = sidecars()
    assert len(made) == 24
    assert len({(each["prompt"], each["seed"]) for each in made}) == len({each["seed"] for each in made}) == 3
    combinations = {(each["sampler"], each["steps"], each["guidance_scale"]) for each in made}
    assert combinations == {(s, n, w) for s in ("ddim", "euler") for n in (2, 3) for w in (1.0, 3.0)}

    rows = table()
    assert [row["kind"] for row in rows] == ["evaluated"] * 8 + ["real"] + ["shuffled"] * 8
    for row in rows[:8]:
        assert int(row["passes"]) == int(row["steps"]) * (1 if row["guidance_scale"] == "1.0" else 2)
        assert float(row["real_time_factor"]) == float(row["seconds_per_sound"]) > 0  # the sounds last 1 s
        assert float(row["accuracy_bands_low"]) <= float(row["accuracy_bands"]) <= float(row["accuracy_bands_high"])
        assert row["accuracy_bands_n"] == row["sounds"] == "3"
    passes = {row["combination"]: int(row["passes"]) for row in rows[:8]}
    for each in made:
        name = f"{each['sampler']}-steps{each['steps']}-scale{each['guidance_scale']:g}"
        assert each["passes"] == passes[name]
    assert rows[8]["accuracy_bands"] == "1.0"  # of the recordings, which are tones in the bands of their labels

    report = json.loads(Path("out/report.json").read_text(encoding="utf-8"))
    assert [card["name"] for card in report["backbones"]] == ["bands"]
    assert len(report["rows"]) == 17
    assert (report["reference"], report["labels"], report["resamples"]) == ("real", "labels.csv", 20)
    files = {".lock", "index.html", "recordings.json", "report.json", "results.csv", "results.parquet"}
    assert {path.name for path in Path("out").iterdir()} == files | {"measured", "pictures", "sounds"}


def test_run_again_it_makes_and_measures_nothing(sweep, monkeypatch):
    sweep(real=False)
    before = times("sounds/*/*") | times("measured/*")
    assert len(before) == 24 * 3 + 8
    monkeypatch.setattr(sweeping, "render", None)
    monkeypatch.setattr(Embedder, "embed", None)
    Path("out/index.html").unlink()
    assert sweep(real=False)[0] == 0
    assert times("sounds/*/*") | times("measured/*") == before
    assert Path("out/index.html").is_file()


def test_a_lost_sound_is_generated_again_unchanged(sweep):
    sweep(real=False, grid=GRID[:4])
    lost = Path("out/sounds/euler-steps2-scale3/rain.flac")
    sound, before = read_audio(lost)[0], times("sounds/*/*.flac")
    lost.unlink()
    assert sweep(real=False, grid=GRID[:4])[0] == 0
    assert torch.allclose(read_audio(lost)[0], sound, atol=1e-4)  # to the bit, but for the batch around it
    after = times("sounds/*/*.flac")
    assert {name for name in after if after[name] != before[name]} == {lost.as_posix()}


def test_a_grid_can_grow_and_other_metrics_are_measured_without_generating_sounds(sweep):
    sweep(real=False, grid=["--samplers", "ddim", "--steps", "2"])
    sounds, measured = times("sounds/*/*.flac"), times("measured/*")
    sweep(real=False, grid=["--samplers", "ddim", "--steps", "2,3"])
    assert times("measured/*").items() > measured.items()
    assert "kad_bands" not in table()[0]
    assert sweep(grid=["--samplers", "ddim", "--steps", "2,3"])[0] == 0
    assert "kad_bands" in table()[0]
    Path("prompts.csv").write_text(PROMPTS.replace("band 1", "band 2"), encoding="utf-8")
    before = times("measured/*")
    sweep(grid=["--samplers", "ddim", "--steps", "2,3"])
    assert not times("measured/*").items() & before.items()
    assert times("sounds/*/*.flac").items() >= sounds.items()


def test_a_folder_of_other_settings_is_not_added_to(sweep):
    sweep(real=False, grid=GRID[:2])
    before = times("sounds/*/*")
    code, _, told = sweep(real=False, grid=GRID[:2], duration="2")
    assert code == 2
    assert "was made with other settings (duration_s was 1.0, now 2.0); use the same, or another folder" in told
    assert times("sounds/*/*") == before


def test_takes_are_told_apart_and_add_to_what_is_there(sweep):
    sweep(real=False, grid=GRID[:2])
    before = times("sounds/*/*.flac")
    assert sweep("--takes", "2", real=False, grid=GRID[:2])[0] == 0
    assert before.items() <= times("sounds/*/*.flac").items()
    assert table()[0]["sounds"] == table()[0]["diversity_bands_n"] == "6" or table()[0]["diversity_bands_n"] == "3"
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert '"take": 2, "path": "sounds/ddim-steps25-scale3/dog-take2"' in page


def test_a_second_smaller_sweep_shows_everything_in_the_folder(sweep):
    sweep()
    before = times("sounds/*/*") | times("measured/*")
    first = {row["combination"]: row for row in table()}
    assert sweep(grid=["--samplers", "ddim", "--steps", "4", "--guidance-scale", "3"])[:2] == (
        0, "out/index.html: 9 combinations of 3 sounds\n"
    )  # fmt: skip
    rows = {row["combination"]: row for row in table()}
    assert first.items() <= rows.items() and len(rows) == len(first) + 2
    assert before.items() <= (times("sounds/*/*") | times("measured/*")).items()
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert '"values": [2, 3, 4]' in page and '"values": ["ddim", "euler"]' in page


def test_a_sweep_that_would_hide_sounds_of_the_folder_is_refused(sweep):
    grid = ["--samplers", "ddim", "--steps", "2"]
    sweep("--takes", "2", real=False, grid=grid)
    page = Path("out/index.html").read_bytes()
    code, _, told = sweep(real=False, grid=["--samplers", "euler", "--steps", "2"])
    assert code == 2 and "holds 3 sounds, such as 00002-the-sea-take2.flac, of prompts or takes that this" in told
    Path("prompts.csv").write_text("prompt,label,name\nrain,band 2,rain\n", encoding="utf-8")
    assert sweep("--takes", "2", real=False, grid=grid)[0] == 2
    assert Path("out/index.html").read_bytes() == page


def test_combinations_that_lack_new_takes_are_listed_with_the_reason(sweep):
    sweep(real=False, grid=["--samplers", "ddim,euler", "--steps", "2"])
    assert sweep("--takes", "2", real=False, grid=["--samplers", "ddim", "--steps", "2"])[0] == 0
    assert {row["combination"] for row in table() if row["kind"] == "evaluated"} == {"ddim-steps2-scale3"}
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert '"euler-steps2-scale3": "made by an earlier run with fewer prompts or takes' in page


def test_two_sweeps_into_one_folder_do_not_mix(sweep):
    with locked_folder(Path("out"), "diffaudio sweep"):
        code, _, told = sweep(real=False, grid=GRID[:2])
    assert code == 2 and "out: `diffaudio sweep`, process" in told and not Path("out/sounds").exists()


def test_combinations_without_effect_are_left_out_and_told(sweep):
    code, printed, _ = sweep(
        real=False,
        grid=["--samplers", "ddim", "--steps", "2", "--guidance-scale", "1,3", "--guidance-rescale", "0,0.7"],
    )
    assert code == 0
    reason = "left out ddim-steps2-scale1-rescale0.7: guidance rescale has no effect at guidance scale 1"
    assert printed.startswith(reason)
    assert [row["combination"] for row in table() if row["kind"] == "evaluated"] == [
        "ddim-steps2-scale1",
        "ddim-steps2-scale3",
        "ddim-steps2-scale3-rescale0.7",
    ]
    assert '"ddim-steps2-scale1-rescale0.7": "guidance rescale has no effect' in Path("out/index.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "ddim,nope"], "sampler 'nope' is unknown; choose from"),
        (
            ["--samplers", "ddim", "--guidance-scale", "1", "--guidance-rescale", "0.5"],
            "no combination suits; ddim-steps25-scale1-rescale0.5: guidance rescale has no effect",
        ),
        (["--samplers", "ddim,ddim"], "sampler has a value twice: ddim, ddim"),
        (["--samplers", "ddim", "--steps", "0"], "no combination suits; ddim-steps0-scale3: steps is 0"),
        (
            ["--samplers", "ddim", "--guidance-interval", "0.5"],
            "ddim-steps25-scale3-interval0.5: interval is '0.5'; give LOW:HIGH",
        ),
        (["--samplers", "ddim", "--apg", "yes"], "apgyes: apg is 'yes'; give off, on or PARALLEL:THRESHOLD:MOMENTUM"),
        (["--steps", "2"], "--sampler must be given"),
        (
            ["--samplers", "ddim", "--labels", "labels.csv"],
            "--labels names recordings of the reference; give --reference",
        ),
        (["--samplers", "ddim", "--reference", "none"], "none: there is no such file or folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(sweep, arguments, message):
    code, _, told = sweep(grid=arguments, real=False)
    assert code == 2
    assert told.startswith("diffaudio: error: ")
    assert message in told
    assert not Path("out").exists()


def test_every_axis_says_something_to_the_pipeline(pipe):
    base = GenerationSettings(duration_s=1.0)
    axes = {"sampler": ["heun"], "steps": [2], "guidance_scale": [3.0]}
    tried = {"spacing": "linear", "rescale": 0.5, "interval": "0.2:0.8", "schedule": "cosine", "apg": "0.5:2:-0.5"}
    tried |= {"cfg_zero": "0.1", "bridge": "none"}
    for axis, value in tried.items():
        plain, changed = suitable(pipe, base, axes | {axis: [AXES[axis].default, value]})[0]
        assert plain.name == "heun-steps2-scale3"
        assert changed.name.startswith("heun-steps2-scale3-") and changed.settings != plain.settings
    apg = AXES["apg"].apply(base, "0.5:2:-0.5").guidance
    assert apg.projection == Projection(parallel=0.5, threshold=2, momentum=-0.5)
    zero = AXES["cfg_zero"].apply(base, "on").guidance
    assert (zero.zero_star, zero.zero_init) == (True, 0.04)
    assert AXES["interval"].apply(base, "0.2:0.8").guidance.interval == (0.2, 0.8)
    assert AXES["eta"].apply(GenerationSettings(sampler="ddim"), "0.5").eta == 0.5
    assert AXES["weak_model"].apply(base, "some/model").weak_model == "some/model"


def test_queries_of_all_kinds_bridges_and_templates_are_swept_and_described(sweep, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    lines = ["prompt,image,label,name", "rain,,band 0,rain", "rain::1,red.png::1,band 1,mixed", ",red.png,band 2,red"]
    (tmp_path / "prompts.csv").write_text("\n".join(lines), encoding="utf-8")
    grid = ["--samplers", "ddim", "--steps", "1", "--bridge", "own,none", "--templates", "{}", "on {}"]
    code, _, told = sweep("--negative-image", "red.png", grid=grid, real=False)
    assert (code, told) == (0, "")
    described = {(each["bridge"], each["label"]): each for each in sidecars()}
    assert {key[0] for key in described} == {None, "none"} and len(described) == 6
    passed = [described[bridge, "band 0"]["text_bridge"] for bridge in (None, "none")]
    assert passed == ["retrieval", "none"] and described["none", "band 2"]["text_bridge"] is None
    assert described["none", "band 1"]["query"]["parts"][1] == {"image": str(Path("red.png")), "weight": 1.0}
    assert all(each["templates"] == ["{}", "on {}"] for each in described.values())
    assert all(each["negative_image"] == "red.png" for each in described.values())
    sounds = {
        (folder, name): Path(f"out/sounds/{folder}/{name}.flac").read_bytes()
        for folder in ("ddim-steps1-scale3", "ddim-steps1-scale3-bridgenone")
        for name in ("rain", "red")
    }
    plain, other = "ddim-steps1-scale3", "ddim-steps1-scale3-bridgenone"
    assert sounds[plain, "rain"] != sounds[other, "rain"]
    assert sounds[plain, "red"] == sounds[other, "red"]
    with Path("out/index.html").open(encoding="utf-8") as page:
        assert "red.png" in page.read()
    assert (
        "bridge prior suits in no combination: bridge 'prior' is not one of"
        in sweep(grid=["--samplers", "ddim", "--bridge", "own,prior"], real=False)[2]
    )


def test_batches_of_a_combination_are_as_even_as_can_be():
    plan = sweeping.Sweep(Path(), [], {}, {"a": list(range(25)), "b": list(range(8))}, ["a", "b"], {})  # pyright: ignore
    parts = sweeping.batches(plan, 8)
    assert [len(batch) for _, batch in parts] == [6, 6, 6, 7, 8]
    assert [item for name, batch in parts for item in batch if name == "a"] == list(range(25))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger") / "tiny"
    Tagger(labels=["band 0", "band 1", "band 2"], front_end="mel_small", back_end="mean_max").save_pretrained(folder)
    return folder


def command(model: Path, tagger: Path, out: str, grid: list[str]) -> list[str]:
    same = ["--prompts", "prompts.csv", "--model", str(model), "--backbone", str(tagger), "--duration", "1"]
    same += ["--clip", str(model / "clip"), "--resamples", "20", "--batch-size", "2", "--out", out]
    return [str(SCRIPT), *same, *grid]


def test_killed_and_run_again_it_loses_no_sound(model, tagger, tmp_path):
    write_prompts_and_recordings(tmp_path)
    arguments = [sys.executable, *command(model, tagger, "out", ["--samplers", "ddim,euler", "--steps", "2,30,60"])]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(arguments, **quiet) as process:
        while len(list(tmp_path.glob("out/sounds/*/[!.]*.flac"))) < 4 and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    out = tmp_path / "out"
    before = times("sounds/*/[!.]*.flac", out)
    assert 4 <= len(before) < 18
    assert not (out / "index.html").exists()
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    after = times("sounds/*/[!.]*.flac", out)
    assert len(after) == 18 and before.items() <= after.items()
    assert (out / "index.html").is_file()
    assert [path.name for path in out.rglob(".*")] == [".lock"]  # what the killed one had begun is cleared away


def test_two_real_processes_make_what_one_makes(sweep, model, tagger, tmp_path):
    sweep("--batch-size", "2", real=False, grid=GRID[:4])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, *command(model, tagger, "two", GRID[:4])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two/index.html: 4 combinations of 3 sounds\n"  # once: they know of each other
    paths = [path.relative_to("out") for path in Path("out").glob("sounds/*/*.flac")]
    assert len(paths) == len(times("sounds/*/*.flac", "two")) == 12
    for path in paths:
        assert torch.allclose(read_audio("out" / path)[0], read_audio("two" / path)[0], atol=1e-4)
    assert [row["combination"] for row in table("two")] == [row["combination"] for row in table("out")]
    assert all(row["accuracy_tagger_n"] == "3" for row in table("two"))
