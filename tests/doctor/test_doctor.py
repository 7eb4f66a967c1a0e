"""`diffaudio doctor`."""

import json
import os
import socket
import types
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model

from diffaudio.cli.main import main
from diffaudio.doctor import compute, libraries, storage
from diffaudio.doctor.model import check_model


def statuses(findings) -> dict[str, str]:
    return {finding.topic: finding.status for finding in findings}


def only(findings):
    (finding,) = findings
    return finding


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_command_lists_what_it_found_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError(111, "refused")))
    assert main(["doctor", "--no-generate", "--json", "--folder", str(tmp_path / "new" / "corpus")]) == 0
    findings = json.loads(capsys.readouterr().out)
    topics = {finding["topic"] for finding in findings}
    assert {"versions", "GPU", "CPUs", "CPU speed", "memory", "codecs", "disk", "writing", "hub"} <= topics
    hub = next(finding for finding in findings if finding["topic"] == "hub")
    assert hub["status"] == "note"
    assert "cannot be reached (refused)" in hub["text"]
    assert os.listdir(tmp_path) == []


def test_a_whole_model_makes_sound_and_a_damaged_one_is_missing(tmp_path, capsys):
    folder = write_tiny_model(tmp_path / "model")
    assert only(check_model(folder)).status == "ok"
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    finding = only(check_model(folder))
    assert finding.status == "missing"
    assert "unet" in finding.text
    assert main(["doctor", "--model", str(folder)]) == 2
    told = capsys.readouterr()
    assert "missing  model" in told.out
    assert "something is missing: model; see above" in told.err


def test_a_folder_that_cannot_be_written_to_is_missing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.tempfile, "TemporaryDirectory", refuse)
    found = statuses(storage.check_folder(tmp_path))
    assert found["writing"] == "missing"


def test_a_full_disk_and_a_file_system_without_locks_are_slow(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=10**8)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage)

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    assert statuses(storage.check_folder(tmp_path)) == {"disk": "slow", "locks": "slow", "writing": "ok"}


def test_more_threads_than_cpus_are_slow_and_fewer_are_noted(monkeypatch):
    monkeypatch.setattr(compute.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(compute.os, "cpu_count", lambda: 8)
    torch.set_num_threads(2)
    for cpus, expected in ((1, "slow"), (2, None), (4, "note")):
        monkeypatch.setattr(compute, "available_cpus", lambda cpus=cpus: cpus)
        assert statuses(compute.check_threads()).get("threads") == expected
    monkeypatch.setattr(compute.os, "getloadavg", lambda: (7.0, 0.0, 0.0))
    assert statuses(compute.check_threads())["load"] == "slow"


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(compute, "NVIDIA_DEVICE", tmp_path)
    finding = only(compute.check_gpus())
    assert finding.status == "slow"
    assert "cannot use" in finding.text
    monkeypatch.setattr(compute, "NVIDIA_DEVICE", tmp_path / "none")
    assert only(compute.check_gpus()).status == "note"


def test_bf16_that_is_slower_than_float32_is_slow_where_the_cpu_claims_it(monkeypatch):
    ticks = iter([0.0, 1.0, 0.0, 2.0])
    monkeypatch.setattr(compute.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    finding = only(compute.check_matrix_products(size=8, repeats=1))
    assert finding.status == "slow"
    assert "AMX" in finding.text


def test_little_memory_is_slow_and_a_cgroups_limit_counts(monkeypatch):
    monkeypatch.setattr(compute, "_cgroup_limit", lambda: 3e9)
    finding = only(compute.check_memory())
    assert finding.status == "slow"
    assert "of 3 GB" in finding.text


def test_a_missing_codec_is_named(monkeypatch):
    monkeypatch.setattr(libraries, "_has_codec", lambda name, mode: name != "opus")
    findings = [finding for finding in libraries.check_codecs() if finding.status == "missing"]
    assert only(findings).text.endswith("not opus")


def test_the_codecs_that_this_build_has_are_found():
    assert libraries._has_codec("h264", "r")
    assert not libraries._has_codec("no_such_codec", "r")
    assert not libraries._has_codec("libmp3lame_of_another_age", "w")


def test_being_offline_by_choice_asks_nobody(monkeypatch, tmp_path):
    from huggingface_hub import constants

    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "HF_HUB_OFFLINE" in only(storage.check_hub()).text


def test_few_open_files_are_slow(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert "256" in only(storage.check_open_files()).text
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    assert list(storage.check_open_files()) == []


def test_a_model_that_is_none_is_refused_before_anything_heavy(tmp_path, capsys):
    assert main(["doctor", "--model", str(tmp_path / "none")]) == 2
    assert "there is no such model folder" in capsys.readouterr().err
    assert not Path(tmp_path / "none").exists()
