"""The `diffaudio` command: files, sidecars, and one clear line for whatever is wrong."""

import errno
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from tiny_model import EMBEDDING_DIM, LATENT_CHANNELS, SAMPLE_RATE, write_tiny_model

from diffaudio import DiffAudioPipeline, __version__
from diffaudio.cli.main import COMMANDS, main
from diffaudio.cli.options import GenerationOptions
from diffaudio.corpus.encode import run as encoding
from diffaudio.corpus.prepare import run as preparing
from diffaudio.corpus.prepare.worker import WorkerLimits
from diffaudio.file_names import slug
from diffaudio.generation import batch as rendering

QUICK = ["--duration", "1", "--steps", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def generate(model, tmp_path, monkeypatch, capsys):
    """Run `diffaudio generate` in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, settings=QUICK):
        code = main(["generate", *settings, "--model", str(model), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_sound_gets_a_sidecar_with_all_its_settings(generate, model):
    settings = ["--duration", "1.5", "--steps", "2", "--guidance-scale", "2", "--sampler", "euler"]
    arguments = ["a dog barking", "-o", "dog.wav", "--seed", "7", "--negative-prompt", "rain"]
    assert generate(*arguments, settings=settings) == (0, "dog.wav (1.5 s, seed 7)\n", "")
    assert names() == ["dog.json", "dog.wav"]
    sound = soundfile.info("dog.wav")
    assert (sound.samplerate, sound.frames, sound.channels) == (SAMPLE_RATE, 1.5 * SAMPLE_RATE, 1)
    described = json.loads(Path("dog.json").read_text())
    timing = described.pop("timing")
    assert (timing["batch_size"], timing["batch_seconds"] > 0) == (1, True)
    assert described == {
        "prompt": "a dog barking",
        "seed": 7,
        "steps": 2,
        "guidance_scale": 2.0,
        "sampler": "euler",
        "duration_s": 1.5,
        "negative_prompt": "rain",
        "spacing": None,
        "eta": None,
        "guidance": None,
        "weak_model": None,
        "loudness": -23.0,
        "passes": 4,
        "out_of_range": 0.0,
        "sample_rate": SAMPLE_RATE,
        "model": str(model),
        "device": "cpu",
        "dtype": "float32",
        "version": __version__,
    }


@pytest.mark.parametrize(
    ("options", "described", "passes"),
    [
        ("--guidance-rescale 0.7", {"rescale": 0.7}, 8),
        ("--guidance-interval 0.3:0.75", {"interval": [0.3, 0.75]}, 6),
        ("--guidance-schedule cosine", {"schedule": "cosine"}, 7),
        ("--apg", {"projection": {"parallel": 0.0, "threshold": None, "momentum": 0.0}}, 8),
        (
            "--apg-parallel 0.5 --apg-threshold 0.2 --apg-momentum -0.5",
            {"projection": {"parallel": 0.5, "threshold": 0.2, "momentum": -0.5}},
            8,
        ),
        ("--cfg-zero", {"zero_star": True, "zero_init": 0.04}, 6),
        ("--cfg-zero --zero-init 0", {"zero_star": True}, 8),
        ("--zero-init 0.3", {"zero_init": 0.3}, 4),
    ],
)
def test_each_form_of_guidance_is_told_in_the_sidecar_and_takes_its_passes(generate, options, described, passes):
    settings = ["--duration", "1", "--steps", "4", "--sampler", "euler"]
    assert generate("rain", "-o", "rain.wav", *options.split(), settings=settings)[0] == 0
    told = json.loads(Path("rain.json").read_text())
    assert (told["guidance"], told["passes"]) == (described, passes)


def test_spacing_eta_and_a_weaker_model_are_told_in_the_sidecar_and_heard(generate, model):
    pipe = DiffAudioPipeline.from_pretrained(model)
    torch.nn.init.zeros_(pipe.unet.embedding_mlp.linear_1.weight)
    pipe.save_pretrained("weak")
    sounds = set()
    for name, options in (
        ("plain", []),
        ("spacing", ["--spacing", "karras"]),
        ("eta", ["--eta", "0.5"]),
        ("weak_model", ["--weak-model", "weak"]),
    ):
        settings = ["--duration", "1", "--steps", "3", "--seed", "1", "--sampler", "ddim"]
        assert generate("rain", "-o", f"{name}.wav", *options, settings=settings)[0] == 0
        if options:
            assert str(json.loads(Path(f"{name}.json").read_text())[name]) == options[1]
        sounds.add(Path(f"{name}.wav").read_bytes())
    assert len(sounds) == 4


def test_the_command_makes_the_sound_that_python_makes_with_the_same_seed(generate, model):
    generate("rain", "-o", "rain.wav", "--seed", "7")
    pipe = DiffAudioPipeline.from_pretrained(model)
    generator = torch.Generator().manual_seed(7)
    audio = pipe("rain", num_inference_steps=1, audio_length_in_s=1, generator=generator).audios[0, 0]
    written = torch.from_numpy(soundfile.read("rain.wav", dtype="float32")[0])
    assert torch.allclose(written, audio, atol=1e-4)


def test_the_command_and_python_have_the_same_defaults():
    settings = GenerationOptions().settings
    called = inspect.signature(DiffAudioPipeline.__call__).parameters
    for option, argument in {
        "steps": "num_inference_steps",
        "guidance_scale": "guidance_scale",
        "sampler": "sampler",
        "duration_s": "audio_length_in_s",
    }.items():
        assert getattr(settings, option) == called[argument].default


def test_an_unset_seed_is_drawn_and_printed_and_makes_the_sound_again(generate):
    seeds = [re.search(r"seed (\d+)", generate("rain", "-o", f"{name}.wav")[1]).group(1) for name in "ab"]
    assert seeds[0] != seeds[1]
    generate("rain", "-o", "again.wav", "--seed", seeds[0])
    assert Path("again.wav").read_bytes() == Path("a.wav").read_bytes()


def test_takes_have_seeds_that_follow_each_other(generate):
    _, printed, _ = generate("rain", "-o", "rain.wav", "--seed", "7", "--takes", "2")
    assert printed == "rain.wav (1 s, seed 7)\nrain-2.wav (1 s, seed 8)\n"
    generate("rain", "-o", "single.wav", "--seed", "8")
    second, single = (torch.from_numpy(soundfile.read(f)[0]) for f in ("rain-2.wav", "single.wav"))
    assert torch.allclose(second, single, atol=1e-4)


def test_several_prompts_make_files_named_after_them_in_a_folder(generate):
    Path("sounds").mkdir()
    code, _, _ = generate("A dog, barking!", "rain", "rain", "rain 1", "-o", "sounds")
    assert code == 0
    wavs = [name for name in names("sounds") if name.endswith(".wav")]
    assert wavs == ["a-dog-barking.wav", "rain-1.wav", "rain-2.wav", "rain.wav"]
    assert len(names("sounds")) == 8


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("Ein Bär im Wald", "ein-bär-im-wald"), ("?!", "sound"), ("a/../b", "a-b"), ("x" * 80, "x" * 50)],
)
def test_a_prompt_becomes_a_file_name(prompt, name):
    assert slug(prompt) == name


def test_flac_and_a_spectrogram_are_written_where_asked_for(generate):
    assert generate("rain", "-o", "rain.flac", "--plot")[0] == 0
    assert names() == ["rain.flac", "rain.json", "rain.png"]
    assert soundfile.info("rain.flac").format == "FLAC"
    assert Path("rain.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rain", "--sampler", "dpm4"], "sampler 'dpm4' is unknown; choose from "),
        (["rain", "--steps", "0"], "steps is 0; it must be 1 to 1000"),
        (["rain", "--steps", "2.5"], "--steps: expected a whole number, got '2.5'"),
        (["rain", "--duration", "0"], "duration_s is 0.0; it must be above 0 and at most"),
        (["rain", "--duration", "6000"], "duration_s is 6000.0; it must be above 0 and at most"),
        (["rain", "--duration", "nan"], "--duration: expected a number, got 'nan'"),
        (["rain", "--guidance-scale", "-1"], "guidance_scale is -1.0; it must be at least 0"),
        (["rain", "--seed", "-1"], "--seed: expected a whole number from 0 to 2^63 - 1 or none, got"),
        (["rain", "--takes", "0"], "--takes: expected a whole number above 0, got '0'"),
        (["rain", "-o", "dog.aac"], "dog.aac: cannot write .aac; choose .wav, .flac, .ogg, .opus or .mp3"),
        (["rain", "-o", "file.txt/dog.wav"], "file.txt: is no folder; choose another place"),
        (["rain", " "], "a prompt is empty; say in a few words what to hear"),
        (["rain", "--model", "nowhere"], "nowhere: there is no such model folder"),
        (["rain", "--model", "empty"], "empty: not a model folder, model_index.json is missing"),
        (["rain", "--device", "cuda:99"], "device 'cuda:99' is not available here; choose from auto, "),
        (["rain", "--device", "tpu"], "device 'tpu' is not available here; choose from auto, "),
        (["rain", "--dtype", "float16", "--device", "cpu"], "dtype 'float16' needs a GPU; on a CPU choose float32"),
        (["rain", "--dtype", "int8"], "dtype 'int8' is unknown; choose from auto, float32, float16, bfloat16"),
        (
            ["rain", "--negative-prompt", "dog", "--guidance-scale", "1"],
            "a negative prompt has no effect at guidance scale 1; raise the scale above 1",
        ),
        (["rain", "--guidance-rescale", "2"], "guidance rescale is 2.0; 0 (off) to 1 is allowed"),
        (["rain", "--guidance-interval", "0.6:0.3"], "guidance interval is 0.6 to 0.3; give two noise levels"),
        (["rain", "--guidance-schedule", "square"], "guidance schedule 'square' is unknown; choose from constant"),
        (["rain", "--apg-momentum", "1"], "APG: the momentum is 1.0; it must lie between -1 and 1"),
        (["rain", "--cfg-zero", "--apg"], "CFG-Zero* and APG both reshape the same difference; choose one of them"),
        (["rain", "--apg", "--guidance-scale", "1"], "APG has no effect at guidance scale 1; raise the scale above 1"),
        (["rain", "--weak-model", "nowhere"], "nowhere: there is no such model folder"),
        (["rain", "--spacing", "square"], "'square'"),
        (["rain", "--sampler", "heun", "--eta", "1"], "eta has no effect on sampler 'heun'"),
        (["rain", "--stesp", "3"], "unknown option '--stesp'; did you mean '--steps'?"),
        ([], "prompt must be given"),
    ],
)
def test_whatever_is_wrong_ends_in_one_line_and_leaves_nothing(generate, arguments, message):
    Path("empty").mkdir()
    Path("file.txt").touch()
    code, printed, told = generate(*arguments)
    assert (code, printed) == (2, "")
    assert told.startswith("diffaudio: error: ")
    assert message in told
    assert told.count("\n") == 1
    assert names() == ["empty", "file.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_where_there_is_none(generate):
    code, _, told = generate("rain", "--device", "cuda")
    assert code == 2
    assert "device 'cuda' is not available here; choose from auto, " in told


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/config.json", None, "broken/unet: the model is not complete, config.json is missing"),
        ("model_index.json", {"_class_name": "DiffAudioPipeline", "_diffaudio_version": 99}, "format version 99; this"),
    ],
)
def test_a_model_with_a_file_missing_or_of_another_version_is_refused(generate, model, file, content, message):
    shutil.copytree(model, "broken")
    Path("broken", file).unlink()
    if content is not None:
        Path("broken", file).write_text(json.dumps(content))
    code, _, told = generate("rain", "--model", "broken", "-o", "rain.wav")
    assert code == 2
    assert re.fullmatch(r"diffaudio: error: broken.*\n", told)
    assert message in told
    assert names() == ["broken"]


def test_generating_twice_keeps_the_first_sound(generate):
    for _ in range(2):
        generate("rain", "--seed", "1")
    assert names() == ["rain-2.json", "rain-2.wav", "rain.json", "rain.wav"]
    assert Path("rain.wav").read_bytes() == Path("rain-2.wav").read_bytes()


def test_files_of_others_are_replaced_where_asked_for_only(generate):
    Path("data.json").write_text("mine")
    code, _, message = generate("rain", "--plot", "-o", "data.wav")
    assert (code, names(), Path("data.json").read_text()) == (2, ["data.json"], "mine")
    assert "data.json: exists; add --overwrite to replace it" in message
    assert generate("rain", "--plot", "-o", "data.wav", "--overwrite")[0] == 0
    assert names() == ["data.json", "data.png", "data.wav"]


def test_an_output_folder_is_made(generate):
    assert generate("rain", "a dog", "-o", "new/folder")[0] == 0
    assert names("new/folder") == ["a-dog.json", "a-dog.wav", "rain.json", "rain.wav"]


def test_bytes_that_are_no_text_are_refused_in_one_line(generate):
    code, _, message = generate("rain\udcff", "--plot")
    assert (code, names()) == (2, [])
    assert "a prompt is not valid UTF-8" in message


def test_levels_are_kept_where_no_loudness_is_wanted(generate):
    for name, options in (("even", []), ("as-made", ["--loudness", "none"])):
        generate("rain", "-o", f"{name}.wav", "--seed", "1", *options)
    even, raw = (torch.from_numpy(soundfile.read(f"{name}.wav")[0]) for name in ("even", "as-made"))
    assert json.loads(Path("as-made.json").read_text())["loudness"] is None
    assert not torch.allclose(even, raw, atol=1e-3)
    assert torch.corrcoef(torch.stack([even, raw]))[0, 1] > 0.999


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_made(generate, monkeypatch):
    def read_only(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)
    message = "diffaudio: error: .: this folder cannot be written to (Read-only file system)\n"
    assert generate("rain", "-o", "rain.wav") == (2, "", message)


def test_a_full_disk_leaves_no_file_of_the_sound_behind(generate, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rendering, "write_audio", full)
    code, _, told = generate("rain", "-o", "rain.wav", "--plot")
    assert (code, told) == (2, "diffaudio: error: No space left on device\n")
    assert names() == []


def test_too_little_gpu_memory_is_no_traceback(generate, monkeypatch):
    def exhaust(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rendering, "render", exhaust)
    code, printed, told = generate("rain")
    assert (code, printed, told.count("\n")) == (2, "", 1)
    assert told.startswith("diffaudio: error: not enough memory; make batches smaller (--batch-size")


def test_being_stopped_is_no_traceback(generate, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(rendering, "render", stop)
    assert generate("rain") == (130, "", "diffaudio: stopped\n")


def test_a_terminal_shows_the_steps_of_all_batches(generate, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    told = generate("rain", "--takes", "3", "--batch-size", "2", "--steps", "4")[2]
    assert "8/8" in told


def test_warnings_are_told_in_a_line(generate):
    text = "a dog barking on the roof " * 10
    code, _, told = generate(text, "-o", "dog.wav")
    assert code == 0
    assert re.fullmatch(r"diffaudio: warning: CLIP reads 24 tokens of a text; the rest is ignored: .*\n", told)
    assert names() == ["dog.json", "dog.wav"]


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffaudio {__version__}\n"


def test_an_unknown_command_is_refused_with_a_suggestion(capsys):
    assert main(["genrate", "rain"]) == 2
    assert capsys.readouterr().err == "diffaudio: error: unknown command 'genrate'; did you mean 'generate'?\n"
    assert main(["--verbose"]) == 2
    assert "unknown option '--verbose'; choose from " in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    assert all(name in alone for name in COMMANDS)


def test_prepare_passes_its_settings_on_and_tells_what_was_left_out(monkeypatch, capsys):
    def prepare(sources, out, settings, *, num_workers, limits, state, progress):
        assert (sources, out, num_workers, state) == (["a", "s3://b/c"], Path("out"), 3, None)
        assert (settings.clip_s, settings.hop_s, settings.channels, settings.min_clip_s) == (4.0, 2.5, 2, 0.8)
        assert (settings.max_duplicate_distance, settings.keep_dropped) == (None, True)
        assert (limits.timeout_s, limits.max_memory_mb) == (9.0, WorkerLimits().max_memory_mb)
        return preparing.PrepareReport(5, 7200.0, 12, 90.0, 1, 3, {"too_short": 2, "no_sound": 1})

    monkeypatch.setattr(preparing, "prepare", prepare)
    clips = ["--clip-s", "4", "--hop-s", "2.5", "--channels", "2", "--max-duplicate-distance", "none", "--keep-dropped"]
    assert main(["prepare", "a", "s3://b/c", "-o", "out", "--workers", "3", "--timeout-s", "9", *clips]) == 0
    assert capsys.readouterr().out == (
        "out: 12 clips, 1.5 minutes, from 5 files, 2.0 hours\n"
        "left out 3, 1 of them kept (too_short 2, no_sound 1); see out/dropped.csv\n"
    )


def test_prepare_refuses_in_one_line(tmp_path, capsys):
    assert main(["prepare", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("nowhere: there is no such file or folder\n")
    assert main(["prepare", "x", "-o", "y", "--channels", "3"]) == 2
    assert capsys.readouterr().err == "diffaudio: error: channels is 3; choose 1 (mono) or 2 (stereo)\n"
    assert main(["prepare", "x", "-o", "y", "--workers", "0"]) == 2
    assert "--workers: expected a whole number above 0 or none, got '0'" in capsys.readouterr().err
    assert main(["prepare", "x", "-o", "y", "--max-duplicate-distance", "off"]) == 2
    assert "--max-duplicate-distance: expected a number or none, got 'off'" in capsys.readouterr().err


def test_encode_takes_the_models_parts_or_others(model, monkeypatch, capsys, tmp_path):
    taken = []
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()

    def encode(corpus, out, *, autoencoder, clip, settings, device, batch_size, **how):
        taken.append((autoencoder.latent_channels, clip.embedding_dim, batch_size, str(device), settings.copies))
        manifest = {"clips": 2 * (1 + settings.copies), "seconds": 30.0, "settings": {"copies": settings.copies}}
        return encoding.EncodeReport(manifest, clips_s=30.0, took_s=6.0)

    monkeypatch.setattr(encoding, "encode", encode)
    parts = ["--autoencoder", str(model / "autoencoder"), "--clip", str(model / "clip")]
    cost = "1 hour of clips takes 12.0 minutes on cpu\n"
    for choice, printed in (
        (["--model", str(model)], f"out: 2 clips, 0.5 minutes\n{cost}"),
        ([*parts, "--batch-size", "4", "--copies", "3"], f"out: 2 clips and 3 copies of each, 0.5 minutes\n{cost}"),
    ):
        assert main(["encode", "corpus", "-o", "out", "--device", "cpu", *choice]) == 0
        assert capsys.readouterr().out == printed
    assert taken == [(LATENT_CHANNELS, EMBEDDING_DIM, 16, "cpu", 0), (LATENT_CHANNELS, EMBEDDING_DIM, 4, "cpu", 3)]


def test_a_yaml_file_says_what_the_command_line_may_override(generate):
    Path("quick.yaml").write_text(
        "takes: 2\nseed: 7\nplot: true\noutput: a.wav\n"
        "generation: {steps: 3, sampler: euler, guidance: {interval: [0.25, 5e-1], rescale: 0.5}}\n"
    )
    assert generate("rain", "--config", "quick.yaml", "--seed", "5", settings=["--duration", "1"])[0] == 0
    described = json.loads(Path("a-2.json").read_text())
    assert (described["seed"], described["steps"], described["sampler"]) == (6, 3, "euler")
    assert described["guidance"] == {"interval": [0.25, 0.5], "rescale": 0.5}
    assert Path("a.png").exists()
    Path("quick.yaml").write_text("generation: {stesp: 3}\n")
    assert (
        "quick.yaml: generation: unknown key 'stesp'; did you mean 'steps'?"
        in generate("rain", "--config", "quick.yaml")[2]
    )


def test_what_can_be_told_at_once_is_told_before_torch_is_imported():
    """Each in a process of its own, which is then asked what it has loaded."""
    cases = [
        ["generate", " "],
        ["generate", "rain", "--sampler", "dpm4"],
        ["generate", "rain", "--steps", "0"],
        ["generate", "rain", "--model", "nowhere"],
        ["encode", "nowhere", "-o", "out"],
        ["inspect", "nowhere"],
        ["validate", "nowhere"],
        ["evaluate", "nowhere"],
        ["reconstruct", "nowhere.wav", "-o", "out.wav"],
        ["latents", "nowhere"],
        ["sweep", "--prompts", "nowhere.txt", "--samplers", "heun", "--out", "out"],
        ["prepare", "nowhere", "-o", "out", "--clip-s", "x"],
        ["generate", "--help"],
        ["prepare", "--help"],
    ]
    program = (
        "import sys, time; from diffaudio.cli.main import main\n"
        "try: status = main({!r})\n"
        "except SystemExit as exit: status = exit.code\n"
        "took = time.process_time()\n"
        "assert status == (0 if '--help' in {!r} else 2), status\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "assert took < 2, took\n"
    )
    for case in cases:
        done = subprocess.run(
            [sys.executable, "-c", program.format(case, case)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (case, done.stderr)


def test_encode_refuses_in_one_line(model, tmp_path, capsys):
    (tmp_path / "corpus").mkdir()

    def told(*arguments):
        assert main(["encode", str(tmp_path / "corpus"), "-o", str(tmp_path / "out"), *arguments]) == 2
        return capsys.readouterr().err

    parts = ["--autoencoder", str(model / "autoencoder"), "--clip", str(model / "clip")]
    assert "--model has no effect beside both --autoencoder and --clip" in told("--model", str(model), *parts)
    assert "autoencoder folder, config.json is missing" in told(*parts, "--autoencoder", str(tmp_path))
    assert "CLIP 'ViT-Z' is neither a folder" in told(*parts, "--clip", "ViT-Z/openai")
    assert re.search(r"corpus.*manifest.json", told("--model", str(model)))
    assert "--augment and --seed have no effect without --copies" in told("--seed", "3")
    assert "--pad has no effect without --crop: clips stay whole" in told("--pad")
    assert "crop_s is 0.0; it must be above 0" in told("--crop", "0")
    (tmp_path / "augment.yaml").write_text("filter_db: 3\nloudness: 2\n")
    assert "augment.yaml: unknown key 'loudness'" in told("--copies", "1", "--augment", str(tmp_path / "augment.yaml"))
    (tmp_path / "augment.yaml").write_text("gain_db: 90\n")
    assert "gain_db is 90.0; choose 0 to 40" in told("--copies", "1", "--augment", str(tmp_path / "augment.yaml"))
    (tmp_path / "augment.yaml").write_text("probability: 0.5\n")
    assert "augment changes nothing" in told("--copies", "1", "--augment", str(tmp_path / "augment.yaml"))
    assert not (tmp_path / "out").exists()
