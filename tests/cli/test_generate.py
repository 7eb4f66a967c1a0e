"""The `diffaudio` command: files, sidecars, and one clear line for whatever is wrong."""

import errno
import inspect
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import pytest
import soundfile
import torch
from media import numbered_pictures, tone, write_media
from PIL import Image
from tiny_model import EMBEDDING_DIM, LATENT_CHANNELS, SAMPLE_RATE, write_tiny_model

from diffaudio import DiffAudioPipeline, __version__
from diffaudio.cli.main import COMMANDS, main
from diffaudio.cli.options import GenerationOptions
from diffaudio.corpus.encode import run as encoding
from diffaudio.corpus.prepare import run as preparing
from diffaudio.corpus.prepare.worker import WorkerLimits
from diffaudio.file_names import slug
from diffaudio.generation import batch as rendering
from diffaudio.media.audio import read_audio

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
        "query": {"parts": [{"text": "a dog barking", "weight": 1.0}]},
        "seed": 7,
        "steps": 2,
        "guidance_scale": 2.0,
        "sampler": "euler",
        "duration_s": 1.5,
        "negative_prompt": "rain",
        "negative_image": None,
        "bridge": None,
        "templates": None,
        "image_bridge": None,
        "text_bridge": "retrieval",
        "text_templates": ["{}"],
        "spacing": None,
        "eta": None,
        "guidance": None,
        "weak_model": None,
        "lora": None,
        "loudness": -23.0,
        "edit": None,
        "layers": None,
        "file": None,
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


@pytest.fixture
def photos(tmp_path):
    """Two photographs in the current folder, and a video."""
    for name, color in (("red.jpg", "red"), ("blue.png", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / name)
    write_media(tmp_path / "clip.mp4", sound=tone(1, 44100), pictures=numbered_pictures(1))


def query_of(name):
    return json.loads(Path(f"{name}.json").read_text())["query"]


def test_images_and_videos_make_sounds_named_after_them_and_described_in_the_sidecar(generate, photos, model):
    arguments = ["rain", "--image", "red.jpg", "blue.png", "--video=clip.mp4", "--seed", "3"]
    code, printed, _ = generate(*arguments, "-o", "out")
    assert (code, printed.split("\n")[1]) == (0, "out/red.wav (1 s, seed 4)")
    assert [name for name in names("out") if name.endswith(".wav")] == ["blue.wav", "clip.wav", "rain.wav", "red.wav"]
    assert query_of("out/red") == {"parts": [{"image": "red.jpg", "weight": 1.0}]}
    assert query_of("out/clip") == {"parts": [{"video": "clip.mp4", "weight": 1.0}]}
    described = json.loads(Path("out/red.json").read_text())
    assert [described[name] for name in ("prompt", "text_bridge", "text_templates")] == [None] * 3
    pipe = DiffAudioPipeline.from_pretrained(model)
    quick = {"num_inference_steps": 1, "audio_length_in_s": 1}
    expected = pipe(image="red.jpg", generator=torch.Generator().manual_seed(4), **quick).audios[0, 0]
    assert torch.allclose(torch.from_numpy(soundfile.read("out/red.wav", dtype="float32")[0]), expected, atol=1e-3)


def test_options_that_are_repeated_add_up(generate, photos):
    assert generate("--image", "red.jpg", "--plot", "--image=blue.png", "-o", "out")[0] == 0
    assert {"blue.png", "blue.wav", "red.wav"} <= set(names("out"))


def test_weights_make_one_mixture_of_texts_images_and_videos(generate, photos):
    arguments = ["a dog barking::0.7", "rain::0.3", "--image", "red.jpg::2", "--video", "clip.mp4::1"]
    assert generate(*arguments, "-o", "out", "--seed", "1")[0] == 0
    assert names("out") == ["a-dog-barking-rain-red-clip.json", "a-dog-barking-rain-red-clip.wav"]
    parts = [
        ("text", "a dog barking", 0.7),
        ("text", "rain", 0.3),
        ("image", "red.jpg", 2.0),
        ("video", "clip.mp4", 1.0),
    ]
    described = query_of("out/a-dog-barking-rain-red-clip")
    assert described == {"parts": [{kind: content, "weight": weight} for kind, content, weight in parts]}
    for name, text in (("mixed.wav", "a dog::0.7 rain::0.3"), ("apart.wav", "a dog::0.9 rain::0.1")):
        assert generate(text, "-o", name, "--seed", "1")[0] == 0
    assert Path("mixed.wav").read_bytes() != Path("apart.wav").read_bytes()


def test_an_interpolation_goes_from_one_query_to_the_other_from_the_same_noise(generate, photos):
    code, printed, _ = generate("rain", "--image", "red.jpg", "--interpolate", "3", "--seed", "7", "-o", "out")
    assert code == 0
    assert re.findall(r"seed (\d+)", printed) == ["7", "7", "7"]
    wavs = ["out/rain-to-red.wav", "out/rain-to-red-2.wav", "out/rain-to-red-3.wav"]
    assert re.findall(r"^\S+", printed, re.MULTILINE) == wavs
    assert [query_of(wav[:-4])["position"] for wav in wavs] == [0, 0.5, 1]
    assert generate("rain", "--seed", "7", "-o", "rain.wav")[0] == 0
    assert generate("--image", "red.jpg", "--seed", "7", "-o", "red.wav")[0] == 0
    sounds = [torch.from_numpy(soundfile.read(f)[0]) for f in (*wavs, "rain.wav", "red.wav")]
    assert torch.allclose(sounds[0], sounds[3], atol=1e-3) and torch.allclose(sounds[2], sounds[4], atol=1e-3)
    assert not torch.allclose(sounds[0], sounds[1], atol=1e-3)


def test_negative_images_templates_and_bridges_change_the_sound_and_are_in_the_sidecar(generate, photos):
    sounds = set()
    for name, options, described in (
        ("plain", [], {}),
        ("negative", ["--negative-image", "red.jpg"], {"negative_image": "red.jpg"}),
        ("bridge", ["--bridge", "none"], {"bridge": "none", "text_bridge": "none"}),
        (
            "templates",
            ["--templates", "{}!", "on {}"],
            {"templates": ["{}!", "on {}"], "text_templates": ["{}!", "on {}"]},
        ),
    ):
        assert generate("rain", "-o", f"{name}.wav", "--seed", "1", *options)[0] == 0
        found = json.loads(Path(f"{name}.json").read_text())
        assert found | described == found
        sounds.add(Path(f"{name}.wav").read_bytes())
    for name, options in (("image", []), ("retrieved", ["--image-bridge", "retrieval"])):
        assert generate("--image", "red.jpg", "-o", f"{name}.wav", "--seed", "1", *options)[0] == 0
        sounds.add(Path(f"{name}.wav").read_bytes())
    assert len(sounds) == 6


def streams(name):
    """Duration of the picture's packets, and duration and channels of the sound."""
    with av.open(name) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        picture_s = float(sum(packet.duration * packet.time_base for packet in packets))
    info = read_audio(name)
    return [bytes(packet) for packet in packets], picture_s, info[0].shape[-1] / info[1]


def test_a_video_as_output_has_the_picture_of_the_query_s_and_the_sound_below_it(generate, photos):
    code, printed, _ = generate("--video", "clip.mp4", "-o", "out.mp4", "--seed", "3", settings=["--steps", "1"])
    assert (code, printed) == (0, "out.mp4 (1 s, seed 3)\n")
    picture, picture_s, sound_s = streams("out.mp4")
    assert picture == streams("clip.mp4")[0]
    assert (picture_s, sound_s) == (pytest.approx(1.0), pytest.approx(1.0, abs=0.05))
    assert json.loads(Path("out.json").read_text())["duration_s"] == 1.0
    assert generate("rain::1", "--video", "clip.mp4::1", "-o", "a.mkv", "--takes", "2", "--duration", "2")[0] == 0
    for name in ("a.mkv", "a-2.mkv"):
        assert streams(name)[1:] == (pytest.approx(1.0), pytest.approx(2.0, abs=0.05))
    write_media(Path("longer.mp4"), pictures=numbered_pictures(2))
    arguments = ["--video", "clip.mp4", "longer.mp4", "-o", "both.mp4"]
    assert generate(*arguments, settings=["--steps", "1"])[0] == 0
    assert [round(streams(name)[2]) for name in ("both-clip.mp4", "both-longer.mp4")] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rain", "-o", "out.mp4"], "out.mp4: needs the picture of exactly one video, and 'rain' has none or several"),
        (["--video", "clip.mp4::1", "clip.mp4::2", "-o", "out.mkv"], "'clip + clip' has none or several; add --video"),
        (["--video", "clip.mp4", "-o", "out.webm"], "clip.mp4: a .webm file cannot hold its h264 picture"),
        (["--video", "clip.mp4", "-o", "out.xyz"], "out.xyz: cannot write .xyz; choose .wav, .flac, "),
        (["--video", "clip.mp4", "-o", "clip.mp4"], "clip.mp4: exists; add --overwrite to replace it"),
    ],
)
def test_a_video_that_cannot_be_written_is_an_error_in_one_line(generate, photos, arguments, message):
    before = names()
    code, printed, told = generate(*arguments)
    assert (code, printed, told.count("\n"), names()) == (2, "", 1, before)
    assert message in told


def bad_media(folder):
    """Files that are no images or videos, with what is said of them."""
    Image.new("RGB", (60, 40), "red").save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])
    (folder / "notes.jpg").write_text("no picture")
    write_media(folder / "sound.mp4", sound=tone(1, 44100))
    header = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT" + bytes(100))
    return [
        ("--image", "notes.jpg", "notes.jpg: cannot be read as a picture: it is no picture"),
        ("--image", "cut.png", "cut.png: cannot be read as a picture: it is damaged"),
        ("--image", "bomb.png", "bomb.png: is a picture of 40000 x 25000 pixels; at most 250 million are read"),
        ("--image", "sound.mp4", "sound.mp4: cannot be read as a picture: it is no picture"),
        ("--video", "sound.mp4", "sound.mp4: has no picture track"),
        ("--video", "notes.jpg", "notes.jpg: cannot be read as a media file"),
        ("--negative-image", "cut.png", "cut.png: cannot be read as a picture: it is damaged"),
    ]


def test_files_that_are_no_images_or_videos_are_refused_before_torch_is_imported(tmp_path):
    """All in one process, which is then asked what it has loaded."""
    cases = bad_media(tmp_path)
    program = (
        "import sys; from diffaudio.cli.main import main\n"
        f"for flag, file, _ in {cases!r}:\n"
        "    assert main(['generate', 'rain', flag, file, '-o', 'out.wav']) == 2, file\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == len(cases)
    for line, (_, _, message) in zip(told, cases, strict=True):
        assert line.startswith(f"diffaudio: error: {message}")


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
        (["rain", "--duration", "90000"], "duration_s is 90000.0; it must be above 0 and at most"),
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
        ([], "a prompt must be given, or --image or --video"),
        (["rain::much"], "'rain::much': the weight 'much' is not a number; write the text, '::' and a number above 0"),
        (
            ["rain::0.5", "a dog"],
            "'rain::0.5' has a weight and 'a dog' has none; give every part of a mixture its weight",
        ),
        (["rain", "--image", "gone.jpg"], "gone.jpg: there is no such image file"),
        (["--image", "file.txt", "rain"], "rain: there is no such image file; texts are given before --image"),
        (["--image", "file.txt"], "file.txt: the file is empty"),
        (["--video", "gone.mp4"], "gone.mp4: there is no such video file"),
        (["rain", "--negative-image", "gone.jpg"], "gone.jpg: there is no such image file"),
        (["rain", "a dog", "--interpolate", "1"], "an interpolation of 1 has no two ends; give 2 or more"),
        (["rain", "--interpolate", "3"], "an interpolation goes from one query to another, but 1 were given; give two"),
        (["rain", "--templates", "the sound"], "prompt template 'the sound' does not contain {} exactly once"),
        (["rain", "--bridge", "prior"], "bridge 'prior' is not one of this model's (none, retrieval), nor a folder"),
        (["rain", "--image-bridge", "retrieval"], "image bridge 'retrieval' has no effect without an image or a video"),
        (["rain", "--negative-prompt", "a", "--negative-image", "b.jpg"], "give a negative prompt or a negative image"),
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

    monkeypatch.setattr(rendering, "write_settled", full)
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
