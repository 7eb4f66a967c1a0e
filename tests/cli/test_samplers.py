"""`diffaudio samplers`."""

import json

import pytest
from tiny_model import write_tiny_model

from diffaudio.cli.main import main
from diffaudio.diffusion.sampler_table import SAMPLERS


def listed(capsys, *arguments):
    code = main(["samplers", *arguments])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


def test_the_table_says_of_each_what_is_to_be_known(capsys):
    code, lines, _ = listed(capsys)
    assert code == 0
    assert [line.split()[0] for line in lines[1:]] == list(SAMPLERS)
    rows = {line.split()[0]: line for line in lines[1:]}
    assert lines[0].split() == ["name", "order", "passes", "noise", "eta", "models", "spacings"]
    assert rows["heun"].split()[1:5] == ["2", "2", "no", "-"]
    assert rows["ddim"].split()[1:6] == ["1", "1", "with", "eta", "0"]
    assert "flow v epsilon sample" in rows["dpm++2m_sde"]
    assert "trailing karras exponential" in rows["dpm++2m_sde"]
    assert "yes" in rows["dpm++2m_sde"]
    assert "distilled by LCM" in rows["lcm"]
    assert all("arXiv:" in row or "k-diffusion" in row for row in rows.values())


def test_a_model_restricts_it(capsys, tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    _, lines, _ = listed(capsys, "--model", str(folder))
    assert [line.split()[0] for line in lines[1:]] == [name for name in SAMPLERS if name not in ("lcm", "tcd")]
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "FlowMatchLCMScheduler", "num_train_timesteps": 1000}))
    _, lines, _ = listed(capsys, "--model", str(folder))
    assert [line.split()[0] for line in lines[1:]] == ["lcm"]


@pytest.mark.parametrize("arguments", [["--model", "nowhere"], ["--models", "x"]])
def test_errors_are_one_line_messages(capsys, arguments):
    code, lines, told = listed(capsys, *arguments)
    assert (code, lines, told.count("\n")) == (2, [], 1)
