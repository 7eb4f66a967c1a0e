from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from diffaudio.config import Count, Share, parse, to_yaml


@dataclass
class Train:
    """Settings.

    Attributes:
        lr: how fast.
    """

    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.99)
    objective: Literal["flow", "v"] = "flow"
    widths: tuple[int, ...] = (1, 2)
    precision: Literal["auto", "no"] = "auto"
    steps: Count = 3
    dropout: Share = 0.1


@dataclass
class Config:
    """Settings of a test."""

    out: Path
    clip: Path | None = None
    prompts: list[str] = field(default_factory=list)
    train: Train = field(default_factory=Train)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "a.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return name

    return write


def test_values_have_the_type_that_the_dataclass_says_whatever_yaml_makes_of_them(write):
    name = write("out: 7\nclip:\nprompts: [no, 1e3, 'a, b']\ntrain: {lr: 5e-4, betas: [8e-1, 1], precision: no}\n")
    config = parse(Config, ["--config", name])
    train = Train(lr=5e-4, betas=(0.8, 1.0), precision="no")
    assert config == Config(Path("7"), None, ["no", "1e3", "a, b"], train)
    assert isinstance(config.train.betas[1], float)
    assert type(config.train.steps) is int


def test_what_is_not_given_keeps_its_default():
    assert parse(Config, ["--out", "x"]) == Config(Path("x"))


def test_the_command_line_overrides_the_file_which_overrides_its_base(write):
    write("out: base\ntrain: {lr: 1, steps: 1, widths: [5]}\n", "base/one.yaml")
    write("base: ../base/one.yaml\ntrain: {lr: 2, steps: 2}\n", "mini/two.yaml")
    config = parse(Config, ["--config", "mini/two.yaml", "--train.lr=3", "--clip", "here"])
    assert config == Config(Path("base"), Path("here"), [], Train(lr=3.0, steps=2, widths=(5,)))


def test_resolved_settings_come_back_the_same(write):
    config = Config(Path("a b"), None, ["no", "x: y", "ü"], Train(lr=1e-5, widths=(), objective="v"))
    assert parse(Config, ["--config", write(to_yaml(config))]) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lrr: 3}", "a.yaml: train: unknown key 'lrr'; did you mean 'lr'?"),
        ("trian: {}", "a.yaml: unknown key 'trian'; did you mean 'train'?"),
        ("zzz: 1", "a.yaml: unknown key 'zzz'; choose from out, clip, prompts, train"),
        ("train: {lr: fast}", "a.yaml: train.lr: expected a number, got 'fast'"),
        ("train: {steps: 2.5}", "a.yaml: train.steps: expected a whole number above 0, got '2.5'"),
        ("train: {steps: 0}", "a.yaml: train.steps: expected a whole number above 0, got '0'"),
        ("train: {dropout: 1.5}", "a.yaml: train.dropout: expected a number from 0 to 1, got '1.5'"),
        ("train: {objective: w}", "a.yaml: train.objective: expected one of 'flow', 'v', got 'w'"),
        ("train: 3", "a.yaml: train: expected a section of settings, got '3'"),
        ("clip: {a: 3}", "a.yaml: clip: expected a value, got a section of settings"),
        ("- a", "a.yaml: expected settings by name, such as 'seed: 0'"),
        ("base: none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("base: a.yaml", "a.yaml: base: the files name one another in a circle"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(write, text, message):
    with pytest.raises(ValueError) as error:
        parse(Config, ["--config", write(text), "--out", "x"])
    assert str(error.value) == message


@pytest.mark.parametrize(("text", "part"), [("a: [", "is not YAML"), ("out: 1\nout: 2", "'out' stands twice")])
def test_a_file_that_is_not_sound_yaml_is_named(write, text, part):
    with pytest.raises(ValueError, match=f"^a.yaml: .*{part}") as error:
        parse(Config, ["--config", write(text)])
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_base_is_named_with_the_base(write):
    write("train: {lr: fast}", "base.yaml")
    with pytest.raises(ValueError, match=r"^base.yaml: train.lr"):
        parse(Config, ["--config", write("base: base.yaml\nout: x")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.lrr=3"], "command line: unknown option '--train.lrr'; did you mean '--train.lr'?"),
        (["--train.lr=x"], "command line: --train.lr: expected a number, got 'x'"),
        (["spare"], "command line: unrecognized arguments: spare"),
        (["--config"], "command line: argument --config: expected one argument"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(arguments, message):
    with pytest.raises(ValueError) as error:
        parse(Config, ["--out=x", *arguments])
    assert str(error.value) == message


def test_a_setting_left_out_is_named():
    with pytest.raises(ValueError, match=r"^command line: --out must be given$"):
        parse(Config, [])


@dataclass
class Window:
    size: int
    end: float | None = None


@dataclass
class Named:
    """Settings with names of their own, and with a list of sections."""

    weights: dict[str, float] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    train: Train = field(default_factory=Train)


def test_a_dictionary_takes_any_names_and_a_list_takes_sections(write):
    name = write("weights: {kl: 1e-4, any name: 2}\nwindows: [{size: 8}, {size: 4, end: null}, {size: 2, end: 1e3}]\n")
    config = parse(Named, ["--config", name])
    assert config == Named({"kl": 1e-4, "any name": 2.0}, [Window(8), Window(4), Window(2, 1000.0)])
    assert parse(Named, ["--config", write(to_yaml(config), "b.yaml")]) == config
    assert parse(Named, ["--config", name, "--weights", '{"kl": 3}']).weights == {"kl": 3.0}
    with pytest.raises(ValueError, match="a.yaml: weights: expected a number, got 'much'"):
        parse(Named, ["--config", write("weights: {kl: much}\n")])
    with pytest.raises(ValueError, match="a.yaml: train.lr: expected a value, got a section of settings"):
        parse(Named, ["--config", write("train: {lr: {a: 1}}\n")])
    with pytest.raises(ValueError, match="command line: unknown option '--weights.kl'; did you mean '--weights'"):
        parse(Named, ["--weights.kl", "1"])
