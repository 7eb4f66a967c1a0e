import json

import pytest
import torch
from torch import nn

from diffaudio.errors import UserError
from diffaudio.seeding import seeded_generator
from diffaudio.training.resume import latest_state, resume, save_state


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


def test_a_state_restores_weights_and_optimizer_to_the_bit(tmp_path):
    module, optimizer = trained(5)
    save_state(tmp_path, 5, optimizer=optimizer, network=module)
    other, other_optimizer = trained(0)
    assert resume(tmp_path, optimizer=other_optimizer, network=other) == 5
    for each in ((module, optimizer), (other, other_optimizer)):
        train_on(*each, 5)
    assert torch.equal(module.weight, other.weight)


def test_only_the_newest_state_stays_and_it_contains_only_tensors_and_json(tmp_path):
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


def test_the_requested_number_of_states_is_kept_and_those_of_repeated_steps_are_removed(tmp_path):
    module, optimizer = trained(1)
    for step in (2, 4, 6, 8, 7):  # 8 was damaged, or thrown away
        save_state(tmp_path, step, max_states=3, optimizer=optimizer, network=module)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000004", "step_00000006", "step_00000007"]


def damage(file, how):
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif how == "one bit":
        content = bytearray(file.read_bytes())
        content[-1 if file.suffix == ".safetensors" else content.index(b"sha256") + 20] ^= 1
        file.write_bytes(content)
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(b"\xff\x00garbage" * 20)


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "garbage", "one bit"])
@pytest.mark.parametrize("name", ["network.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_state_is_named_and_the_one_before_is_taken(tmp_path, caplog, name, how):
    if name == "state.json" and how == "one bit":
        pytest.skip("names the file whose checksum it changed")
    for step in (1, 2):
        module, optimizer = trained(step)
        save_state(tmp_path, step, max_states=2, optimizer=optimizer, network=module)
    damage(tmp_path / "step_00000002" / name, how)
    other, other_optimizer = trained(0)
    assert resume(tmp_path, optimizer=other_optimizer, network=other) == 1
    assert f"step_00000002/{name} is damaged" in caplog.text and caplog.text.count("\n") == 1
    assert torch.equal(other.weight, trained(1)[0].weight)
    damage(tmp_path / "step_00000001" / name, how)
    with pytest.raises(UserError, match=f"step_00000001/{name} is damaged .*; there is no other state"):
        resume(tmp_path, optimizer=other_optimizer, network=other)


def test_a_state_of_other_weights_is_damaged(tmp_path):
    module, optimizer = trained(1)
    save_state(tmp_path, 1, optimizer=optimizer, network=module)
    other = nn.Linear(3, 4)
    with pytest.raises(UserError, match=r"network.safetensors is damaged \(.*size mismatch"):
        resume(tmp_path, network=other)
    with pytest.raises(UserError, match=r"optimizer.safetensors is damaged \(.*has shape \(3, 3\), not \(4, 3\)"):
        resume(tmp_path, optimizer=torch.optim.AdamW(other.parameters()))
    (tmp_path / "step_00000001").rename(tmp_path / "step_00000009")
    with pytest.raises(UserError, match=r"state.json is damaged \(it is of another step\)"):
        resume(tmp_path, network=module)


def test_another_number_of_processes_is_said(tmp_path, caplog):
    module, _ = trained(1)
    save_state(tmp_path, 1, num_processes=2, network=module)
    assert resume(tmp_path, num_processes=2, network=module) == 1 and not caplog.text
    assert resume(tmp_path, num_processes=1, network=module) == 1
    assert "saved by 2 processes, 1 go on: batches and what is drawn for them stay the same" in caplog.text


def test_a_changed_tensor_is_found_by_its_checksum_and_states_without_checksums_are_read(tmp_path):
    module, optimizer = trained(1)
    save_state(tmp_path, 1, optimizer=optimizer, network=module)
    damage(tmp_path / "step_00000001/network.safetensors", "one bit")
    with pytest.raises(UserError, match=r"network.safetensors is damaged \(its checksum is another than"):
        resume(tmp_path, network=module)
    state = tmp_path / "step_00000001/state.json"
    content = json.loads(state.read_text())
    del content["sha256"]
    state.write_text(json.dumps(content))
    assert resume(tmp_path, network=module) == 1


def test_a_part_that_an_earlier_version_did_not_save_begins_anew_and_one_that_is_lost_does_not(tmp_path):
    module, optimizer = trained(2)
    save_state(tmp_path, 2, optimizer=optimizer, network=module)
    counts = nn.Linear(1, 1)
    before = counts.weight.clone()
    assert resume(tmp_path, newer=["counts"], optimizer=optimizer, network=module, counts=counts) == 2
    assert torch.equal(counts.weight, before)
    save_state(tmp_path, 3, optimizer=optimizer, network=module, counts=counts)
    (tmp_path / "step_00000003/counts.safetensors").unlink()
    with pytest.raises(UserError, match=r"counts.safetensors is damaged \(it is missing\)"):
        resume(tmp_path, newer=["counts"], optimizer=optimizer, network=module, counts=counts)
