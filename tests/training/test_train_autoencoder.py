import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from corpora import clip_row, sine, write_clips_corpus
from diffusers import AutoencoderOobleck
from media import noise, numbered_pictures, tone, write_media
from safetensors.torch import load_file
from scripts import REPO, load_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffaudio.config import parse
from diffaudio.corpus.prepare.run import prepare
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.store import part_files, read_groups
from diffaudio.errors import UserError
from diffaudio.media.audio import decode_flac, resample, scale_to_peak
from diffaudio.metrics.reconstruction import log_mel_distance_db
from diffaudio.models.autoencoders import SpectralAutoencoder, load_autoencoder
from diffaudio.models.autoencoders.detail_and_vocoder import DetailSettings, VocoderSettings
from diffaudio.models.autoencoders.mel_inversion import InversionSettings
from diffaudio.seeding import seeded_generator
from diffaudio.training.autoencoder.building import DetailChoice, InversionChoice, VocoderChoice

SPECTRAL: dict[str, Any] = {"sample_rate": 8000, "n_fft": 256, "hop_length": 80, "num_mels": 32, "latent_channels": 16}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train/autoencoder.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-autoencoder")
    (folder / "videos").mkdir()
    for index in range(3):
        sound = tone(1.0, 44100, frequency=300.0 * (index + 1)) + noise(1.0, 44100, gain=0.02, seed=index)
        write_media(folder / "videos" / f"{index}.mp4", sound=sound, pictures=numbered_pictures(1.0))
    prepare([folder / "videos"], folder / "corpus", PrepareSettings(sample_rate=8000), progress=False)
    return folder / "corpus"


def test_the_fitted_autoencoder_is_the_principal_components_of_the_corpus(
    script: ModuleType, corpus: Path, tmp_path: Path
):
    script.main(script.Config(data=corpus, out=tmp_path / "run", spectral=script.SpectralSettings(**SPECTRAL)))
    autoencoder = load_autoencoder(tmp_path / "run" / "model")
    assert isinstance(autoencoder, SpectralAutoencoder)
    clips = [row for part in part_files(corpus, "clips") for rows in read_groups(part) for row in rows]
    assert len(clips) == 3
    waveforms = [scale_to_peak(decode_flac(row["audio"])[0], 0.7) for row in clips]
    patches = torch.cat([autoencoder.patches(waveform[None])[0] for waveform in waveforms], dim=1)
    latents = torch.cat([autoencoder.encode(waveform[None])[0] for waveform in waveforms], dim=1)
    assert latents.square().mean().sqrt() == pytest.approx(1, abs=0.01)
    directions = torch.linalg.svd(patches - patches.mean(dim=1, keepdim=True), full_matrices=False).U[:, :4]
    overlap = (directions.T @ autoencoder.components[:, :4]).abs()
    torch.testing.assert_close(overlap, torch.eye(4), rtol=0, atol=0.02)
    report = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert report["patches"] == patches.shape[1]
    assert 0.5 < report["variance_kept"] < 1


def test_in_stereo_the_code_is_of_both_channels(script: ModuleType, corpus: Path, tmp_path: Path):
    spectral = script.SpectralSettings(audio_channels=2, **SPECTRAL)
    script.main(script.Config(data=corpus, out=tmp_path / "run", spectral=spectral))
    autoencoder = load_autoencoder(tmp_path / "run" / "model")
    assert isinstance(autoencoder, SpectralAutoencoder) and autoencoder.audio_channels == 2
    left, right = autoencoder.components.split(128)  # of clips that are the same on both sides
    torch.testing.assert_close(left[:, :4], right[:, :4], rtol=0, atol=1e-3)


def test_a_folder_that_is_no_corpus_is_refused(script: ModuleType, tmp_path: Path):
    with pytest.raises(ValueError, match=r"is no corpus, manifest.json is missing"):
        script.main(script.Config(data=tmp_path, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# What is learned by gradient, on a tiny Oobleck with every kind of loss


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven sources, of which held_out 0.2 holds out the second and the sixth."""
    rows = [clip_row(f"{index}.mp4", samples=sine(200.0 * (index + 1))) for index in range(7)]
    return write_clips_corpus(tmp_path_factory.mktemp("clips") / "corpus", [rows[:4], rows[4:]])


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def arguments(clips: Path, out: Path, *more: str) -> list[str]:
    fast = ["--train.threads", "1", "--train.log_every", "1", "--train.batch_size", "2", "--train.precision", "no"]
    common = ["--config", REPO / "configs/tiny/autoencoder.yaml", "--data", clips, "--out", out, *fast, *more]
    return [str(argument) for argument in common]


def train(script: ModuleType, clips: Path, out: Path, *more: str) -> None:
    script.main(parse(script.Config, arguments(clips, out, *more)))


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(script, clips, tmp_path, monkeypatch, precision):
    """Steps past several passes of the corpus; stopped after the adversary began, with validation behind it."""
    settings = [
        "--train.precision",
        precision,
        "--held_out",
        "0.2",
        "--train.steps",
        "10",
        "--train.save_every",
        "3",
        "--validation.every",
        "4",
    ]
    settings += ["--validation.sounds", "0"]
    settings += ["--augment.gain_db", "6", "--adversary.from_step", "2"]
    train(script, clips, tmp_path / "whole", *settings)

    class Killed(BaseException):
        pass

    calls = 0
    draw = script.draw_crops

    def draw_until_killed(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise Killed
        return draw(*args, **kwargs)

    monkeypatch.setattr(script, "draw_crops", draw_until_killed)
    with pytest.raises(Killed):
        train(script, clips, tmp_path / "stopped", *settings)
    assert [path.name for path in (tmp_path / "stopped/state").iterdir()] == ["step_00000006"]
    monkeypatch.setattr(script, "draw_crops", draw)
    train(script, clips, tmp_path / "stopped", *settings)

    states = [load_parts(tmp_path / run / "state/step_00000010") for run in ("whole", "stopped")]
    names = {"autoencoder", "average", "optimizer", "balancer", "discriminator", "discriminator_optimizer"}
    assert {key.split("/")[0] for key in states[0]} == names
    assert states[0].keys() == states[1].keys()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []
    models = [load_file(tmp_path / run / "model/diffusion_pytorch_model.safetensors") for run in ("whole", "stopped")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    untimed = [[{**line, "step_s": 0} for line in metrics(tmp_path / run)] for run in ("whole", "stopped")]
    assert untimed[0] == untimed[1]
    assert [line["step"] for line in untimed[0] if "loss" in line] == list(range(1, 11))
    assert ["adversarial" in line for line in untimed[0] if "loss" in line] == [False] * 2 + [True] * 8
    held_out = [line["step"] for line in untimed[0] if "held_out_log_mel_distance_db" in line]
    assert held_out == [0, 4, 8, 10]


def load_parts(folder: Path) -> dict[str, torch.Tensor]:
    """part/weight -> tensor, of a state."""
    return {
        f"{file.stem}/{key}": tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def learned(script: ModuleType, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned") / "run"
    more = ["--train.steps", "40", "--train.save_every", "40", "--train.lr", "1e-2", "--held_out", "0.2"]
    more += ["--losses.balance", "false", "--adversary.weight", "0", "--adversary.feature_weight", "0"]
    train(script, clips, out, *more, "--validation.every", "40")
    return out


def test_training_learns_and_writes_a_model_whose_latents_have_mean_0_and_std_1(script, clips, learned):
    losses = [line["mel"] for line in metrics(learned) if "mel" in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    autoencoder = load_autoencoder(learned / "model")
    average = load_parts(learned / "state/step_00000040")
    own_weights = [key.removeprefix("average/") for key in average if key.startswith("average/network")]
    for name, tensor in autoencoder.network.state_dict().items():
        assert torch.equal(tensor, average[f"average/network.{name}"])
    assert any(not torch.equal(average[f"average/{name}"], average[f"autoencoder/{name}"]) for name in own_weights)
    assert (average["average/latent_scale"] == 1).all()  # what is fitted for the model does not go into training
    dataset = script.WaveformDataset(learned / "waveforms", held_out=0.2)
    clips_fitted_to = script.ClipOrder((len(dataset),)).clips(0, len(dataset))
    generator = seeded_generator(0)
    crops = [script.draw_crops(dataset, [clip], num_samples=2400, generator=generator) for clip in clips_fitted_to]
    latents = torch.cat([autoencoder.encode(crop)[0] for crop in crops], dim=1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std(dim=1, correction=0), torch.ones(4), rtol=0, atol=1e-2)


def test_validation_measures_the_average_on_what_was_never_trained_on(script, clips, learned):
    held_out = script.WaveformDataset(learned / "waveforms", held_out=0.2, split="held_out")
    assert held_out.sources == ["1.mp4", "5.mp4"]
    autoencoder = load_autoencoder(learned / "model")
    first, last = (line["held_out_log_mel_distance_db"] for line in metrics(learned) if len(line) == 3)
    distances = []
    for clip in range(2):
        made = autoencoder.decode(autoencoder.encode(held_out[clip][None]), num_samples=8000)[0, 0]
        distances.append(log_mel_distance_db(resample(held_out[clip][0], 8000, 16000), resample(made, 8000, 16000)))
    assert last == pytest.approx(sum(distances) / 2, rel=1e-3) and last < first
    made = {path.name for path in (learned / "samples/step_00000040").iterdir()}
    assert made == {"00.wav", "00_original.wav", "00.png"}
    board = EventAccumulator(str(learned))
    board.Reload()
    shown = board.Tags()
    assert shown["audio"] == shown["images"] == ["held_out/00"]
    assert {"loss", "mel", "kl", "lr", "grad_norm", "held_out_log_mel_distance_db"} <= set(shown["scalars"])


def test_training_from_an_oobleck_begins_with_its_weights(script, clips, learned, tmp_path):
    more = ["--model", "oobleck", "--start_from", str(learned / "model"), "--train.steps", "1", "--train.lr", "1e-9"]
    train(script, clips, tmp_path / "run", *more)
    before, after = (load_autoencoder(out / "model").network.state_dict() for out in (learned, tmp_path / "run"))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"oobleck.decoder_channels is 8, that of start_from 4, whose latents are kept"
    ):
        train(script, clips, tmp_path / "other", *more, "--oobleck.decoder_channels", "8")
    with pytest.raises(ValueError, match=r"start_from .*model: is 'oobleck_8khz_4x62.5hz', but model is spectral"):
        script.main(
            script.Config(
                clips, tmp_path / "other", start_from=str(learned / "model"), train=script.TrainSettings(precision="no")
            )
        )


TWO_PROCESSES = """
import sys
from pathlib import Path
from accelerate import Accelerator
from diffaudio.distributed import join_processes, run_script
from diffaudio.models.autoencoders import SpectralAutoencoder
from scripts import REPO, load_script

script = load_script("train/autoencoder.py")
join_processes(1)
accelerator = Accelerator(mixed_precision="no")
code = SpectralAutoencoder(**{SPECTRAL})
script.fit_code(code, Path("{CLIPS}"), accelerator, peak=0.7, held_out=0.0)
code.save_pretrained("{OUT}" + str(accelerator.process_index))
run_script(script.main, script.Config)
"""


def test_two_processes_fit_one_code_and_train_one_model_on_different_crops(script, clips, tmp_path):
    """The first step's losses and gradient are the means over what both drew, computed here in one process."""
    more = [
        "--train.steps",
        "3",
        "--adversary.from_step",
        "0",
        "--held_out",
        "0.2",
        "--adversary.update_probability",
        "1",
    ]
    more += ["--validation.sounds", "0", "--train.batch_size", "4"]  # of both together
    driver = tmp_path / "driver.py"
    names = {"{SPECTRAL}": str(SPECTRAL), "{CLIPS}": str(clips), "{OUT}": str(tmp_path / "code")}
    driver.write_text(re.sub("{[A-Z]+}", lambda name: names[name[0]], TWO_PROCESSES))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(driver)]
    command += arguments(clips, tmp_path / "run", *more)
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPO / "tests/helpers"),
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    code = SpectralAutoencoder(**SPECTRAL)
    script.fit_code(code, clips, Accelerator(mixed_precision="no"), peak=0.7, held_out=0.0)
    of_two = [load_autoencoder(tmp_path / f"code{process}") for process in (0, 1)]
    assert torch.equal(of_two[0].components, of_two[1].components)
    for name in ("mean", "scale"):
        torch.testing.assert_close(getattr(of_two[0], name), getattr(code, name), rtol=1e-4, atol=1e-4)

    logged = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3]

    config = parse(script.Config, arguments(clips, tmp_path / "run", *more))
    dataset = script.WaveformDataset(tmp_path / "run/waveforms", held_out=0.2)
    norms: list[torch.Tensor] = []
    apart = [
        pass_of(script, config, dataset, process, lambda value: norms.append(value) or value) for process in (0, 1)
    ]
    together = [pass_of(script, config, dataset, process, lambda _: sum(norms) / 2) for process in (0, 1)]
    values = [values for values, _ in apart]
    assert values[0]["mel"] != values[1]["mel"]
    for name in ("mel", "waveform", "kl", "adversarial", "feature", "discriminator", "loss"):
        assert logged[0][name] == pytest.approx((values[0][name] + values[1][name]).item() / 2, rel=1e-4), name
    gradient = (together[0][1] + together[1][1]) / 2
    assert logged[0]["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert logged[0]["grad_norm"] != pytest.approx((apart[0][1] + apart[1][1]).norm().item() / 2, rel=1e-4)


def pass_of(
    script: ModuleType, config: Any, dataset: Any, process: int, reduce: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Losses and gradient of the first step of a process of two."""
    autoencoder, objective = script.build(config)
    generator = seeded_generator(0, process, 0)
    clips = script.ClipOrder((len(dataset),), seed=0).clips(2 * process, 2)
    num_samples = script.crop_size(config, autoencoder)
    x = script.draw_crops(dataset, clips, num_samples=num_samples, generator=generator)
    torch.randint(2**62, (), generator=generator)
    passed = autoencoder(x, generator)
    values = objective.backward(passed, x, 0, reduce)
    values |= objective.backward_adversary(objective.discriminator, x, passed, 0, torch.Generator())
    return values, torch.cat([parameter.grad.flatten() for parameter in script.learned_parameters(autoencoder)])


def test_an_explosion_ends_the_run_with_one_line_and_leaves_the_last_good_save(script, clips, tmp_path, monkeypatch):
    train(script, clips, tmp_path / "run", "--train.steps", "2")
    kept = [*(tmp_path / "run/state/step_00000002").iterdir(), *(tmp_path / "run/model").iterdir()]
    before = [path.read_bytes() for path in kept]

    def too_loud(*args: Any, **kwargs: Any) -> torch.Tensor:
        return draw(*args, **kwargs) * float("inf")

    draw = script.draw_crops
    monkeypatch.setattr(script, "draw_crops", too_loud)
    with pytest.raises(
        UserError, match=r"stopped: step 3: \w+ is nan; \S+/step_00000002 and the model beside it are"
    ) as end:
        train(script, clips, tmp_path / "run", "--train.steps", "4", "--train.save_every", "1")
    assert "\n" not in str(end.value)
    assert [path.read_bytes() for path in kept] == before
    monkeypatch.setattr(script, "draw_crops", draw)
    train(script, clips, tmp_path / "run", "--train.steps", "4")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_the_spectral_code_is_fitted_to_what_is_not_held_out_and_measured_on_the_rest(script, clips, tmp_path):
    spectral = script.SpectralSettings(**SPECTRAL)
    script.main(script.Config(clips, tmp_path / "run", spectral=spectral, held_out=0.2))
    fitted, measured = metrics(tmp_path / "run")
    assert fitted["patches"] == 5 * 25  # of seven seconds
    assert measured["step"] == 0 and 0 < measured["held_out_log_mel_distance_db"] < 20
    assert {path.name for path in (tmp_path / "run/model").iterdir()} >= {"config.json"}


def test_training_from_a_spectral_autoencoder_keeps_its_code(script, clips, tmp_path):
    in_float32 = script.TrainSettings(precision="no")
    script.main(script.Config(clips, tmp_path / "code", spectral=script.SpectralSettings(**SPECTRAL), train=in_float32))
    start = str(tmp_path / "code/model")
    spectral = script.SpectralSettings(detail=DetailChoice(channels=8, blocks=1))
    steps = script.TrainSettings(steps=2, batch_size=2, duration_s=0.4, precision="no", threads=1)
    losses = script.LossSettings(mel=0.0, own={"detail": 1.0})
    run = script.Config(clips, tmp_path / "run", spectral=spectral, start_from=start, train=steps, losses=losses)
    script.main(run)
    code, grown = load_autoencoder(start), load_autoencoder(tmp_path / "run/model")
    assert grown.detail and grown.sample_rate == 8000
    waveform = torch.from_numpy(sine(500.0)).float()[None, None]
    assert torch.equal(code.encode(waveform), grown.encode(waveform))
    again = script.SpectralSettings(detail=DetailChoice(channels=8, blocks=1), n_fft=512)
    with pytest.raises(ValueError, match=r"spectral.n_fft is 512, that of start_from 256, whose latents are kept"):
        script.main(dataclasses.replace(run, out=tmp_path / "other", spectral=again))
    other = script.SpectralSettings(detail=DetailChoice(channels=4))
    with pytest.raises(ValueError, match=r"start_from has detail\S+ of another size than these settings"):
        script.main(dataclasses.replace(run, start_from=str(tmp_path / "run/model"), spectral=other))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--spectral.n_fft", "512"], "spectral.n_fft has no effect with model oobleck; leave it out"),
        (["--model", "spectral"], "oobleck.encoder_hidden_size has no effect with model spectral; leave it out"),
        (["--train.steps", "0"], r"train.steps is 0, but \d+ weights of 'oobleck_8khz_4x62.5hz' are to be learned"),
        (["--augment.crop", "0.1"], "augment.crop has no effect: crops are drawn anyway, and there are no pictures"),
        (["--oobleck.encoder_hidden_size", "4"], "oobleck.encoder_hidden_size is 4; .* so choose 8"),
        (["--oobleck.downsampling_ratios", "[5,4,4]"], "oobleck.downsampling_ratios has 5; only even ones"),
        (["--train.duration_s", "0.1"], "train.duration_s gives 800 samples, but a loss has windows of 512"),
    ],
)
def test_settings_without_effect_are_refused_before_anything_is_written(script, clips, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        train(script, clips, tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train", {"steps": 5}, r"train.steps 5 has no effect: nothing in 'spectral_8khz\S+' is learned"),
        ("augment", {"gain_db": 3.0}, "augment has no effect on what is fitted in closed form"),
    ],
)
def test_training_settings_are_refused_where_all_is_fitted_in_closed_form(
    script, clips, tmp_path, name, value, message
):
    kind = {"train": script.TrainSettings, "augment": script.AugmentSettings}[name]
    config = script.Config(
        clips, tmp_path / "run", spectral=script.SpectralSettings(**SPECTRAL), **{name: kind(**value)}
    )
    with pytest.raises(ValueError, match=message):
        script.main(config)


def test_in_bf16_the_losses_stay_what_they_are(script, clips, learned):
    """Networks in half precision; spectra and losses are not."""
    config = parse(script.Config, arguments(clips, learned, "--adversary.from_step", "0"))
    autoencoder, objective = script.build(config)
    dataset = script.WaveformDataset(learned / "waveforms")
    x = script.draw_crops(dataset, [0, 3], num_samples=2400, generator=seeded_generator(0))
    values = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            passed = autoencoder(x, seeded_generator(1))
            values.append(objective.backward(passed, x, 0))
    assert passed.waveform.dtype == torch.bfloat16
    for name, value in values[1].items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(values[0][name].item(), rel=0.1), name
    assert values[0]["mel"] != values[1]["mel"]
    assert all(parameter.grad.dtype == torch.float32 for parameter in script.learned_parameters(autoencoder))


def test_a_run_is_not_resumed_with_other_settings(script, clips, learned):
    with pytest.raises(ValueError, match=r"the run was begun with held_out 0.2, not 0.3"):
        train(script, clips, learned, "--held_out", "0.3")


def test_settings_are_those_of_the_classes_they_are_for(script):
    for settings, kind in (
        (InversionChoice, InversionSettings),
        (DetailChoice, DetailSettings),
        (VocoderChoice, VocoderSettings),
        (script.SpectralSettings, SpectralAutoencoder),
        (script.OobleckSettings, AutoencoderOobleck),
    ):
        own = {field.name for field in dataclasses.fields(settings)} - {"learn"}
        assert own == set(inspect.signature(kind.__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", [path.stem for path in sorted((REPO / "configs/mini").glob("*coder.yaml"))])
def test_a_bundled_config_is_complete_but_for_the_folders(script, name):
    config = parse(script.Config, ["--config", str(REPO / f"configs/mini/{name}.yaml"), "--data", "a", "--out", "b"])
    assert config.model == "spectral"


def test_start_from_without_training_is_refused(script, clips, tmp_path):
    start = str(REPO / "checkpoints/mini/autoencoder")
    learned = load_autoencoder(start).detail is not None
    message = r"train.steps is 0, but \d+ weights" if learned else "start_from has no effect where nothing is learned"
    with pytest.raises(ValueError, match=message):
        script.main(script.Config(clips, tmp_path / "run", start_from=start))
