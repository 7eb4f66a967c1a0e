import dataclasses
import inspect
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator
from killing import everything, kill, start_two, wait_for
from safetensors.torch import load_file
from scripts import REPO, load_script
from tiny_latents import write_latents
from tiny_model import write_tiny_model

from diffaudio.checkpoint import load_clip
from diffaudio.cli.main import main
from diffaudio.config import parse
from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import IdentityBridge
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.training.bridge_fitting import read_lines
from diffaudio.training.diffusion_settings import UNetSettings
from diffaudio.training.metrics_log import loss_by_noise_level
from diffaudio.training.resume import latest_state

SCRIPT = REPO / "train/diffusion.py"


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


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    common = ["--config", REPO / "configs/tiny/diffusion.yaml", "--data", data / "corpus", "--out", out]
    parts = ["--autoencoder", data / "model/autoencoder", "--clip", data / "model/clip", "--bridge.texts", '["a dog"]']
    fast = ["--train.threads", "1", "--train.log_every", "1", "--train.precision", "no", "--samples.prompts", "[]"]
    fast += ["--samples.evaluate", "false"]
    return [str(argument) for argument in [*common, *parts, *fast, *more]]


def train(data: Path, out: Path, *more: str) -> None:
    script.main(parse(script.Config, arguments(data, out, *more)))


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("precision", "accumulation", "sampling"), [("no", 1, "loss"), ("no", 2, "uniform"), ("bf16", 1, "uniform")]
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    data, tmp_path, monkeypatch, precision, accumulation, sampling
):
    """Two corpora, of 2 and 3 clips beside those held out, and steps past several passes of both."""
    write_latents(tmp_path / "other", data / "model", clips=4)
    corpora = ["--data", json.dumps([str(data / "corpus"), str(tmp_path / "other")]), "--weights", "[2, 1]"]
    settings = [
        *corpora,
        "--train.precision",
        precision,
        "--held_out",
        "0.2",
        "--validation.every",
        "4",
        "--train.steps",
        "10",
    ]
    settings += ["--train.batch_size", "2", "--train.save_every", "3", "--train.warmup_steps", "2"]
    settings += ["--train.accumulation_steps", str(accumulation), "--noise.sampling", sampling]
    settings += ["--averages.update_every", "2"]
    train(data, tmp_path / "whole", *settings)

    class Killed(BaseException):
        pass

    calls = 0
    loss = script.diffusion_loss

    def loss_until_killed(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 8 * accumulation + 2 + 1:  # at the ninth step, two after a save and two batches of validation
            raise Killed
        return loss(*args, **kwargs)

    monkeypatch.setattr(script, "diffusion_loss", loss_until_killed)
    with pytest.raises(Killed):
        train(data, tmp_path / "stopped", *settings)
    assert [path.name for path in (tmp_path / "stopped/state").iterdir()] == ["step_00000006"]
    monkeypatch.setattr(script, "diffusion_loss", loss)
    train(data, tmp_path / "stopped", *settings)

    assert_same_state(tmp_path / "whole/state/step_00000010", tmp_path / "stopped/state/step_00000010")
    saved = {path.name for path in (tmp_path / "whole/state/step_00000010").iterdir()}
    assert ("expected_loss.safetensors" in saved) == (sampling == "loss")
    snapshots = [
        {path.name: path.read_bytes() for path in (tmp_path / run / "averages").iterdir()}
        for run in ("whole", "stopped")
    ]
    assert snapshots[0] == snapshots[1] and len(snapshots[0]) == 4
    untimed = [[{**line, "step_s": 0} for line in metrics(tmp_path / run)] for run in ("whole", "stopped")]
    assert untimed[0] == untimed[1]
    assert [line["step"] for line in untimed[0] if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in untimed[0] if "held_out_loss" in line] == [4, 8, 10]

    train(data, tmp_path / "seeded", *settings, "--train.seed", "1", "--train.steps", "4")
    assert metrics(tmp_path / "seeded")[3]["loss"] != untimed[0][3]["loss"]


def assert_same_state(one: Path, other: Path) -> None:
    """To the bit: weights, averages and moments."""
    names = {path.name for path in one.glob("*.safetensors")}
    assert names == {path.name for path in other.glob("*.safetensors")} >= {"unet.safetensors", "optimizer.safetensors"}
    for name in names:
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(expected[key], found[key]), (name, key)


def test_a_batch_is_the_same_whatever_the_processes_and_micro_batches_that_share_it(data, tmp_path):
    """Clips, crops, embeddings, noise, noise levels and dropped conditions, in the order of the whole batch."""
    write_latents(tmp_path / "corpus", data / "model", clips=7)
    found = []
    for processes, accumulation in ((1, 1), (2, 1), (1, 4), (2, 2), (4, 1)):
        more = ["--data", str(tmp_path / "corpus"), "--train.batch_size", "8", "--train.condition_dropout", "0.5"]
        config = parse(
            script.Config, arguments(data, tmp_path / "run", *more, "--train.accumulation_steps", str(accumulation))
        )
        dataset = LatentDataset(tmp_path / "corpus")
        order = ClipOrder(dataset.sizes, seed=config.train.seed)
        seen = []

        def unet(noisy, timestep, embedding, mask, seen=seen):
            seen.append((noisy, timestep, embedding, mask))
            return torch.zeros_like(noisy)

        unet.parameters = lambda: iter(())
        scheduler = script.training_scheduler("flow", config.noise)
        for process in range(processes):
            of_process = SimpleNamespace(process_index=process, num_processes=processes, device=torch.device("cpu"))
            for batch in script.draw_step(config, dataset, order, of_process, 5):
                script.batch_loss(unet, batch, scheduler, config)
        assert len(seen) == processes * accumulation
        found.append([torch.cat(parts) for parts in zip(*seen, strict=True)])
    for other in found[1:]:
        for expected, value in zip(found[0], other, strict=True):
            assert torch.equal(expected, value)
    assert len(set(found[0][1].tolist())) == 8 and 0 < int(found[0][3].sum()) < 8


def test_two_processes_killed_in_the_second_epoch_go_on_to_the_bit(data, tmp_path, monkeypatch):
    """SIGKILL for both, with gradient accumulation; 6 clips, of which a step takes 4."""
    write_latents(tmp_path / "corpus", data / "model", clips=6)
    more = ["--data", str(tmp_path / "corpus"), "--train.batch_size", "4", "--train.accumulation_steps", "2"]
    more += ["--train.steps", "8", "--train.save_every", "2", "--train.warmup_steps", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    log = tmp_path / "log.txt"

    def run(out: Path, until: str | None) -> None:
        both = start_two([sys.executable, SCRIPT, *arguments(data, out, *more)], log)
        if until is None:
            assert [process.wait(timeout=900) for process in both] == [0, 0], log.read_text()
        else:
            assert wait_for(both[0], (out / "state" / until).is_dir), log.read_text()
            for process in both:
                kill(process, everything)

    run(tmp_path / "whole", None)
    run(tmp_path / "killed", "step_00000002")
    saved = latest_state(tmp_path / "killed/state")
    assert saved is not None and saved.name < "step_00000008"
    run(tmp_path / "killed", None)
    assert_same_state(tmp_path / "whole/state/step_00000008", tmp_path / "killed/state/step_00000008")
    untimed = [[{**line, "step_s": 0} for line in metrics(tmp_path / run)] for run in ("whole", "killed")]
    assert untimed[0] == untimed[1] and [line["step"] for line in untimed[0]] == list(range(1, 9))


def test_a_run_goes_on_in_another_folder_from_a_copy_of_it(data, tmp_path):
    settings = [*QUICK, "--train.save_every", "2", "--train.max_states", "3", "--averages.update_every", "1"]
    train(data, tmp_path / "whole", *settings, "--train.steps", "6")
    shutil.copytree(tmp_path / "whole", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost/state/step_00000006")
    for name, source in (("of_run", "lost"), ("of_state", "lost/state/step_00000002")):
        more = ["--resume_from", str(tmp_path / source), "--train.steps", "6"]
        train(data, tmp_path / name, *settings, *more)
        assert_same_state(tmp_path / "whole/state/step_00000006", tmp_path / name / "state/step_00000006")
        untimed = [[{**line, "step_s": 0} for line in metrics(tmp_path / run)] for run in ("whole", name)]
        assert untimed[0] == untimed[1]
        assert len(list((tmp_path / name / "averages").iterdir())) == 3
    before = metrics(tmp_path / "of_run")
    train(data, tmp_path / "of_run", *settings, "--train.steps", "6", "--resume_from", str(tmp_path / "gone"))
    assert metrics(tmp_path / "of_run") == before  # it has states of its own by now
    with pytest.raises(UserError, match="resume_from: .*corpus holds no state; name the folder of a run"):
        train(data, tmp_path / "other", *settings, "--resume_from", str(data / "corpus"))
    with pytest.raises(UserError, match="the run was begun with train.lr 0.0004, not 0.1"):
        train(data, tmp_path / "other", *settings, "--resume_from", str(tmp_path / "lost"), "--train.lr", "0.1")


def test_training_learns_and_writes_a_model_that_generates(data, tmp_path):
    out = tmp_path / "run"
    more = ["--train.steps", "80", "--train.lr", "1e-2", "--train.warmup_steps", "5", "--train.save_every", "80"]
    more += ["--unet.dropout", "0", "--samples.prompts", '["a dog", "rain"]', "--samples.every", "80"]
    train(data, out, *more)
    losses = [line["loss"] for line in metrics(out)]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:5]) * 2

    average = load_file(out / "state/step_00000080/average.safetensors")
    saved = load_file(out / "model/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(average[key].half(), saved[key]) for key in average)
    pipe = DiffAudioPipeline.from_pretrained(out / "model")
    audio = pipe(
        "rain", num_inference_steps=5, audio_length_in_s=1.0, generator=torch.Generator().manual_seed(0)
    ).audios
    assert audio.shape == (1, 1, pipe.autoencoder.sample_rate)
    made = {path.name for path in (out / "samples/step_00000080").iterdir()}
    assert made == {f"{name}.{suffix}" for name in ("a-dog", "rain") for suffix in ("wav", "png", "json")}
    assert list(out.glob("events.out.tfevents*"))


def test_the_loss_on_held_out_clips_is_that_of_the_averaged_weights_on_what_was_never_trained_on(data, tmp_path):
    write_latents(tmp_path / "corpus", data / "model", clips=8)
    more = ["--data", str(tmp_path / "corpus"), "--held_out", "0.2", "--train.steps", "2", "--validation.clips", "2"]
    train(data, tmp_path / "run", *more)
    (logged,) = (line for line in metrics(tmp_path / "run") if "held_out_loss" in line)

    config = parse(script.Config, arguments(data, tmp_path / "run", *more))
    dataset, held_out = script.open_data(config)
    assert (len(dataset), len(held_out)) == (5, 3)
    pipe = script.build(config, dataset, torch.device("cpu"))[1]
    pipe.unet.load_state_dict(load_file(tmp_path / "run/state/step_00000002/average.safetensors"))
    losses = script.held_out_losses(pipe, held_out, config.train, 2)
    assert losses.shape == (2, 2) and logged["held_out_loss"] == losses[:, 0].mean().item()
    whole = script.held_out_losses(pipe, held_out, config.train, 100)
    assert whole.shape == (3, 2)
    noisy = dataclasses.replace(config.train, embedding_noise=1.0, condition_dropout=1.0)
    assert torch.equal(script.held_out_losses(pipe, held_out, noisy, 100), whole)  # neither is for measuring


def test_weights_and_held_out_without_effect_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="weights has no effect with one corpus; leave it out, or give several"):
        train(data, tmp_path / "run", "--weights", "[1]")
    with pytest.raises(ValueError, match="weights: 1 were given for 2 corpora"):
        train(data, tmp_path / "run", "--data", json.dumps([str(data / "corpus")] * 2), "--weights", "[1]")
    with pytest.raises(ValueError, match="corpus: held_out 1 leaves no clips to train on"):
        train(data, tmp_path / "run", "--held_out", "1")
    assert not (tmp_path / "run").exists()


def test_two_processes_train_one_model_on_the_batch_of_one_process(data, tmp_path):
    """The first step's loss and gradient are those of the same batch in one process."""
    more = ["--train.steps", "2", "--unet.dropout", "0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command += arguments(data, tmp_path / "run", *more)
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = metrics(tmp_path / "run")
    assert (tmp_path / "run/model/model_index.json").is_file()

    config = parse(script.Config, arguments(data, tmp_path / "run", *more))
    dataset = LatentDataset(data / "corpus")
    order = ClipOrder(dataset.sizes, seed=config.train.seed)
    unet, pipe, _ = script.build(config, dataset, torch.device("cpu"))
    (batch,) = script.draw_step(config, dataset, order, Accelerator(), 0)
    losses = script.batch_loss(unet, batch, pipe.scheduler, config).items
    assert len(set(losses.tolist())) == config.train.batch_size
    losses.mean().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in unet.parameters() if p.grad is not None])
    assert first["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert second["step"] == 2


def test_a_model_of_another_average_is_built_after_training(data, tmp_path, capsys):
    train(
        data, tmp_path / "run", *QUICK, "--train.steps", "12", "--train.save_every", "2", "--averages.update_every", "1"
    )
    assert main(["average", str(tmp_path / "run"), "-o", str(tmp_path / "model"), "--sigma-rel", "0.1"]) == 0
    assert "average of relative length 0.1 at step 12, from snapshots of 6 steps" in capsys.readouterr().out
    built = load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    running = load_file(tmp_path / "run/state/step_00000012/average_0.1.safetensors")
    for key, value in running.items():
        torch.testing.assert_close(built[key].float(), value, rtol=2e-3, atol=1e-5)
    pipe = DiffAudioPipeline.from_pretrained(tmp_path / "model")
    assert pipe("rain", num_inference_steps=1, audio_length_in_s=0.2).audios.isfinite().all()
    for arguments, message in (
        ([str(tmp_path / "run"), "-o", str(tmp_path / "model")], "model: already exists; name a new or empty folder"),
        ([str(tmp_path / "model"), "-o", str(tmp_path / "x")], "averages: holds no snapshots; train with averages."),
        ([str(tmp_path / "run"), "-o", str(tmp_path / "x"), "--step", "13"], "step 13: averages are built for steps 1"),
    ):
        assert main(["average", *arguments, "--sigma-rel", "0.1"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_half_precision_on_a_gpu_learns_and_resumes(data, tmp_path, precision):
    more = ["--train.precision", precision, "--train.lr", "1e-2", "--train.warmup_steps", "5", "--unet.dropout", "0"]
    for steps in ("40", "80"):
        train(data, tmp_path / "run", *more, "--train.steps", steps)
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert len(losses) == 80
    assert sum(losses[-10:]) < 0.85 * sum(losses[:5]) * 2
    state = json.loads((tmp_path / "run/state/step_00000080/state.json").read_text())
    assert (state["scaler"] is not None) == (precision == "fp16")


def test_a_finished_run_writes_its_model_again_with_the_requested_bridge(data, tmp_path):
    settings = ["--train.steps", "2", "--train.batch_size", "2"]
    train(data, tmp_path / "run", *settings)
    unet = (tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors").read_bytes()
    train(data, tmp_path / "run", *settings, "--bridge.kind", "none")
    config = json.loads((tmp_path / "run/model/bridge/config.json").read_text())
    assert config["_class_name"] == "IdentityBridge"
    assert (tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors").read_bytes() == unet
    assert len(metrics(tmp_path / "run")) == 2


def test_checkpointed_and_compiled_training_is_that_of_a_plain_run(data, tmp_path, monkeypatch):
    """Compiled without a code generator, which would take minutes; what dynamo traces is the same."""
    common = [*QUICK, "--train.steps", "3"]
    train(data, tmp_path / "plain", *common)
    train(data, tmp_path / "checkpointed", *common, "--train.gradient_checkpointing", "true")
    plain, checkpointed = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("plain", "checkpointed"))
    assert plain == checkpointed
    compiled, compile_module = [], torch.nn.Module.compile

    def record(module, **more):
        compiled.append(type(module))
        compile_module(module, backend="aot_eager", **more)

    monkeypatch.setattr(torch.nn.Module, "compile", record)
    train(data, tmp_path / "compiled", *common, "--train.compile", "true")
    assert compiled == [UNet1D]
    assert [line["loss"] for line in metrics(tmp_path / "compiled")] == pytest.approx(plain, rel=0.02)


def test_the_loss_is_reported_by_quarters_of_the_noise_level():
    seen = torch.tensor([[1.0, 0.0], [3.0, 0.2], [5.0, 0.5], [7.0, 1.0]])
    assert loss_by_noise_level(seen) == {
        "loss": 4.0,
        "loss_level_0_25": 2.0,
        "loss_level_50_75": 5.0,
        "loss_level_75_100": 7.0,
    }


def test_the_network_s_settings_are_those_of_the_u_net():
    own = {name: p.default for name, p in inspect.signature(UNet1D.__init__).parameters.items()}
    for name in ("self", "in_channels", "embedding_dim", "embedding_noise_level"):  # of the corpus, and of `train`
        del own[name]
    assert dataclasses.asdict(UNetSettings()) == own


@pytest.mark.parametrize("name", ["base", "mini", "tiny", "one_cpu", "one_gpu", "eight_gpus", "two_nodes"])
def test_a_config_is_complete_but_for_the_folders(name):
    given = ["--config", str(REPO / f"configs/{name}/diffusion.yaml"), "--data", "a", "--out", "b"]
    bridge = parse(script.Config, given).bridge
    assert bridge.texts or read_lines(REPO / bridge.texts_file)


def test_the_base_config_names_every_setting():
    content = yaml.safe_load((REPO / "configs/base/diffusion.yaml").read_text())
    for section in ("unet", "train", "noise", "averages", "bridge", "validation", "samples"):
        names = [field.name for field in dataclasses.fields(getattr(script.Config("", "", "", ""), section))]
        assert list(content[section]) == names


def test_a_corpus_of_other_latents_is_refused_before_anything_is_written(data, tmp_path):
    write_latents(tmp_path / "corpus", data / "model", name="encodec_24khz")
    with pytest.raises(
        ValueError, match=r"corpus: latents were made by autoencoder 'encodec_24khz' .*encode the corpus"
    ):
        train(data, tmp_path / "run", "--data", str(tmp_path / "corpus"))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_with_other_settings(data, tmp_path):
    train(data, tmp_path / "run", "--train.steps", "1")
    with pytest.raises(ValueError, match=r"the run was begun with train.lr 0.0004, not 0.1"):
        train(data, tmp_path / "run", "--train.steps", "2", "--train.lr", "0.1")
    train(data, tmp_path / "run", "--train.steps", "2")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_a_bridge_setting_without_effect_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"bridge.temperature has no effect with bridge.kind none"):
        train(data, tmp_path / "run", "--bridge.kind", "none", "--bridge.temperature", "0.1")


def test_texts_come_from_the_settings_and_a_file(data, tmp_path):
    (tmp_path / "texts.txt").write_text("rain on a roof\n\n  the dog \n")
    assert read_lines(tmp_path / "texts.txt") == ["rain on a roof", "the dog"]
    missing = tmp_path / "none.txt"
    with pytest.raises(ValueError, match=r"bridge.texts_file: .*none.txt cannot be read: No such file"):
        train(data, tmp_path / "run", "--bridge.texts_file", str(missing))


def test_a_user_s_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--data", "none", "--out", "x", "--train.lrr", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    message = "diffusion.py: error: command line: unknown option '--train.lrr'; did you mean '--train.lr'?\n"
    assert capsys.readouterr().err == message


QUICK = ["--train.batch_size", "2", "--train.warmup_steps", "2", "--samples.num_inference_steps", "2"]
QUICK += ["--samples.duration_s", "0.5", "--samples.sampler", "euler"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the script may catch it."""


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The settings of a run with everything in it, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_latents(folder / "corpus", data / "model", clips=8)
    settings = ["--data", str(folder / "corpus"), "--held_out", "0.2", "--train.steps", "6", "--train.save_every"]
    settings += ["2", "--validation.every", "2", "--samples.every", "2", "--samples.prompts", '["rain"]', *QUICK]
    train(data, folder / "whole", *settings)
    return settings, folder / "whole"


@pytest.mark.parametrize("place", ["held_out_losses", "log_samples", "save_state", "model", "best"])
def test_a_kill_while_a_step_is_logged_and_saved_loses_nothing(data, tmp_path, monkeypatch, undisturbed, place):
    """Killed at step 4 of 6, where a held-out line, samples, the model and a state are due, at each place in turn."""
    settings, whole = undisturbed
    calls = 0

    def killed_at_the_second_call(original):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 2:
                raise Killed
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if place in ("model", "best"):
            save = DiffAudioPipeline.save_pretrained
            killed = killed_at_the_second_call(save)
            patch.setattr(
                DiffAudioPipeline,
                "save_pretrained",
                lambda self, folder, **more: (killed if folder.name == place else save)(self, folder, **more),
            )
        else:
            patch.setattr(script, place, killed_at_the_second_call(getattr(script, place)))
        with pytest.raises(Killed):
            train(data, tmp_path / "killed", *settings)
    half_written = tmp_path / "killed/samples/.step_00000004.1.part"
    half_written.mkdir(parents=True, exist_ok=True)
    train(data, tmp_path / "killed", *settings)
    untimed = [[{**line, "step_s": 0} for line in metrics(run)] for run in (whole, tmp_path / "killed")]
    assert untimed[0] == untimed[1]
    files = [
        sorted(str(path.relative_to(run)) for path in run.rglob("*") if not path.name.startswith("events."))
        for run in (whole, tmp_path / "killed")
    ]
    assert files[0] == files[1]
    for name in ("samples/step_00000004/rain.wav", "best/unet/diffusion_pytorch_model.safetensors"):
        assert (whole / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


@pytest.mark.parametrize("damaged", ["batch", "gradient", "weights"])
def test_what_is_not_finite_ends_the_run_with_the_last_good_save_in_place(data, tmp_path, monkeypatch, damaged):
    settings = [*QUICK, "--train.save_every", "1"]
    train(data, tmp_path / "run", *settings, "--train.steps", "2")
    before = {path: path.read_bytes() for path in tmp_path.rglob("run/*/**/*") if path.is_file()}
    assert len(before) > 5
    loss, update = script.diffusion_loss, script.update_ema
    if damaged == "batch":
        monkeypatch.setattr(script, "diffusion_loss", lambda n, x, *a, **k: loss(n, x * float("nan"), *a, **k))
    elif damaged == "gradient":

        def with_infinite_gradient(network, *args, **kwargs):
            losses = loss(network, *args, **kwargs)
            losses.total.register_hook(lambda gradient: gradient * float("inf"))
            return losses

        monkeypatch.setattr(script, "diffusion_loss", with_infinite_gradient)
    else:

        def overflow(average, module, decay):
            update(average, module, decay)
            average.conv_in.bias[0] = 1e5  # finite, and too large for the half precision of the model

        monkeypatch.setattr(script, "update_ema", torch.no_grad()(overflow))
    with pytest.raises(UserError, match=r"stopped: step 3: .*; \S+/step_00000002 and the model beside it are as they"):
        train(data, tmp_path / "run", *settings, "--train.steps", "4")
    assert {path: path.read_bytes() for path in tmp_path.rglob("run/*/**/*") if path.is_file()} == before
    monkeypatch.undo()
    train(data, tmp_path / "run", *settings, "--train.steps", "4")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_ctrl_c_finishes_the_step_saves_it_and_says_so(data, tmp_path, monkeypatch):
    settings = [*QUICK, "--train.steps", "6", "--train.save_every", "6"]
    train(data, tmp_path / "whole", *settings)
    loss, calls = script.diffusion_loss, 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*args, **kwargs)

    monkeypatch.setattr(script, "diffusion_loss", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 3 is saved; the same command goes on from there"):
        train(data, tmp_path / "run", *settings)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step_00000003"]
    assert (tmp_path / "run/model/model_index.json").is_file()
    monkeypatch.undo()
    train(data, tmp_path / "run", *settings)
    whole, resumed = (load_file(tmp_path / run / "state/step_00000006/unet.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_samples_that_cannot_be_generated_are_refused_before_the_first_step(data, tmp_path):
    for setting, value, message in (
        ("sampler", "eular", "samples: sampler 'eular' is unknown; choose from"),
        ("num_inference_steps", "100000", "samples: steps is 100000"),
        ("duration_s", "1e6", "samples: duration_s is 1000000"),
        ("prompts", '["rain", " "]', "samples.prompts holds an empty text"),
        ("reference", "nowhere", "samples.reference has no effect without samples.prompts and samples.evaluate"),
    ):
        more = ["--samples.prompts", '["rain"]', f"--samples.{setting}", value]
        with pytest.raises(UserError, match=message):
            train(data, tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_several_states_and_the_best_model_are_kept(data, tmp_path, monkeypatch):
    write_latents(tmp_path / "corpus", data / "model", clips=8)
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(script, "held_out_losses", lambda *_: torch.tensor([[next(losses), 0.5]]))
    more = ["--data", str(tmp_path / "corpus"), "--held_out", "0.2", "--validation.every", "1", "--train.steps", "4"]
    train(data, tmp_path / "run", *more, *QUICK, "--train.save_every", "1", "--train.max_states", "3")
    states = sorted(path.name for path in (tmp_path / "run/state").iterdir())
    assert states == ["step_00000002", "step_00000003", "step_00000004"]
    average = load_file(tmp_path / "run/state/step_00000002/average.safetensors")
    best = load_file(tmp_path / "run/best/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(average[key].half(), best[key]) for key in average)


def test_the_model_may_be_a_symbolic_link_to_another_place(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/model").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    train(data, tmp_path / "run", *QUICK, "--train.steps", "3", "--train.save_every", "1")
    assert (tmp_path / "run/model").is_symlink()
    assert (tmp_path / "elsewhere/model_index.json").is_file()
    assert DiffAudioPipeline.from_pretrained(tmp_path / "run/model")


def test_training_reports_device_data_progress_and_where_the_model_is(data, tmp_path, capsys):
    train(data, tmp_path / "run", *QUICK, "--train.steps", "2")
    said = capsys.readouterr().err
    for line in (
        "device: cpu (1 threads), float32",
        "data: 3 clips, 0 held out; batches of 2",
        f"done: the model is in {tmp_path / 'run/model'}",
    ):
        assert f"{line}\n" in said
    assert "step/s" in said and "loss=" in said
    train(data, tmp_path / "run", *QUICK, "--train.steps", "2")
    assert "all 2 steps are done already; raise train.steps to train longer" in capsys.readouterr().err


def test_a_batch_that_the_processes_cannot_share_is_refused(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    odd = subprocess.run(
        [*command, *arguments(data, tmp_path / "odd", "--train.batch_size", "3")],
        capture_output=True, text=True, timeout=900, env=environment,
    )  # fmt: skip
    message = "train.batch_size 3 is shared by all processes and cannot be divided among 2; choose a multiple of 2"
    assert odd.returncode and message in odd.stderr
    assert not (tmp_path / "odd").exists()


def test_a_labelled_baseline_is_trained_on_captions_and_needs_no_bridge(data, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\n0.mp4,a dog\n1.mp4,rain\n2.mp4,a roof\n")
    settings = ["--captions.source", str(tmp_path / "labels.csv"), "--bridge.kind", "none", "--bridge.texts", "[]"]
    settings += ["--held_out", "0.4", "--train.embedding_noise", "0"]
    train(data, tmp_path / "run", *settings, "--train.steps", "2")
    assert isinstance(DiffAudioPipeline.from_pretrained(tmp_path / "run/model").bridge, IdentityBridge)
    config = parse(script.Config, arguments(data, tmp_path / "run", *settings))
    dataset, held_out = script.open_data(config)
    of_captions = load_clip(data / "model/clip").encode_text(["a dog", "rain", "a roof"])
    for split in (dataset, held_out):
        embeddings = split.picture_embeddings()
        assert ((embeddings[:, None] - of_captions).norm(dim=2).amin(dim=1) < 1e-2).all()
    with pytest.raises(UserError, match=r"set bridge.kind to none"):
        train(data, tmp_path / "other", "--captions.source", str(tmp_path / "labels.csv"))


def test_a_unet_can_be_conditioned_on_the_noise_level_of_its_embeddings(data, tmp_path):
    settings = ["--train.embedding_noise", "0", "--train.embedding_noise_level", "0.5", "--train.steps", "3"]
    bridge = ["--bridge.kind", "noise", "--bridge.noise_level", "0.4", "--held_out", "0.4", "--validation.every", "3"]
    train(data, tmp_path / "run", *settings, *bridge)
    pipe = DiffAudioPipeline.from_pretrained(tmp_path / "run/model")
    assert pipe.unet.config["embedding_noise_level"] == 0.5
    assert load_file(tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors")[
        "noise_level_mlp.linear_1.weight"
    ].any()
    assert "held_out_loss" in metrics(tmp_path / "run")[-1]
    with pytest.raises(UserError, match=r"are two ways of adding noise to embeddings; set one of them to 0"):
        train(data, tmp_path / "other", "--train.embedding_noise_level", "0.5")
