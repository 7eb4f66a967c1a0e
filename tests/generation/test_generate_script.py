"""sample/generate.py: a prompt list shared over processes."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image
from scripts import REPO
from tiny_model import write_tiny_model

from diffaudio.errors import report_errors

SCRIPT = REPO / "sample/generate.py"
PROMPTS = "rain\na dog barking|dog\n\nrain\na bell|bell.flac\nthe sea\n"
OLD_KEYS = {"prompt", "seed", "steps", "guidance_scale", "sampler", "duration_s", "negative_prompt", "model"}
DAMAGED = [b"[]", b"{", b"5", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "rain"}']
NAMES = ["00000-rain.wav", "dog.wav", "00002-rain.wav", "bell.flac", "00004-the-sea.wav"]


class Process:
    """Stands for `accelerate.PartialState` in one of several processes."""

    def __init__(self, index=0, count=1):
        self.process_index, self.num_processes = index, count
        self.is_main_process = self.is_local_main_process = index == 0
        self.device = torch.device("cpu")

    def wait_for_everyone(self):
        pass

    def destroy_process_group(self):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sample_generate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def generate(script, model, tmp_path, monkeypatch, capsys):
    """Run the script in this process; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text(PROMPTS, encoding="utf-8")

    def run(*arguments, process=None, out="out"):
        monkeypatch.setattr(script, "join_processes", lambda: process or Process())
        settings = ["--prompts", "prompts.txt", "--out", out, "--model", str(model), "--steps", "1", "--duration", "1"]
        monkeypatch.setattr(sys, "argv", ["generate.py", *settings, *arguments])
        code = report_errors(script.main)
        return code, *capsys.readouterr()

    return run


def sound(path):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def times(folder="out"):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}


def test_every_line_becomes_a_sound_with_a_sidecar(generate):
    assert generate() == (0, "out: 5 sounds\n", "")
    expected = {*NAMES, *(str(Path(name).with_suffix(".json")) for name in NAMES)}
    assert set(times()) == expected
    settings = [json.loads(Path("out", name).with_suffix(".json").read_text()) for name in NAMES]
    assert [s["prompt"] for s in settings] == ["rain", "a dog barking", "rain", "a bell", "the sea"]
    assert len({s["seed"] for s in settings}) == 5
    assert not torch.allclose(sound("out/00000-rain.wav"), sound("out/00002-rain.wav"), atol=1e-3)


def test_rows_of_images_and_mixtures_become_sounds_that_are_not_made_again(generate):
    Image.new("RGB", (40, 30), "red").save("red.png")
    Path("list.csv").write_text("prompt,image,name\nrain,,rain\n,red.png,red\nrain::0.3,red.png::0.7,both\n")
    assert generate("--prompts", "list.csv", "--negative-image", "red.png") == (0, "out: 3 sounds\n", "")
    before = times()
    assert generate("--prompts", "list.csv", "--negative-image", "red.png")[0] == 0
    assert times() == before
    parts = json.loads(Path("out/both.json").read_text())["query"]["parts"]
    assert parts == [{"text": "rain", "weight": 0.3}, {"image": "red.png", "weight": 0.7}]
    Path("list.csv").write_text("prompt,image,name\nrain,,rain\nthunder,,red\nrain::0.3,red.png::0.7,both\n")
    code, _, told = generate("--prompts", "list.csv", "--negative-image", "red.png")
    assert code == 2
    assert "out/red.wav: was made with other settings (query was red, now thunder)" in told
    Path("red.png").write_bytes(b"no picture")
    code, _, told = generate("--prompts", "list.csv", out="new")
    assert (code, Path("new").exists()) == (2, False)
    assert "red.png: cannot be read as a picture: it is no picture" in told


def test_a_sound_is_the_same_whatever_the_processes_and_the_batch_size(generate):
    generate(out="one")
    for index in range(3):
        code, printed, _ = generate("--batch-size", "2", out="three", process=Process(index, 3))
        assert (code, printed) == (0, "three: 5 sounds\n" if index == 0 else "")
    assert set(times("one")) == set(times("three"))
    for name in NAMES:
        assert torch.allclose(sound(f"one/{name}"), sound(f"three/{name}"), atol=1e-4), name


def test_another_seed_gives_other_sounds_even_where_places_and_seeds_add_up_alike(generate):
    seeds = set()
    for seed in ("0", "1", "2"):
        generate("--seed", seed, out=seed)
        seeds |= {json.loads(path.read_text())["seed"] for path in Path(seed).glob("*.json")}
    assert len(seeds) == 15


def test_run_again_it_makes_only_what_is_missing(generate):
    generate()
    before = times()
    Path("out/dog.wav").unlink()
    Path("out/bell.flac").unlink()
    assert generate()[0] == 0
    after = times()
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == {"dog.wav", "dog.json", "bell.flac", "bell.json"}


def test_with_nothing_missing_the_model_is_not_even_loaded(generate, script, monkeypatch):
    generate()
    monkeypatch.setattr(script, "load_pipeline", None)
    assert generate()[0] == 0


def test_sounds_made_before_there_were_options_of_guidance_and_loudness_are_recognised(generate, script, monkeypatch):
    generate("--loudness", "none")
    for path in Path("out").glob("*.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in told.items() if key in OLD_KEYS}))
    monkeypatch.setattr(script, "load_pipeline", None)
    assert generate("--loudness", "none")[0] == 0
    assert (
        "(guidance was None, now {'rescale': 0.7}); use the same"
        in generate("--loudness", "none", "--guidance-rescale", "0.7")[2]
    )


def test_a_folder_with_sounds_of_other_settings_is_not_added_to(generate):
    generate()
    before = times()
    Path("out/dog.wav").unlink()
    code, _, told = generate("--sampler", "euler")
    assert code == 2
    assert "00000-rain.wav: was made with other settings (sampler was dpm++2m_sde, now euler); use the same, or" in told
    assert "dog.wav" not in times()
    Path("out/00000-rain.json").unlink()
    assert "00000-rain.wav: exists without its 00000-rain.json; remove it, or write" in generate()[2]
    assert set(times()) < set(before)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_sidecar_that_is_none_is_refused_in_one_line(generate, content):
    Path("out").mkdir()
    Path("out/dog.wav").write_bytes(b"a sound")
    Path("out/dog.json").write_bytes(content)
    code, _, message = generate()
    assert code == 2
    assert re.search(r"dog\.json: is (not valid JSON|not the companion of a generated sound)", message)
    assert message.count("\n") == 1


@pytest.mark.parametrize(("name", "options"), [("dog.json", []), ("dog.png", ["--plot"])])
def test_files_of_others_are_not_replaced_by_companions(generate, name, options):
    Path("out").mkdir()
    Path("out", name).write_text('{"mine": true}')
    code, _, message = generate(*options)
    assert code == 2
    assert f"{name}: would be overwritten, and is not of a generated sound; choose another folder" in message
    assert [path.name for path in Path("out").iterdir()] == [name]


def test_a_companion_that_a_killed_run_left_is_replaced(generate):
    generate()
    Path("out/dog.wav").unlink()
    assert generate()[0] == 0
    assert Path("out/dog.wav").exists()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts.txt: there is no such prompt list"),
        ("\n \n", "prompts.txt: the prompt list is empty"),
        ("rain\n|dog\n", "prompts.txt, line 2: a prompt is empty; say in a few words what to hear"),
        ("rain|a\n\ndog|a\n", "prompts.txt: lines 1 and 3 are both named 'a'"),
        ("rain|a.wav\ndog|a.flac\n", "lines 1 and 2 are both named 'a'"),
        ("rain|../a\n", "prompts.txt, line 1: '../a' cannot name a file; leave out slashes and leading dots"),
        ("rain|.a\n", "'.a' cannot name a file"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(generate, prompts, message):
    Path("prompts.txt").unlink() if prompts is None else Path("prompts.txt").write_text(prompts)
    code, _, told = generate()
    assert code == 2
    assert told.startswith("diffaudio: error: ")
    assert message in told
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "dpm4"], "sampler 'dpm4' is unknown; choose from "),
        (["--steps", "0"], "steps is 0; it must be 1 to 1000"),
        (["--batch-size", "0"], "--batch-size: expected a whole number above 0, got '0'"),
        (["--model", "nowhere"], "nowhere: there is no such model folder"),
        (["--dtype", "float16"], "dtype 'float16' needs a GPU"),
    ],
)
def test_bad_settings_are_refused_in_one_line(generate, arguments, message):
    code, _, told = generate(*arguments)
    assert code == 2
    assert told.startswith("diffaudio: error: ")
    assert message in told
    assert not [path for path in Path().rglob("*") if path.suffix in (".wav", ".json")]


def test_several_processes_do_not_share_one_named_gpu(generate):
    told = generate("--device", "cuda:0", process=Process(0, 2))[2]
    assert "device 'cuda:0' is one for 2 processes; leave --device at auto" in told


def test_two_real_processes_share_a_list(model, tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = ["--prompts", "prompts.txt", "--out", "out", "--model", str(model), "--steps", "1", "--duration", "1"]
    done = subprocess.run(
        [*launch, str(SCRIPT), *settings], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out: 5 sounds\n"  # once: the processes know of each other
    assert {name for name in times(tmp_path / "out") if not name.endswith(".json")} == set(NAMES)


@pytest.mark.gpu
def test_on_cuda_half_precision_is_the_default(generate, script):
    process = Process()
    process.device = torch.device("cuda")
    assert generate(process=process)[0] == 0
    assert json.loads(Path("out/dog.json").read_text())["dtype"] == "float16"
