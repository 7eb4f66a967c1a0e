"""Samples made while training are measured in a process of its own, and the numbers go into the log."""

import json
import shutil

import pytest
import torch

from diffaudio.cli.main import main
from diffaudio.evaluation.report import read_report
from diffaudio.media.audio import write_audio
from diffaudio.training import sample_logging
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.sample_evaluation import evaluate_samples
from diffaudio.training.sample_logging import SampleSettings, log_samples


def write_samples(folder):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, prompt in (("rain", "rain on a roof"), ("dog", "a dog barking")):
        write_audio(folder / f"{name}.wav", 0.1 * torch.randn(1, 16000, generator=generator), 16000)
        (folder / f"{name}.json").write_text(json.dumps({"prompt": prompt}))
    return folder


def test_the_numbers_are_those_of_the_command_by_its_default_backbone(tmp_path):
    folder = write_samples(tmp_path / "step_00000004")
    metrics = evaluate_samples(folder)
    assert metrics["recognised_at_5_yamnet"] in (0.0, 0.5, 1.0) and "inception_score_yamnet" in metrics
    assert (tmp_path / "step_00000004.html").is_file()
    assert main(["evaluate", str(folder), "-o", str(tmp_path / "again.json"), "--device", "cpu"]) == 0
    (row, _) = read_report(tmp_path / "again.json").rows
    assert metrics == {metric.name: metric.value for metric in row.metrics}


def test_a_failure_is_a_warning_and_the_run_continues(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="empty: the samples were not evaluated: .*holds no sound"):
        assert evaluate_samples(tmp_path / "empty") == {}
    with pytest.warns(UserWarning, match=r"not evaluated: it took more than 0.001 s"):
        assert evaluate_samples(tmp_path / "empty", timeout_s=0.001) == {}


class Pipe:
    """Generates noise."""

    class autoencoder:
        sample_rate = 8000

    def __call__(self, prompts, **_):
        generator = torch.Generator().manual_seed(0)
        return type("Output", (), {"audios": torch.randn(len(prompts), 1, 8000, generator=generator)})


def test_the_numbers_are_logged_as_scalars_of_their_step(tmp_path, monkeypatch):
    asked = []

    def evaluate(folder, **options):
        asked.append((folder, sorted(path.name for path in folder.iterdir()), options))
        return {"recognised_at_5_judge": 0.5}

    monkeypatch.setattr(sample_logging, "evaluate_samples", evaluate)
    settings = SampleSettings(prompts=["rain", "a dog"], reference=tmp_path, labels=tmp_path)
    with MetricsLog(tmp_path) as log:
        log_samples(settings, Pipe(), tmp_path, log, 7)
        shutil.rmtree(tmp_path / "samples")
        log_samples(SampleSettings(prompts=["rain"], evaluate=False), Pipe(), tmp_path, log, 8)
    (folder, files, options), *others = asked
    assert (folder, others) == (tmp_path / "samples/step_00000007", [])
    assert files == sorted(f"{name}.{suffix}" for name in ("rain", "a-dog") for suffix in ("wav", "png", "json"))
    assert options == {"reference": tmp_path, "labels": tmp_path}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 7, "samples/recognised_at_5_judge": 0.5}]
