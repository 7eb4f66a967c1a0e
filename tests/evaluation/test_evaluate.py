"""`diffaudio evaluate` on folders: sidecars, labels, formats, the report, and one clear line for whatever is wrong."""

import json
from pathlib import Path

import pytest
import torch
from fake_backbone import tones
from media import tone, write_media
from tiny_model import write_tiny_clip

from diffaudio.cli.main import main
from diffaudio.evaluation.report import read_report
from diffaudio.evaluation.sound_files import Texts, find_sounds, read_sounds, read_texts
from diffaudio.media.audio import write_audio
from diffaudio.models.tagger import Tagger

LABELS = [f"band {index}" for index in range(8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tagger and a CLIP that know nothing."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Tagger(LABELS, width=2, embedding_dim=8, name="tagger_tiny").eval().save_pretrained(folder / "tagger")
    write_tiny_clip(folder / "clip")
    return folder


@pytest.fixture
def evaluate(models, tmp_path, monkeypatch, capsys):
    """Run `diffaudio evaluate` in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        given = ["--backbone", str(models / "tagger"), "--clip", str(models / "clip"), "--device", "cpu"]
        code = main(["evaluate", *given, "--resamples", "20", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def write_folder(name, count, seed, *, sidecars=False):
    folder = Path(name)
    folder.mkdir()
    rows = ["file,label"]
    for index, sound in enumerate(tones(count, seed)):
        path = folder / f"{name}{index}.wav"
        write_audio(path, sound.waveform, sound.sample_rate)
        rows.append(f"{path.name},{sound.label}")
        if sidecars:
            path.with_suffix(".json").write_text(json.dumps({"prompt": sound.label, "seed": 1}))
    Path(f"{name}.csv").write_text("\n".join(rows))
    return folder


def test_a_folder_is_measured_against_recordings(evaluate):
    write_folder("made", 10, 1, sidecars=True)
    write_folder("real", 16, 0)
    code, printed, errors = evaluate("made", "--reference", "real", "--labels", "real.csv", "-o", "numbers.json")
    assert (code, errors) == (0, "")
    report = read_report(Path("numbers.json"))
    assert [(row.kind, row.name, row.sounds) for row in report.rows] == [
        ("evaluated", "made", 10), ("real", "real", 16), ("shuffled", "made", 10)
    ]  # fmt: skip
    evaluated, real, shuffled = ({metric.name for metric in row.metrics} for row in report.rows)
    assert {"fd_tagger_tiny", "kad_tagger_tiny", "kl_label_tagger_tiny", "accuracy_tagger_tiny"} <= evaluated & real
    assert {"clip_score_tiny_tagger_tiny", "silent", "loudness_lufs"} <= evaluated & real
    assert shuffled == {"kl_label_tagger_tiny", "accuracy_tagger_tiny", "clip_score_tiny_tagger_tiny"}
    assert (report.reference, report.labels, report.clip, report.resamples) == ("real", "real.csv", "tiny", 20)
    assert report.backbones[0].name == "tagger_tiny" and len(report.clip_checkpoint or "") == 64
    lines = printed.splitlines()
    assert (
        lines[0].split("  ")[-1].strip() == "shuffled (10 sounds)"
        and lines[-1] == "numbers.json, numbers.html: 10 sounds"
    )
    for name in evaluated:
        assert any(line.startswith(f"{name}  ") for line in lines)


def test_all_recordings_and_the_conventions_of_others_on_request(evaluate):
    write_folder("made", 10, 1, sidecars=True)
    write_folder("real", 16, 0)
    code, _, _ = evaluate("made", "--reference", "real", "--labels", "real.csv", "--no-real-row", "--conventions")
    assert code == 0
    report = read_report(Path("report.json"))
    assert [row.kind for row in report.rows] == ["evaluated", "shuffled"]
    row = report.rows[0]
    assert (row["fd_tagger_tiny"].n, row["fd_tagger_tiny"].reference_n) == (10, 16)
    assert row["inception_score_10_splits_tagger_tiny"].n == 10
    assert row["kad_kadtk_tagger_tiny"].value != row["kad_tagger_tiny"].value
    assert row["fd_inf_fadtk_tagger_tiny"].low is None
    reason = "not each sound has a recording of the same name in the reference"
    assert row.left_out["kl_softmax_audioldm_eval_tagger_tiny"] == reason


def test_any_sounds_without_anything_beside_them_are_checked(evaluate):
    write_folder("made", 3, 1)
    code, printed, _ = evaluate("made")
    assert code == 0
    report = read_report(Path("report.json"))
    assert [row.kind for row in report.rows] == ["evaluated", "shuffled"]
    assert {"silent", "clipped", "repeated", "loudness_lufs"} <= {metric.name for metric in report.rows[0].metrics}
    assert "left out: accuracy_tagger_tiny: no sound has a label, or a prompt, that is one of the classes" in printed
    assert report.rows[1].metrics == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["empty"], "empty: holds no sound; looked for .aac"),
        (["made", "--reference", "nowhere"], "nowhere: there is no such file or folder"),
        (["made", "--reference", "made"], "the reference has 3 recordings; give at least 12"),
        (["made", "--labels", "nowhere.csv"], "nowhere.csv: there is no such file or folder"),
        (["made", "--labels", "other.csv"], "other.csv: names none of the sounds; its column file has to hold their"),
        (["made", "-o", "report.txt"], "report.txt: name a .json file"),
        (["made", "--resamples", "5"], "--resamples is 5; an interval needs at least 20 draws"),
        (["broken"], "broken/noise.wav: cannot be read as a sound file"),
    ],
)
def test_errors_are_one_line_messages(evaluate, arguments, message):
    write_folder("made", 3, 1)
    Path("empty").mkdir()
    Path("other.csv").write_text("file,label\nelsewhere.wav,dog\n")
    Path("broken").mkdir()
    Path("broken/noise.wav").write_bytes(b"nothing")
    code, printed, errors = evaluate(*arguments)
    assert code == 2 and printed == "" and errors.count("\n") == 1
    assert message in errors


def test_sounds_and_videos_of_all_formats_are_found_in_order_and_hidden_ones_are_not(tmp_path):
    (tmp_path / "inner").mkdir()
    write_audio(tmp_path / "b.flac", torch.zeros(1, 800), 8000)
    write_audio(tmp_path / "inner/a.WAV", torch.zeros(2, 800), 8000)
    write_audio(tmp_path / ".hidden.wav", torch.zeros(1, 800), 8000)
    write_media(tmp_path / "a.mp4", sound=tone(0.5, 44100))
    (tmp_path / "notes.txt").write_text("no sound")
    files = find_sounds(tmp_path)
    assert [file.name for file in files] == ["a", "b", "inner/a"]
    sounds = list(read_sounds(files))
    assert [(len(sound.waveform), sound.sample_rate) for sound in sounds] == [(1, 44100), (1, 8000), (2, 8000)]


def test_what_a_sound_should_be_is_read_beside_it_and_a_table_wins(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_audio(tmp_path / f"{name}.wav", torch.zeros(1, 800), 8000)
    (tmp_path / "a.json").write_text('{"prompt": "a dog", "label": "dog"}')
    (tmp_path / "b.json").write_text('{"prompt": "rain", "seed": 3}')
    (tmp_path / "c.json").write_text('["another program\'s"]')
    (tmp_path / "table.csv").write_text("file,label\nb.mp4,wind\nd,sea\n")
    texts = read_texts(tmp_path / "table.csv")
    assert texts == {"b": Texts(None, "wind"), "d": Texts(None, "sea")}
    found = [file.texts for file in find_sounds(tmp_path, texts)]
    assert found == [Texts("a dog", "dog"), Texts("rain", "wind"), Texts(), Texts(None, "sea")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "its columns are label, name; wanted are file, and label or prompt"),
        ("file\na\n", "its columns are file; wanted are file, and label or prompt or both"),
        ("", "its columns are none; wanted are file"),
        ("file,label\n,dog\n", "line 2: names no file"),
        ("file,label\na.wav,dog\na.mp4,rain\n", "line 3: says something else of 'a' than a line before"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(text, message, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / "labels.csv")


def test_two_files_of_one_name_and_a_damaged_sidecar_are_refused(tmp_path):
    write_audio(tmp_path / "a.wav", torch.zeros(1, 800), 8000)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: is damaged"):
        find_sounds(tmp_path)
    (tmp_path / "a.json").unlink()
    write_audio(tmp_path / "a.flac", torch.zeros(1, 800), 8000)
    with pytest.raises(ValueError, match=r"a\.wav: has the name of a\.flac; keep one of the two"):
        find_sounds(tmp_path)
