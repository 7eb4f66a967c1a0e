import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator, DistributedType

from diffaudio.errors import UserError
from diffaudio.training.run_folder import check_data_parallel, local_batch_size, open_run


@dataclass
class Settings:
    lr: float = 1.0
    steps: int = 1
    where: Path = Path("a")


def begin(folder: Path, settings: Settings) -> None:
    with open_run(folder, settings, Accelerator(), changeable={"steps"}):
        pass


def test_a_run_resumes_with_the_settings_it_was_started_with(tmp_path):
    begin(tmp_path / "run", Settings())
    begin(tmp_path / "run", Settings(lr=2.0))  # nothing was done with the first
    (tmp_path / "run/state/step_00000001").mkdir(parents=True)
    begin(tmp_path / "run", Settings(lr=2.0, steps=9))
    with pytest.raises(ValueError, match=r"the run was begun with lr 2.0, not 3.0; go on with that, or choose another"):
        begin(tmp_path / "run", Settings(lr=3.0, steps=9))
    assert (tmp_path / "run/config.yaml").read_text() == "lr: 2.0\nsteps: 9\nwhere: a\n"


def test_a_run_of_a_version_that_lacked_a_setting_resumes_with_its_default(tmp_path):
    begin(tmp_path / "run", Settings())
    (tmp_path / "run/state/step_00000001").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("steps: 1\nwhere: a\n")
    with pytest.raises(ValueError, match=r"the run was begun with lr None, not 2.0"):
        begin(tmp_path / "run", Settings(lr=2.0))
    begin(tmp_path / "run", Settings())
    assert (tmp_path / "run/config.yaml").read_text() == "lr: 1.0\nsteps: 1\nwhere: a\n"


@pytest.mark.parametrize("content", [b"lr: [", b"- 1\n", b"", b"\xff\xfe\x00", b"7"])
def test_damaged_settings_of_a_run_are_named(tmp_path, content):
    (tmp_path / "run/state/step_00000001").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"run/config.yaml is damaged: it holds no settings"):
        begin(tmp_path / "run", Settings())


def test_two_trainings_into_one_folder_are_refused(tmp_path):
    message = f"`training`, process {os.getpid()} on .* is writing to this folder"
    with open_run(tmp_path / "run", Settings(), Accelerator(), changeable=()), pytest.raises(UserError, match=message):
        begin(tmp_path / "run", Settings())
    begin(tmp_path / "run", Settings())


def test_what_an_interrupted_process_left_half_written_is_removed(tmp_path):
    for path in ("run/.model.1.part/unet", "run/samples/.step_00000002.1.part", "run/state/.step_00000002.1.part"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "run/.metrics.1.part.jsonl").write_text("half")
    (tmp_path / "run/samples/step_00000001").mkdir()
    begin(tmp_path / "run", Settings())
    left = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*"))
    assert left == [".lock", "config.yaml", "samples", "samples/step_00000001", "state"]


def test_a_batch_is_shared_by_the_processes():
    assert [local_batch_size(12, number) for number in (1, 2, 3)] == [12, 6, 4]
    with pytest.raises(UserError, match="train.batch_size 12 .* cannot be divided among 5; choose a multiple of 5"):
        local_batch_size(12, 5)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_configurations_that_shard_weights_are_refused(kind):
    with pytest.raises(UserError, match=rf"configured for {kind.value}, which shards weights: .*; choose MULTI_GPU"):
        check_data_parallel(SimpleNamespace(distributed_type=kind))
    for whole in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        check_data_parallel(SimpleNamespace(distributed_type=whole))
