"""Every command of train/VGGSOUND.md, in order, on synthetic videos and with networks of a few thousand weights.

Commands run in this process, one process each: what several do together is tested where it is implemented. What is
changed of a command stands in SMALLER; everything else is taken from the page.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from scripts import REPO, load_script
from tiny_model import write_tiny_clip

from diffaudio.cli.main import main
from diffaudio.config import parse

PAGE = (REPO / "train/VGGSOUND.md").read_text(encoding="utf-8")

UNET = (
    "--unet.channels [16,32] --unet.blocks_per_level 1 --unet.middle_blocks 1 --unet.attention_levels [0] "
    "--unet.attention_head_dim 8 --unet.condition_dim 32"
)
TRAINING = (
    f"{UNET} --clip CLIP --train.steps 4 --train.batch_size 4 --train.duration_s 1 --train.save_every 2 "
    "--train.log_every 2 --train.warmup_steps 1 --train.precision no --train.threads 1 --averages.update_every 1"
)
SAMPLES = (
    "--samples.prompts [bell] --samples.every 4 --samples.num_inference_steps 2 --samples.duration_s 0.5 "
    "--samples.evaluate false"
)
SMALLER = {  # the beginning of a command after `uv run` and its launcher -> what is added to it
    "diffaudio doctor": "--no-generate",
    "diffaudio prepare": "--workers 1",
    "diffaudio inspect": "",
    "diffaudio validate": "",
    "train/autoencoder.py": "--train.steps 2 --train.batch_size 2 --train.duration_s 0.4 --train.warmup_steps 1 "
    "--train.threads 1 --train.precision no --spectral.num_mels 16 --spectral.latent_channels 12 --spectral.n_fft 1024 "
    "--spectral.detail.channels 8 --spectral.detail.blocks 1 --spectral.vocoder.channels 8 --spectral.vocoder.blocks 1 "
    "--spectral.inversion.iterations 1 --held_out 0.3 --validation.clips 1 --validation.sounds 0",
    "diffaudio evaluate reconstruction": "--resamples 20",
    "diffaudio encode": "",
    "train/diffusion.py --config configs/vggsound/diffusion.yaml": f"{TRAINING} {SAMPLES} --held_out 0.4",
    "train/diffusion.py --config configs/vggsound/lora.yaml": f"{TRAINING} --lora.rank 2 --lora.preserve_sounds 2",
    "diffaudio average": "",
    "diffaudio sweep": "--duration 0.5",
    "diffaudio generate": "--steps 2 --duration 0.5",
    "diffaudio evaluate runs/sweep/sounds": "--resamples 20",
    "diffaudio merge": "",
}
NOT_OURS = {"tensorboard"}  # what it shows is written by the training before


def commands() -> list[list[str]]:
    """Of all blocks, without `uv run`, launcher and `python`."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    found = []
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["uv", "run"], line
        words = words[2:]
        if words[0] == "torchrun":
            words = words[3:] if words[3] != "-m" else words[4:]
        found.append(words[1:] if words[0] == "python" else words)
    return found


def added_to(command: list[str]) -> list[str]:
    beginnings = [each for each in SMALLER if shlex.join(command).startswith(each)]
    assert beginnings, command
    return shlex.split(SMALLER[max(beginnings, key=len)])


def run(command: list[str]) -> None:
    arguments = [argument.replace("ViT-B-32/openai", "CLIP") for argument in command]
    if command[0] == "diffaudio":
        assert main([*arguments[1:], *added_to(command)]) == 0, command
    else:
        script = load_script(command[0])
        script.main(parse(script.Config, [*arguments[1:], *added_to(command)]))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with what the reader of the page has: videos and their list, recordings, prompts and a CLIP."""
    threads = torch.get_num_threads()
    for name in ("configs", "train"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    assert main(["synthesise-corpus", "-o", "demo", "--clips", "6", "--duration", "1.5"]) == 0
    videos = sorted(Path("demo/videos").rglob("*.mp4"))
    rows = [f"{path},0,1.5" for path in videos]
    Path("vggsound.csv").write_text("\n".join(["path,start,end", *rows]) + "\n", encoding="utf-8")
    for name, count in (("recordings", 14), ("theremin", 2)):
        Path(name).mkdir()
        for index in range(count):
            shutil.copy(videos[index % len(videos)], f"{name}/{index}.mp4")
    Path("prompts.csv").write_text("prompt\na bell\n", encoding="utf-8")
    write_tiny_clip(tmp_path / "CLIP")
    yield tmp_path
    torch.set_num_threads(threads)


def test_every_command_of_the_page_runs(place, capsys):
    outputs = {}
    for command in commands():
        if command[0] not in NOT_OURS:
            run(command)
            outputs[shlex.join(command)] = capsys.readouterr()
    assert (place / "runs/vggsound-autoencoder/model/config.json").is_file()
    assert (
        json.loads((place / "corpora/vggsound-encoded/manifest.json").read_text())["autoencoder"]["audio_channels"] == 2
    )
    assert json.loads((place / "runs/four/overfit/report.json").read_text())["loss_after"] > 0
    (dry,) = (output for command, output in outputs.items() if "--dry-run" in command)
    assert "rate: " in dry.out
    assert any((place / "runs/vggsound").glob("events*"))  # for TensorBoard
    samples = {path.name for path in (place / "runs/vggsound/samples").iterdir()}
    assert samples == {"step_00000004", "step_00000004_guidance_2", "step_00000004_guidance_4"}
    for name in (
        "models/vggsound/model_index.json",
        "models/vggsound-theremin/model_index.json",
        "dog.wav",
        "theremin.wav",
    ):
        assert (place / name).is_file()
    assert json.loads((place / "theremin.json").read_text())["lora"] == ["runs/theremin/lora::0.8"]
    assert {path.name for path in (place / "runs/vggsound").iterdir()} >= {"model", "best", "averages", "state"}


def test_the_costs_follow_from_the_rates_that_are_named():
    """Rows of the table: clips a second, hours of 100,000 steps of 1,024, and dollars at 2.50 a GPU hour."""
    rows = re.findall(r"\| (\d) × \S+ .*?\| [^|]+\| ([\d,]+) \| ([\d.]+) h \| (\d+) \$", PAGE)
    assert len(rows) == 3
    for gpus, rate, hours, dollars in rows:
        expected_h = 100_000 * 1024 / float(rate.replace(",", "")) / 3600
        assert float(hours) == pytest.approx(expected_h, rel=0.05)
        assert float(dollars) == pytest.approx(2.5 * int(gpus) * expected_h, rel=0.05)
