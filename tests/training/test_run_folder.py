import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from diffaudio.atomic_io import atomic_file, atomic_folder
from diffaudio.training.run_folder import (
    RunLog,
    average_decay,
    begin_run,
    latest_state,
    learning_rate,
    load_state,
    resolve_precision,
    save_state,
    seeded_generator,
    update_average,
)


def test_a_generator_is_a_function_of_its_seed_and_position():
    draws = [
        torch.rand(3, generator=seeded_generator(*arguments)).tolist()
        for arguments in [(0, 0, 1), (0, 0, 1), (0, 1, 0), (0, 0), (1, 0, 1), (0, 0, 11), (0, 0, 1, 1)]
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 6


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_half_cosine():
    def rate(step: int) -> float:
        return learning_rate(step, peak=2.0, warmup_steps=10, total_steps=110, final_fraction=0.1)

    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert [rate(60), rate(110), rate(500)] == pytest.approx([1.1, 0.2, 0.2])
    assert rate(35) == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(0, peak=2.0, warmup_steps=0, total_steps=1) == 2.0


def test_the_average_follows_its_recursion():
    module, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    expected = 1.0
    for t, value in enumerate([3.0, -1.0, 10.0]):
        nn.init.constant_(module.weight, value)
        module.running_mean.fill_(value)
        decay = average_decay(t, max_decay=0.2)
        assert decay == pytest.approx([1 / 10, 2 / 11, 0.2][t])
        update_average(average, module, decay)
        expected = decay * expected + (1 - decay) * value
        assert average.weight.item() == pytest.approx(expected)
        assert average.running_mean.item() == value
    assert average_decay(10**9, max_decay=0.999) == 0.999


def test_the_average_of_constant_weights_is_they():
    module, average = nn.Linear(2, 2), nn.Linear(2, 2)
    for t in range(200):
        update_average(average, module, average_decay(t, max_decay=0.9))
    torch.testing.assert_close(average.weight, module.weight)


def test_precision_is_what_the_device_can_do():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) in ("no", "bf16")
    assert resolve_precision("auto", torch.device("mps")) == "no"
    assert resolve_precision("bf16", cpu) == "bf16"
    with pytest.raises(ValueError, match="'fp16' needs a GPU; choose auto, no or bf16"):
        resolve_precision("fp16", cpu)


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for step in range(steps):
        train_on(module, optimizer, step)
    return module, optimizer


def train_on(module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    module(torch.rand(4, 3, generator=seeded_generator(0, step))).square().sum().backward()
    optimizer.step()


def test_a_state_brings_back_weights_and_optimizer_to_the_bit(tmp_path):
    module, optimizer = trained(5)
    save_state(tmp_path, 5, optimizer=optimizer, network=module)
    other, other_optimizer = trained(0)
    state = latest_state(tmp_path)
    assert state
    assert load_state(state, optimizer=other_optimizer, network=other) == 5
    for each in ((module, optimizer), (other, other_optimizer)):
        train_on(*each, 5)
    assert torch.equal(module.weight, other.weight)


def test_only_the_newest_state_stays_and_it_is_plain_tensors_and_json(tmp_path):
    module, optimizer = trained(1)
    assert latest_state(tmp_path) is None
    for step in (8, 9, 10):
        save_state(tmp_path, step, optimizer=optimizer, network=module)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]
    files = {path.name for path in (tmp_path / "step_00000010").iterdir()}
    assert files == {"network.safetensors", "optimizer.safetensors", "state.json"}


def test_a_state_that_fails_while_it_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    module, optimizer = trained(1)
    save_state(tmp_path, 1, optimizer=optimizer, network=module)
    monkeypatch.setattr(json, "dumps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_state(tmp_path, 2, optimizer=optimizer, network=module)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_the_log_of_a_run_that_goes_on_drops_what_will_be_done_again(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": step / 2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log = RunLog(tmp_path, done=2)
    log.scalars(3, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


@dataclass
class Settings:
    lr: float = 1.0
    steps: int = 1
    where: Path = Path("a")


def test_a_run_goes_on_with_the_settings_it_was_begun_with(tmp_path):
    begin_run(tmp_path / "run", Settings(), free={"steps"})
    begin_run(tmp_path / "run", Settings(lr=2.0), free={"steps"})  # nothing was done with the first
    (tmp_path / "run/state/step_00000001").mkdir(parents=True)
    begin_run(tmp_path / "run", Settings(lr=2.0, steps=9), free={"steps"})
    with pytest.raises(ValueError, match=r"the run was begun with lr 2.0, not 3.0; go on with that, or choose another"):
        begin_run(tmp_path / "run", Settings(lr=3.0, steps=9), free={"steps"})
    assert (tmp_path / "run/config.yaml").read_text() == "lr: 2.0\nsteps: 9\nwhere: a\n"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "model"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert [path.name for path in target.iterdir()] == ["b"]


def test_what_is_written_whole_within_another_such_block_leaves_one_hidden_file_at_most(tmp_path):
    target = tmp_path / "x.txt"
    with atomic_file(target) as temporary:
        with atomic_file(temporary) as inner:
            inner.write_text("all of it")
            assert len(list(tmp_path.iterdir())) == 1
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"] and target.read_text() == "all of it"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x.json"
    with atomic_file(target) as temporary:
        temporary.write_text("1")
        assert temporary.suffix == ".json"
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert target.read_text() == "1"


def test_what_a_killed_process_left_is_cleared_away_and_a_living_one_keeps_its_own(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".x.{dead.pid}.part.json", f".x.{os.getppid()}.part.json", f".y.{dead.pid}.part.json"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".model.{dead.pid}.old").mkdir()  # killed between the two renames
    with atomic_file(tmp_path / "x.json") as temporary:
        temporary.write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model"):
        raise ZeroDivisionError
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f".x.{os.getppid()}.part.json", f".y.{dead.pid}.part.json", "model", "x.json"])
