"""From sounds to rows: what is good scores well, what is bad is caught, and each number says what it is of."""

import math
from dataclasses import replace

import pytest
import torch
from fake_backbone import SAMPLE_RATE, BandBackbone, BandClap, tones

from diffaudio.evaluation.embed import Embedder, Sound
from diffaudio.evaluation.reference import Reference, split_reference
from diffaudio.evaluation.report import read_report, write_report
from diffaudio.evaluation.rows import evaluated_row, make_report, real_row, shuffled_row
from diffaudio.evaluation.table import Table
from diffaudio.metrics.kernel import kernel_distance

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
    return evaluate(tones(24, 1), embedder, reference, name="good")


def evaluate(sounds, embedder, reference=None, **options):
    return evaluated_row(embedder.embed(sounds), reference, **options)


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
    assert methods == {"fd_bands": "jackknife", "accuracy_bands": "wilson", "kl_label_bands": "bootstrap"}
    assert (good.kind, good.sounds, good.seconds, good.left_out) == ("evaluated", 24, 24.0, {})


def test_the_same_sounds_with_the_same_seed_give_the_same_row(embedder, reference, good):
    assert evaluate(tones(24, 1), embedder, reference, name="good") == good
    assert evaluate(tones(24, 1), embedder, reference, name="good", seed=1) != good


def test_the_reference_against_itself_has_distance_0_and_the_unbiased_estimators_kernel_distance(embedder, reference):
    row = evaluated_row(reference.everything, reference, name="itself", resamples=20)
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
    bad = evaluate(spoilt, embedder, reference, name=kind)
    caught = set()
    for metric in good.metrics:
        if metric.name in values(bad) and metric.name.startswith(BETTER_IS_MORE):
            caught |= {metric.name} if bad[metric.name].value < metric.low else set()
        elif metric.name in values(bad) and metric.name != "loudness_lufs":
            caught |= {metric.name} if bad[metric.name].value > metric.high else set()
    assert caught_by <= caught, caught
    if kind in ("silence", "noise", "one clip for all"):
        assert {"fd_bands", "kad_bands"} <= caught


def test_the_real_row_has_as_many_recordings_as_there_are_sounds_and_the_same_reference(embedder):
    sounds, recordings = embedder.embed(tones(24, 1)), embedder.embed(tones(120, 0))
    reference = split_reference(recordings, sounds.wanted(), seed=0)
    row, real = evaluated_row(sounds, reference, name="e"), real_row(reference, name="real")
    assert (real.kind, real.sounds) == ("real", 120)
    of_both = [name for name in values(real) if name.startswith((*DISTANCES, "kl_label", "inception_score"))]
    assert len(of_both) == 9
    for name in of_both:
        assert (row[name].n, row[name].reference_n) == (real[name].n, real[name].reference_n)
    assert (real["fd_bands"].n, real["fd_bands"].reference_n, real["accuracy_bands"].n) == (24, 96, 120)
    assert real["kad_bands"].low < 0 and real["coverage_bands"].value > 0.5


def test_where_recordings_are_few_all_rows_take_as_few_sounds(embedder):
    sounds, recordings = embedder.embed(tones(200, 1)), embedder.embed(tones(120, 0))
    reference = split_reference(recordings, sounds.wanted(), seed=0)
    row, real = evaluated_row(sounds, reference, name="e"), real_row(reference, name="real")
    for each in (row, real):
        assert (each["fd_bands"].n, each["fd_bands"].reference_n, each["inception_score_bands"].n) == (60, 60, 60)
    assert row["accuracy_bands"].n == 200
    assert row.warnings[0].startswith("distances and inception score take 60 of the 200 sounds, for there are 120")
    everything = evaluated_row(sounds, Reference(recordings), name="e")
    assert (everything["fd_bands"].n, everything["fd_bands"].reference_n) == (200, 120)


def test_sounds_from_the_distribution_of_the_recordings_score_like_the_real_row(embedder):
    """Over many draws the two rows have the same mean, for no row has a larger set or another reference."""
    differences = {"fd_bands": [], "kad_bands": [], "coverage_bands": []}
    for seed in range(8):
        sounds, recordings = embedder.embed(tones(24, 100 + seed)), embedder.embed(tones(64, 200 + seed))
        reference = split_reference(recordings, sounds.wanted(), seed=seed)
        row = evaluated_row(sounds, reference, name="e", resamples=20)
        real = real_row(reference, name="r", resamples=20)
        for name, of_seed in differences.items():
            of_seed.append(row[name].value - real[name].value)
    for name, of_seed in differences.items():
        assert abs(sum(of_seed) / 8) < 3 * float(torch.tensor(of_seed).std()) / 8**0.5, name


def test_the_real_rows_recordings_have_the_labels_of_the_evaluated_sounds(embedder):
    """All of band 0: the real row is then as far from the other recordings as the evaluated sounds are."""
    sounds = embedder.embed([sound for sound in tones(80, 1) if sound.label == "band 0"])
    reference = split_reference(embedder.embed(tones(120, 0)), sounds.wanted(), seed=0)
    assert reference.held_out.labels == ["band 0"] * 10
    row, real = evaluated_row(sounds, reference, name="e"), real_row(reference, name="r")
    assert real["fd_bands"].value == pytest.approx(row["fd_bands"].value, rel=0.3)
    assert real["inception_score_bands"].value == pytest.approx(1, abs=0.01)


def test_prompts_are_matched_to_the_labels_of_recordings_by_their_words(embedder):
    sounds = embedder.embed([replace(sound, label=None, prompt="a tone of Band 3") for sound in tones(6, 1)])
    reference = split_reference(embedder.embed(tones(120, 0)), sounds.wanted(), seed=0)
    assert reference.held_out.labels == ["band 3"] * 6


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
    assert evaluate(sounds, embedder, name="p")["accuracy_bands"].value == 1
    wrong = [replace(sound, label="band 7") for sound in sounds]
    assert evaluate(wrong, embedder, name="p")["accuracy_bands"].value == 3 / 24


def test_a_sound_that_an_open_set_tagger_takes_for_none_of_its_kinds_counts_as_wrong():
    class OpenSet(BandBackbone):
        def embed(self, waveforms):
            embeddings, logits = super().embed(waveforms)
            none = torch.tensor([[100.0 if index % 2 else -100.0] for index in range(len(waveforms))])
            return embeddings, torch.cat([logits, none.to(logits)], dim=1)

    backbone = OpenSet()
    backbone.labels = [*backbone.labels, "none of these"]
    row = evaluated_row(Embedder([backbone]).embed(tones(8, 0)), name="x", resamples=20)
    assert (row["accuracy_bands"].value, row["accuracy_bands"].n) == (0.5, 8)


def test_sounds_of_the_names_of_recordings_are_paired_with_them(embedder, reference):
    sounds = [replace(sound, label=None) for sound in tones(24, 0)]
    row = evaluate(sounds, embedder, reference, name="paired")
    assert row["kl_bands"].value == pytest.approx(0, abs=1e-9) and row["kl_bands"].n == 24
    assert "kl_label_bands" not in values(row)
    dealt = shuffled_row(embedder.embed(sounds), reference, name="s")
    assert dealt["kl_bands"].value > 1


def test_what_cannot_be_had_is_left_out_with_the_reason(embedder, reference):
    bare = [replace(sound, label=None) for sound in tones(5, 1)]
    row = evaluate(bare, embedder, reference, name="bare")
    assert row.left_out == {
        "fd_inf_bands": "5 sounds are too few; 8 are needed",
        **{f"{name}_bands": "5 sounds are too few; 6 are needed" for name in DISTANCES[3:]},
        "kl_bands": "neither has each sound a recording of the same name in the reference, nor any of the same label",
        "accuracy_bands": "no sound has a label, or a prompt, that is one of the classes",
        "diversity_bands": "no prompt has more than one take",
    }
    assert evaluate(bare[:1], embedder, reference, name="one").left_out["fd_bands"] == (
        "1 sounds are too few; 2 are needed"
    )
    silent = [replace(bare[0], waveform=torch.zeros(1, SAMPLE_RATE))]
    left_out = evaluate(silent, embedder, name="silent").left_out
    assert left_out["loudness_lufs"] == "all sounds are silent, or shorter than 0.4 s"


def test_fewer_sounds_than_dimensions_come_with_a_warning(embedder, reference):
    (warning,) = evaluate(tones(8, 1), embedder, reference, name="few").warnings
    assert warning.startswith("fd_bands: 8 embeddings of 8 dimensions leave the covariance singular")
    assert evaluate(tones(9, 1), embedder, reference, name="few").warnings == []


class FourWindows(BandBackbone):
    """Takes every quarter of a sound by itself."""

    def embed(self, waveforms):
        quarters = [super(FourWindows, self).embed(list(waveform.chunk(4)))[0] for waveform in waveforms]
        return [torch.cat(windows) for windows in quarters], None


def test_windows_of_one_sound_go_together():
    embedder = Embedder([FourWindows("pieces")])
    reference = Reference(embedder.embed(tones(20, 0)))
    assert len(reference.fits["pieces"].balls.embeddings) == 20
    row = evaluate(tones(16, 1, takes=2), embedder, reference, name="w")
    assert row["fd_pieces"].n == 16 and row["diversity_pieces"].n == 8
    assert "accuracy_pieces" not in values(row)


def windowed(num_sounds, seed, *, windows=5, dim=8):
    """Embeddings as of a backbone with several windows: those of one sound are alike, sounds are independent."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_sounds, 1, dim, generator=generator, dtype=torch.float64)
    spread = 0.3 * torch.randn(num_sounds, windows, dim, generator=generator, dtype=torch.float64)
    sounds = tones(1, 0) * num_sounds
    one = Embedder([BandBackbone("pieces")]).embed(sounds)
    names = [f"{seed}-{index}" for index in range(num_sounds)]
    return replace(one, names=names, embeddings={"pieces": list(centres + spread)}, logits={}, classes={})


def test_equal_distributions_have_no_distance_however_many_windows_a_sound_has():
    found = {name: [] for name in ("kad_pieces", "coverage_pieces", "fd_pieces", "fd_inf_pieces")}
    for seed in range(6):
        row = evaluated_row(windowed(40, seed), Reference(windowed(160, 900 + seed)), name="e", resamples=20)
        for name, of_seed in found.items():
            of_seed.append(row[name].value)
    mean = {name: sum(of_seed) / 6 for name, of_seed in found.items()}
    kad = torch.tensor(found["kad_pieces"])
    assert abs(mean["kad_pieces"]) < 3 * float(kad.std()) / 6**0.5
    means = [
        torch.stack([each.mean(dim=0) for each in windowed(*of).embeddings["pieces"]]) for of in ((40, 5), (160, 905))
    ]
    assert found["kad_pieces"][5] == pytest.approx(kernel_distance(*means))
    # Naeem et al. 2020, sec. 3.2, for other sizes: the 5 nearest of 159 recordings and 40 sounds are all recordings
    expected = 1 - math.prod((159 - place) / (199 - place) for place in range(5))
    assert mean["coverage_pieces"] == pytest.approx(expected, abs=0.04)
    assert abs(mean["fd_inf_pieces"]) < 0.5 * mean["fd_pieces"]


def test_a_metric_does_not_depend_on_which_others_are_asked_for(good, embedder):
    alone = evaluate(tones(24, 1), embedder, name="alone")
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
