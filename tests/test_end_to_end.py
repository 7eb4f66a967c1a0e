"""The commands and the Python of the README, word for word, on a synthetic corpus and a tiny model."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import soundfile
from tiny_model import EMBEDDING_DIM, LATENT_CHANNELS, SAMPLE_RATE, write_tiny_model

from diffaudio import bundled_model

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")

SMALL_TRAINING = "--train.steps 4 --train.save_every 2 --train.log_every 1 --validation.every 4 --samples.every 4"


def commands(beginning: str) -> list[list[str]]:
    """Commands of the README after `uv run`, from the line that begins so to the end of its block."""
    block = next(block for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if beginning in block)
    lines = block[block.index(beginning) :].splitlines()
    return [shlex.split(line.split("uv run ", 1)[1], comments=True) for line in lines]


def run(command: list[str], *, folder: Path) -> str:
    program, *arguments = command
    program = str(Path(sys.executable).with_name(program))
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_commands_of_the_readme_make_a_model_from_videos_and_a_sound_from_the_model(tmp_path):
    clone = tmp_path / "diffaudio"
    for name in ("configs", "train"):
        shutil.copytree(REPO / name, clone / name)
    write_tiny_model(clone / "checkpoints/mini")
    synthesise, prepare, encode, train, generate = commands("uv run diffaudio synthesise-corpus")

    run(synthesise, folder=clone)
    run(prepare, folder=clone)
    manifest = json.loads((clone / "corpora/demo/manifest.json").read_text())
    assert (manifest["clips"], manifest["dropped"], manifest["finished"]) == (12, 0, True)

    run(encode, folder=clone)
    rows = pa.ipc.open_stream(clone / "corpora/demo-encoded/latents-00000.arrow").read_all().to_pylist()
    assert len(rows) == 12
    assert all(len(row["latents"]) == LATENT_CHANNELS * row["num_latent_frames"] for row in rows)
    assert all(len(embedding) == EMBEDDING_DIM for row in rows for embedding in row["embeddings"])

    run([*train, *SMALL_TRAINING.split()], folder=clone)
    lines = [json.loads(line) for line in (clone / "runs/demo/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]

    run(generate, folder=clone)
    sound, sample_rate = soundfile.read(clone / "rain.wav")
    assert sample_rate == SAMPLE_RATE
    assert 0.001 < abs(sound).max() < 1
    settings = json.loads((clone / "rain.json").read_text())
    assert (settings["prompt"], settings["seed"], settings["steps"]) == ("rain on a roof", 7, 25)


def test_the_first_command_of_the_readme_makes_a_sound_with_the_bundled_model_from_any_folder(tmp_path):
    first = commands("pip install uv && uv run diffaudio generate")[0]
    run(first, folder=tmp_path)
    sound, sample_rate = soundfile.read(tmp_path / "rooster.wav")
    assert len(sound) > sample_rate
    assert 0.01 < abs(sound).max() < 1
    assert Path(json.loads((tmp_path / "rooster.json").read_text())["model"]).name == bundled_model().name


def test_the_python_of_the_readme_writes_one_sound(tmp_path, monkeypatch):
    source = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert "from_pretrained(bundled_model())" in source
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(source.replace("bundled_model())", f"{str(write_tiny_model(tmp_path / 'tiny'))!r})"), names)
    assert names["audio"].shape == (1, 1, 5 * SAMPLE_RATE)
    assert soundfile.info(tmp_path / "rooster.wav").frames == 5 * SAMPLE_RATE
