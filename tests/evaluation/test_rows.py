"""From sounds to rows: what is good scores well, what is bad is caught, and each number says what it is of."""

from dataclasses import replace

import pytest
import torch
from fake_backbone import SAMPLE_RATE, BandBackbone, BandClap, tones

from diffaudio.evaluation.embed import Embedder, Sound
from diffaudio.evaluation.measure import Reference, Table
from diffaudio.evaluation.report import read_report, write_report
from diffaudio.evaluation.rows import evaluate_sounds, evaluated_row, make_report, real_row, shuffled_row

DISTANCES = ("fd", "fd_inf", "kad", "precision", "recall", "density", "coverage")


class Reader:
    """A CLIP that knows the bands' names."""

    name = "reader"

    def encode_text(self, texts):
        return BandClap().embed_text(texts)


@pytest.fixture(scope="module")
def embedder():
    return Embedder([BandBackbone()])


@pytest.fixture(scope="module")
def reference(embedder):
    return Reference(embedder.embed(tones(120, 0)))


@pytest.fixture(scope="module")
def good(embedder, reference):
    return evaluate_sounds(tones(24, 1), embedder, reference, name="good")


def values(row):
    return {metric.name: metric.value for metric in row.metrics}


def test_every_number_is_there_with_its_backbone_its_interval_and_its_counts(good):
    with_backbone = {f"{name}_bands" for name in (*DISTANCES, "kl_label", "inception_score", "accuracy", "diversity")}
    assert set(values(good)) == with_backbone | {"silent", "clipped", "repeated", "loudness_lufs"}
    for metric in good.metrics:
        assert metric.low is not None and metric.low <= metric.value <= metric.high, metric
    assert good["fd_bands"].n == 24 and good["fd_bands"].reference_n == 120
    assert good["accuracy_bands"].reference_n is None and good["diversity_bands"].n == 8
    methods = {name: good[name].method for name in ("fd_bands", "accuracy_bands", "kl_label_bands")}
    assert methods == {"fd_bands": "half-samples", "accuracy_bands": "wilson", "kl_label_bands": "bootstrap"}
    assert (good.kind, good.sounds, good.seconds, good.left_out) == ("evaluated", 24, 24.0, {})


def test_the_same_sounds_with_the_same_seed_give_the_same_row(embedder, reference, good):
    assert evaluate_sounds(tones(24, 1), embedder, reference, name="good") == good
    assert evaluate_sounds(tones(24, 1), embedder, reference, name="good", seed=1) != good


def test_the_reference_against_itself_has_distance_0_and_the_unbiased_estimators_kernel_distance(embedder, reference):
    row = evaluated_row(reference.recordings, reference, name="itself", resamples=20)
    assert row["fd_bands"].value == pytest.approx(0, abs=1e-9)
    mean_within = reference.fits["bands"].kernel.mean
    assert row["kad_bands"].value == pytest.approx(-200 * (1 - mean_within) / 120)
    assert row["kl_bands"].value == pytest.approx(0, abs=1e-9)
    shares = {name: row[f"{name}_bands"].value for name in ("precision", "recall", "coverage", "accuracy")}
    assert shares == {"precision": 1, "recall": 1, "coverage": 1, "accuracy": 1}


def noise(index, gain=0.2):
    waveform = gain * torch.randn(1, SAMPLE_RATE, generator=torch.Generator().manual_seed(index))
    return waveform


BAD = {
    "silence": (lambda index, original: torch.zeros(1, SAMPLE_RATE), {"silent", "repeated"}),
    "noise": (lambda index, original: noise(index), {"accuracy_bands", "inception_score_bands", "precision_bands"}),
    "one clip for all": (lambda index, original: noise(0) + tones(1, 1)[0].waveform, {"repeated", "diversity_bands"}),
    "clipping": (lambda index, original: (5 * original).clamp(-1, 1), {"clipped"}),
    "too soft": (lambda index, original: original / 1000, {"silent"}),
}
BETTER_IS_MORE = ("accuracy", "coverage", "diversity", "inception_score", "precision", "recall")


@pytest.mark.parametrize("kind", BAD)
def test_what_is_bad_is_caught_beyond_the_interval_of_what_is_good(kind, embedder, reference, good):
    spoil, caught_by = BAD[kind]
    originals = tones(24, 1)
    spoilt = [replace(sound, waveform=spoil(index, sound.waveform)) for index, sound in enumerate(originals)]
    bad = evaluate_sounds(spoilt, embedder, reference, name=kind)
    caught = set()
    for metric in good.metrics:
        if metric.name in values(bad) and metric.name.startswith(BETTER_IS_MORE):
            caught |= {metric.name} if bad[metric.name].value < metric.low else set()
        elif metric.name in values(bad) and metric.name != "loudness_lufs":
            caught |= {metric.name} if bad[metric.name].value > metric.high else set()
    assert caught_by <= caught, caught
    if kind in ("silence", "noise", "one clip for all"):
        assert {"fd_bands", "kad_bands"} <= caught


def test_the_real_row_has_as_many_recordings_as_the_evaluated_one_sounds(embedder, reference):
    embedded = embedder.embed(tones(24, 1))
    row = real_row(reference, like=embedded, name="real")
    assert (row.kind, row.sounds) == ("real", 120)
    assert (row["fd_bands"].n, row["fd_bands"].reference_n) == (24, 96)
    assert (row["kl_label_bands"].n, row["inception_score_bands"].n, row["accuracy_bands"].n) == (24, 24, 120)
    assert row["kad_bands"].low < 0 and row["coverage_bands"].value > 0.5
    many = real_row(reference, like=embedder.embed(tones(200, 1)), name="real")
    assert (many["fd_bands"].n, many["fd_bands"].reference_n) == (60, 60)


def test_the_real_rows_recordings_have_the_labels_of_the_evaluated_sounds(embedder, reference):
    """All of band 0: the real row is then as far from the other recordings as the evaluated sounds are."""
    embedded = embedder.embed([sound for sound in tones(80, 1) if sound.label == "band 0"])
    row, real = evaluated_row(embedded, reference, name="e"), real_row(reference, like=embedded, name="r")
    assert real["fd_bands"].value == pytest.approx(row["fd_bands"].value, rel=0.3)
    assert real["inception_score_bands"].value == pytest.approx(1, abs=0.01)


def test_the_shuffled_row_is_at_chance_and_has_no_number_that_shuffling_leaves_alone(embedder, reference):
    embedded = embedder.embed(tones(120, 1))
    row = shuffled_row(embedded, reference, name="shuffled")
    assert set(values(row)) == {"kl_label_bands", "accuracy_bands"}
    assert row["accuracy_bands"].low < 1 / 8 < row["accuracy_bands"].high
    assert row["kl_label_bands"].value > 1


def test_likeness_to_the_text_by_clap_and_by_clip_through_the_classes(reference):
    embedder = Embedder([BandClap("clap_bands")], clip=Reader(), clip_name="reader")
    embedded = embedder.embed(tones(24, 1, labelled="prompt"))
    row, dealt = evaluated_row(embedded, name="e"), shuffled_row(embedded, name="s")
    for name in ("clap_score_clap_bands", "clip_score_reader_clap_bands"):
        assert row[name].n == 24 and row[name].low > dealt[name].high
    assert row["clip_score_reader_clap_bands"].value == pytest.approx(1, abs=1e-3)
    assert not {f"{name}_clap_bands" for name in DISTANCES} & set(values(row))


def test_a_text_is_read_once_however_many_sounds_have_it():
    read = []

    class Counting(BandClap):
        def embed_text(self, texts):
            read.extend(texts)
            return super().embed_text(texts)

    embedder = Embedder([Counting("clap_bands")], batch_size=5)
    embedder.embed(tones(24, 1, labelled="prompt"))
    embedder.embed(tones(24, 2))
    assert sorted(read) == [f"band {index}" for index in range(8)]


def test_a_prompt_that_names_a_class_counts_as_label_and_a_label_comes_first(embedder):
    sounds = tones(24, 1, labelled="prompt")
    assert evaluate_sounds(sounds, embedder, name="p")["accuracy_bands"].value == 1
    wrong = [replace(sound, label="band 7") for sound in sounds]
    assert evaluate_sounds(wrong, embedder, name="p")["accuracy_bands"].value == 3 / 24


def test_sounds_of_the_names_of_recordings_are_paired_with_them(embedder, reference):
    sounds = [replace(sound, label=None) for sound in tones(24, 0)]
    row = evaluate_sounds(sounds, embedder, reference, name="paired")
    assert row["kl_bands"].value == pytest.approx(0, abs=1e-9) and row["kl_bands"].n == 24
    dealt = shuffled_row(embedder.embed(sounds), reference, name="s")
    assert dealt["kl_bands"].value > 1


def test_what_cannot_be_had_is_left_out_with_the_reason(embedder, reference):
    bare = [replace(sound, label=None) for sound in tones(5, 1)]
    row = evaluate_sounds(bare, embedder, reference, name="bare")
    assert row.left_out == {
        "fd_inf_bands": "5 sounds are too few; 8 are needed",
        **{f"{name}_bands": "5 sounds are too few; 6 are needed" for name in DISTANCES[3:]},
        "kl_bands": "neither has each sound a recording of the same name in the reference, nor any of the same label",
        "accuracy_bands": "no sound has a label, or a prompt, that is one of the classes",
        "diversity_bands": "no prompt has more than one take",
    }
    assert evaluate_sounds(bare[:1], embedder, reference, name="one").left_out["fd_bands"] == (
        "1 sounds are too few; 2 are needed"
    )
    silent = [replace(bare[0], waveform=torch.zeros(1, SAMPLE_RATE))]
    left_out = evaluate_sounds(silent, embedder, name="silent").left_out
    assert left_out["loudness_lufs"] == "all sounds are silent, or shorter than 0.4 s"


def test_fewer_sounds_than_dimensions_come_with_a_warning(embedder, reference):
    (warning,) = evaluate_sounds(tones(8, 1), embedder, reference, name="few").warnings
    assert warning.startswith("fd_bands: 8 embeddings of 8 dimensions leave the covariance singular")
    assert evaluate_sounds(tones(9, 1), embedder, reference, name="few").warnings == []


def test_windows_of_one_sound_go_together():
    """A backbone that hears piece by piece: resampling draws sounds, and distances count windows."""

    class Windowed(BandBackbone):
        def embed(self, waveforms):
            found = [super(Windowed, self).embed(list(waveform.chunk(4)))[0] for waveform in waveforms]
            return [torch.cat(windows) for windows in found], None

    embedder = Embedder([Windowed("pieces")])
    reference = Reference(embedder.embed(tones(20, 0)))
    assert len(reference.fits["pieces"].balls.embeddings) == 80
    row = evaluate_sounds(tones(16, 1, takes=2), embedder, reference, name="w")
    assert row["fd_pieces"].n == 16 and row["diversity_pieces"].n == 8
    assert "accuracy_pieces" not in values(row)


def test_a_metric_does_not_depend_on_which_others_are_asked_for(good, embedder):
    alone = evaluate_sounds(tones(24, 1), embedder, name="alone")
    assert alone["inception_score_bands"] == good["inception_score_bands"]
    assert Table(0, 20).generator("a").initial_seed() != Table(0, 20).generator("b").initial_seed()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda embedder: embedder.embed([]), "there are no sounds to evaluate"),
        (
            lambda embedder: embedder.embed([Sound(torch.full((1, 9), float("nan")), 8000, "broken")]),
            "broken: the sound is empty or damaged",
        ),
        (lambda embedder: embedder.embed([Sound(torch.zeros(1, 0), 8000, "empty")]), "empty: the sound is empty or"),
        (lambda embedder: Reference(embedder.embed(tones(11, 0))), "the reference has 11 recordings; give at least 12"),
        (
            lambda embedder: Embedder([BandBackbone(), BandBackbone()]),
            "two backbones have one name .bands, bands.",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(call, message, embedder):
    with pytest.raises(ValueError, match=message):
        call(embedder)


def test_stereo_and_other_rates_are_brought_to_the_backbones(embedder):
    mono = tones(2, 1)[0]
    stereo = replace(mono, waveform=mono.waveform.expand(2, -1))
    doubled = replace(mono, waveform=mono.waveform.repeat_interleave(2, dim=1), sample_rate=2 * SAMPLE_RATE)
    embedded = embedder.embed([mono, stereo, doubled])
    assert torch.allclose(embedded.embeddings["bands"][0], embedded.embeddings["bands"][1])
    assert embedded.logits["bands"].argmax(dim=1).tolist() == [0, 0, 0]
    assert embedded.seconds == [1, 1, 1]


def test_a_report_is_written_and_read_back(good, embedder, tmp_path):
    report = make_report(embedder, [good], seed=3, resamples=50, reference="recordings", labels="labels.csv")
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json") == report
    (card,) = report.backbones
    assert (card.name, card.checkpoint, card.sample_rate, card.embedding_dim) == ("bands", "0" * 64, 8000, 8)
    assert (report.seed, report.resamples, report.confidence, report.clip) == (3, 50, 0.95, None)


def test_a_row_is_flat_for_tables(good):
    columns = good.columns()
    accuracy = good["accuracy_bands"]
    assert columns["accuracy_bands"] == 1 and columns["accuracy_bands_low"] == accuracy.low
    assert columns["accuracy_bands_high"] == 1 and columns["accuracy_bands_n"] == 24
    with pytest.raises(KeyError):
        good["nothing"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such report"),
        ("[]", "is no report of `diffaudio evaluate`"),
        ('{"format": "diffaudio-report", "version": 9}', "is 'diffaudio-report' version 9; this diffaudio reads"),
        ('{"format": "diffaudio-report", "version": 1, "rows": []}', "is damaged"),
    ],
)
def test_what_is_no_report_is_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path / "report.json")
