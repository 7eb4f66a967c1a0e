"""train/diffusion.py: overfitting, fine-tuning, adapters, dry runs, skipped steps, trackers."""

import json
import shutil
import sys
import types
from pathlib import Path

import accelerate.tracking
import pytest
import torch
from accelerate.utils import LoggerType
from safetensors.torch import load_file, save_file
from scripts import REPO, load_script
from tiny_latents import write_latents
from tiny_model import write_tiny_model

from diffaudio.config import parse
from diffaudio.corpus.datasets.latents import LatentDataset, draw_batch
from diffaudio.errors import UserError
from diffaudio.models.lora import apply_adapter, read_adapter
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.seeding import BatchDraws
from diffaudio.training import start_checks, tracking
from diffaudio.training.batches import Batch

script = load_script("train/diffusion.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a tiny `model` and a `corpus` that it encoded."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_model(folder / "model")
    write_latents(folder / "corpus", folder / "model")
    return folder


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def config(data: Path, out: Path, *more: object):
    given = ["--config", REPO / "configs/tiny/diffusion.yaml", "--data", data / "corpus", "--out", out]
    given += ["--autoencoder", data / "model/autoencoder", "--clip", data / "model/clip", "--bridge.texts", '["a dog"]']
    given += ["--train.threads", "1", "--train.log_every", "1", "--train.precision", "no", "--samples.prompts", "[]"]
    given += ["--train.steps", "4", "--train.save_every", "2", "--train.batch_size", "4"]
    return parse(script.Config, [str(argument) for argument in [*given, *more]])


# The shape of the tiny model's U-Net, which configs/tiny does not have.
SHAPE = ["--unet.attention_levels", "[]", "--unet.channels", "[16, 32]"]


def train(data: Path, out: Path, *more: object) -> None:
    script.main(config(data, out, *more))


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# overfit


def test_a_few_clips_can_be_overfitted_and_are_reproduced(data, tmp_path, capsys):
    more = ["--train.steps", "150", "--train.lr", "1e-2", "--train.warmup_steps", "5", "--train.ema_decay", "0.9"]
    more += ["--train.save_every", "150", "--train.log_every", "50", "--train.batch_size", "16"]
    train(data, tmp_path / "run", "--overfit", "2", *more)
    report = json.loads((tmp_path / "run/overfit/report.json").read_text())
    assert report["loss_after"] < 0.6 * report["loss_before"]
    assert len(report["log_mel_distance_db"]) == len(report["log_mel_distance_to_nearest_other_db"]) == 2
    names = {path.name for path in (tmp_path / "run/overfit").iterdir()}
    assert {"00_original.wav", "00_generated.wav", "00.png", "01_original.wav"} <= names
    assert "overfit: loss" in capsys.readouterr().err
    assert metrics(tmp_path / "run")[-1]["loss"] < metrics(tmp_path / "run")[0]["loss"]


def test_overfitting_draws_the_same_crop_and_picture_every_time(data):
    dataset = LatentDataset(data / "corpus").first_crops_of(2)
    assert len(dataset) == 2
    batches = [draw_batch(dataset, [0, 1, 1], num_frames=5, draws=BatchDraws(0, step, 3)) for step in (0, 1)]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(batches[0][0][1], dataset[1]["latents"][:, :5])
    torch.testing.assert_close(batches[0][1][0], dataset[0]["embeddings"][0])
    assert dataset.describe(1)["id"] == "2"  # evenly spaced: the first and the last of three
    with pytest.raises(UserError, match="4 clips were asked for"):
        LatentDataset(data / "corpus").first_crops_of(4)


def test_an_adapter_is_not_trained_beside_overfit(data, tmp_path):
    with pytest.raises(UserError, match="lora has no effect beside overfit"):
        train(data, tmp_path / "run", "--overfit", "2", "--start_from", data / "model", "--lora.rank", "2")
    assert not (tmp_path / "run").exists()


# start_from


def test_a_run_starts_from_a_models_weights(data, tmp_path):
    chosen = config(data, tmp_path / "run", *SHAPE, "--start_from", data / "model", "--unet.dropout", "0.4")
    dataset, _ = script.open_data(chosen)
    unet, pipe, _ = script.build(chosen, dataset, torch.device("cpu"))
    model = DiffAudioPipeline.from_pretrained(data / "model")
    torch.testing.assert_close(unet.state_dict(), model.unet.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(pipe.unet.state_dict(), model.unet.state_dict(), rtol=0, atol=0)
    assert {module.p for module in unet.modules() if isinstance(module, torch.nn.Dropout)} == {0.4}
    assert unet.training
    assert pipe.bridge.config["memory_size"] == 6  # a new one, of the corpus
    train(data, tmp_path / "run", *SHAPE, "--start_from", data / "model")
    assert len(metrics(tmp_path / "run")) == 4


def test_a_model_that_differs_from_the_run_is_refused_in_one_line(data, tmp_path):
    other = write_tiny_model(tmp_path / "other", objective="v")

    def message(*more: object) -> str:
        with pytest.raises(UserError) as raised:
            train(data, tmp_path / "run", *more)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    start = ["--start_from", data / "model"]
    assert "unet.attention_levels is [] there, [0] here" in message(*start)
    assert "unet.channels is [16, 32] there, [16, 48] here" in message(*start, *SHAPE[:3], "[16, 48]")
    assert "its objective is another, v_prediction there and flow_prediction here" in message(
        "--start_from", other, *SHAPE
    )
    assert "there is no such model folder" in message("--start_from", tmp_path / "none", *SHAPE)
    for part, file in (("autoencoder", "diffusion_pytorch_model"), ("clip", "open_clip_model")):
        copy = write_tiny_model(tmp_path / part)
        weights = load_file(copy / part / f"{file}.safetensors")
        name = max(weights, key=lambda each: weights[each].numel())
        save_file(weights | {name: weights[name] + 1}, copy / part / f"{file}.safetensors")
        assert f"its {part} is '" in message("--start_from", copy, *SHAPE)
    assert not (tmp_path / "run").exists()


# lora


LORA = [*SHAPE, "--lora.rank", "2", "--lora.preserve_sounds", "3", "--train.lr", "1e-2", "--train.warmup_steps", "0"]


def test_an_adapter_is_trained_saved_and_resumed_to_the_bit(data, tmp_path):
    more = [*LORA, "--start_from", data / "model", "--train.max_states", "2"]
    train(data, tmp_path / "whole", *more)
    adapter = read_adapter(tmp_path / "whole/lora")
    assert not (tmp_path / "whole/model").exists()
    assert adapter.trained_on["clip"] == "tiny"
    assert adapter.conditions.memory.shape == (6, 16)
    assert adapter.conditions.texts.shape == (1, 16)
    unet = DiffAudioPipeline.from_pretrained(data / "model").unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    apply_adapter(unet, adapter)
    assert sum(not torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items()) > 5
    for name in ("adapter_model.safetensors", "conditions.safetensors", "adapter_config.json", "trained_on.json"):
        assert (tmp_path / "whole/lora" / name).is_file()

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/state/step_00000004")  # as if the run had been killed after its first save
    shutil.rmtree(tmp_path / "resumed/lora")
    train(data, tmp_path / "resumed", *more)
    whole, resumed = (load_file(tmp_path / run / "lora/adapter_model.safetensors") for run in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_preserved_sounds_keep_the_adapted_network_at_what_it_predicted(data, tmp_path):
    """Of the conditions that were preserved; with preserve 0 they change with the rest."""
    model = DiffAudioPipeline.from_pretrained(data / "model")
    drifts = {}
    for preserve in ("0", "0.75"):
        out = tmp_path / preserve
        train(data, out, *LORA, "--start_from", data / "model", "--lora.preserve", preserve, "--train.steps", "60",
              "--train.batch_size", "8", "--train.save_every", "60", "--train.log_every", "60")  # fmt: skip
        adapted = DiffAudioPipeline.from_pretrained(data / "model").unet
        apply_adapter(adapted, read_adapter(out / "lora"))
        generator = torch.Generator().manual_seed(0)
        z, t = torch.randn(10, 8, 25, generator=generator), torch.linspace(50, 950, 10)
        e = model.bridge.memory[:10]
        drifts[preserve] = float((adapted(z, t, e) - model.unet(z, t, e)).detach().square().mean().sqrt())
    assert drifts["0.75"] < 0.7 * drifts["0"], drifts


def test_a_share_of_the_new_sounds_is_conditioned_on_their_words(data, tmp_path):
    chosen = config(data, tmp_path / "run", *LORA, "--start_from", data / "model", "--lora.words", "0.25")
    dataset, _ = script.open_data(chosen)
    lora = script.build(chosen, dataset, torch.device("cpu"))[2]
    embeddings = torch.nn.functional.normalize(torch.randn(400, 16), dim=1)
    latents = torch.zeros(400, 8, 4)
    batch = Batch(latents, embeddings, latents, BatchDraws(0, 0, 400))
    replaced = lora.put_words_into(batch)
    is_word = (replaced.embeddings == lora.words[0]).all(dim=1)
    assert 60 < int(is_word.sum()) < 140
    assert torch.equal(replaced.embeddings[~is_word], embeddings[~is_word])
    assert torch.equal(lora.put_words_into(batch).embeddings, replaced.embeddings)


def test_what_an_adapter_needs_is_asked_for(data, tmp_path):
    with pytest.raises(UserError, match="name it as start_from"):
        train(data, tmp_path / "run", "--lora.rank", "2")
    with pytest.raises(UserError, match=r"needs words by which prompts find the new sounds; give bridge\.texts"):
        train(data, tmp_path / "run", *LORA, "--start_from", data / "model", "--bridge.texts", "[]")


# dry runs


def test_a_dry_run_measures_prints_and_writes_nothing(data, tmp_path, capsys):
    train(data, tmp_path / "run", "--dry-run", "--train.steps", "1000000")
    printed = capsys.readouterr().out
    assert "steps: 1000000" in printed
    for start in (
        "unet: ",
        "batches: [4, 8, 25] latents",
        "memory: ",
        "computed for a GPU: ",
        "rate: ",
        "time: ",
        "disk: ",
        "latents: mean",
    ):
        assert any(line.startswith(start) for line in printed.splitlines()), start
    assert not (tmp_path / "run").exists()


# spikes


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run_when_too_many_follow(
    data, tmp_path, monkeypatch, capsys
):
    loss, calls = script.diffusion_loss, []

    def sometimes_nan(*args, **kwargs):
        calls.append(None)
        found = loss(*args, **kwargs)
        return found._replace(total=found.total * float("nan")) if len(calls) in bad else found

    monkeypatch.setattr(script, "diffusion_loss", sometimes_nan)
    bad = {2, 3}
    train(data, tmp_path / "run", "--spikes.max_skipped", "2")
    assert [line.get("skipped_steps") for line in metrics(tmp_path / "run")] == [None, 1, 2, 2]
    told = capsys.readouterr().err
    assert "step 2 is skipped, 1 so far: grad_norm is nan" in told
    assert "step 3 is skipped, 2 so far" in told
    calls.clear()
    with pytest.raises(UserError, match="step 3: grad_norm is nan"):
        train(data, tmp_path / "other", "--spikes.max_skipped", "1")


# memory, trackers


def test_too_little_memory_names_the_settings_to_turn_down(data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(script, "diffusion_loss", full)
    with pytest.raises(
        UserError, match=r"not enough memory on cpu for a step with train\.batch_size 4.*lower"
    ) as raised:
        train(data, tmp_path / "run")
    assert "train.accumulation_steps" in str(raised.value)


def test_other_errors_of_a_step_stay_what_they_are(data, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(script, "diffusion_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(data, tmp_path / "run")


def test_an_unknown_or_missing_tracker_is_refused_before_anything_is_made(data, tmp_path):
    for name, message in (
        ("wandbb", "is unknown; choose from aim"),
        ("tensorboard", "tensorboard is always written"),
        ("wandb", "wandb needs its package, which is not installed; pip install wandb"),
    ):
        with pytest.raises(UserError, match=message):
            train(data, tmp_path / "run", "--tracking.trackers", f"[{name}]")
    assert not (tmp_path / "run").exists()


def test_a_tracker_gets_the_settings_the_numbers_and_the_sounds(data, tmp_path, monkeypatch):
    """Weights & Biases as accelerate drives it, with its package played by a few lines."""
    logged, begun = [], {}

    class FakeRun:
        config = types.SimpleNamespace(update=lambda values, **_: begun.update(values))

        def log(self, values, step=None, **_):
            logged.append((step, values))

        def finish(self):
            begun["finished"] = True

    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace(name="wandb")
    fake.init = lambda **settings: begun.update(init=settings) or FakeRun()
    fake.config = FakeRun.config
    fake.Audio = lambda samples, sample_rate: ("sound", samples.shape, sample_rate)
    fake.Image = lambda figure: "picture"
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for module in (tracking, accelerate.tracking):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD, LoggerType.WANDB])
    train(
        data, tmp_path / "run", "--tracking.trackers", "[wandb]", "--tracking.project", "sounds",
        "--samples.prompts", '["a dog"]', "--samples.every", "4", "--samples.guidance_scales", "[1, 3]",
        "--samples.evaluate", "false",
    )  # fmt: skip
    assert begun["init"]["project"] == "sounds"
    assert begun["init"]["name"] == "run"
    assert begun["train.batch_size"] == 4
    assert begun["finished"]
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3, 4]
    sounds = {name: value for _, values in logged for name, value in values.items() if name.startswith("sample")}
    assert sounds["sample_guidance_3/a-dog"] == ("sound", (8000,), 8000)
    assert sounds["sample_guidance_1/a-dog/spectrogram"] == "picture"
    samples = tmp_path / "run/samples"
    assert {path.name for path in samples.iterdir()} == {"step_00000004", "step_00000004_guidance_3"}
    assert json.loads((samples / "step_00000004_guidance_3/a-dog.json").read_text())["guidance_scale"] == 3


@pytest.mark.parametrize("scales", ["[]", "[2, 2]"])
def test_guidance_scales_of_samples_are_given_once_each(data, tmp_path, scales):
    with pytest.raises(UserError, match=r"samples\.guidance_scales"):
        train(data, tmp_path / "run", "--samples.prompts", '["a dog"]', "--samples.guidance_scales", scales)


# checks before the first step


def test_latents_of_an_unusual_scale_and_of_other_weights_are_warned_about(data, caplog, monkeypatch):
    dataset, autoencoder = LatentDataset(data / "corpus"), DiffAudioPipeline.from_pretrained(data / "model").autoencoder
    waveform = torch.randn(1, 1, 16000) * torch.linspace(0.01, 0.5, 16000)
    own = autoencoder.encode(waveform)[0]
    real = dataset[0]

    class Recorded:
        folders = dataset.folders

        def __init__(self, latents):
            self.latents = latents

        def __len__(self):
            return 2

        def __getitem__(self, clip):
            return real | {"latents": self.latents}

    def warnings(latents) -> list[str]:
        caplog.clear()
        text = start_checks.check_start(Recorded(latents), autoencoder)
        assert text.startswith("latents: mean")
        return [record.getMessage() for record in caplog.records]

    assert "standard deviation" in warnings(20 * torch.randn(8, 100))[0]
    assert not any("correlate" in line for line in warnings(own))
    assert any(
        "1 of 8 latent channels are constant" in line for line in warnings(own.index_fill(0, torch.tensor([3]), 0))
    )
    monkeypatch.setattr(autoencoder, "encode", lambda waveform: torch.randn(1, 8, 100))
    assert any("correlate by only" in line for line in warnings(own))
    with pytest.raises(UserError, match="all latents of 2 clips are 0"):
        start_checks.check_start(Recorded(torch.zeros(8, 50)), autoencoder)
