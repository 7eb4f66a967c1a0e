from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from diffaudio.config import Count, Share, parse, parse_command, to_yaml
from diffaudio.errors import UserError


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


def test_settings_that_are_not_given_keep_their_defaults():
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


@dataclass
class Texts:
    """Texts.

    Attributes:
        name: of it, %s.
    """

    name: str = "usual"
    note: str | None = "usual"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name: ""', Texts("", "usual")),
        ("name: ''", Texts("", "usual")),
        ('note: ""', Texts("usual", "")),
        ("note:", Texts("usual", None)),
        ("note: null", Texts("usual", None)),
        ("note: ~", Texts("usual", None)),
        ("name: null-and-void", Texts("null-and-void", "usual")),
    ],
)
def test_an_empty_text_stays_empty_and_nothing_is_none(write, text, expected):
    config = parse(Texts, ["--config", write(text)])
    assert config == expected
    assert parse(Texts, ["--config", write(to_yaml(config), "b.yaml")]) == config


@dataclass(frozen=True)
class Inner:
    """Inner.

    Attributes:
        scale: how much.
    """

    scale: float = 1.0


@dataclass(kw_only=True)
class Command:
    """A command.

    Attributes:
        names: what to do it to.
        out: where it goes.
        loud: whether it is loud.
        band: from where to where.
        kinds: several.
        limit: at most.
        inner: a section that is made where it is asked for.
    """

    names: list[str]
    out: Path = Path(".")
    loud: bool = False
    quiet: bool = True
    band: tuple[float, float] | None = None
    kinds: list[str] = field(default_factory=lambda: ["a"])
    limit: float | None = 0.5
    inner: Inner | None = None


PAIR = "two numbers, LOW:HIGH on the line of a command and [LOW, HIGH] elsewhere"


def command(*arguments):
    flags = {"names": ("name",), "out": ("-o", "--out"), "inner.scale": ("--inner-scale",)}
    return parse_command(Command, list(arguments), program="do", description="Do it.", flags=flags)


def test_a_command_is_written_as_commands_are():
    assert command(
        "x", "y", "-o", "there", "--loud", "--no-quiet", "--band", "0.25:1e0", "--kinds", "b", "c"
    ) == Command(names=["x", "y"], out=Path("there"), loud=True, quiet=False, band=(0.25, 1.0), kinds=["b", "c"])
    assert command("--loud", "x").names == ["x"]
    assert command("x", "--loud=false", "--limit", "none", "--band=none").limit is None
    assert command("x").inner is None
    assert command("x", "--inner-scale", "2").inner == Inner(2.0)
    assert command("--", "--loud").names == ["--loud"]


def test_a_file_fills_a_command_too(write):
    name = write("out: here\nloud: true\nband: [0, 1]\nkinds: [d, e]\ninner: {scale: 3}\nlimit:\n")
    filled = command("x", "--config", name, "--kinds", "f")
    assert filled == Command(
        names=["x"], out=Path("here"), loud=True, band=(0.0, 1.0), kinds=["f"], inner=Inner(3.0), limit=None
    )
    assert command("x", "--config", name).kinds == ["d", "e"]
    with pytest.raises(ValueError, match="a.yaml: names: is given on the command line and not in a file"):
        command("x", "--config", write("names: [a]\n"))
    with pytest.raises(ValueError, match="a.yaml: inner: unknown key 'scael'; did you mean 'scale'"):
        command("x", "--config", write("inner: {scael: 1}\n"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--loued"], "command line: unknown option '--loued'; did you mean '--loud'?"),
        (["x", "--limit", "much"], "command line: --limit: expected a number or none, got 'much'"),
        (["x", "--band", "0.2"], f"command line: --band: expected {PAIR} or none, got '0.2'"),
        (["x", "--band", "0.2:0.4:0.6"], f"command line: --band: expected {PAIR} or none, got '0.2:0.4:0.6'"),
        (["x", "--loud=maybe"], "command line: --loud: expected true or false, got 'maybe'"),
        (["x", "--inner-scale", "x"], "command line: --inner-scale: expected a number, got 'x'"),
        ([], "command line: name must be given"),
    ],
)
def test_a_mistake_on_the_line_of_a_command_is_named_by_its_option(arguments, message):
    with pytest.raises(ValueError) as error:
        command(*arguments)
    assert str(error.value) == message


def test_docstrings_become_the_help_of_commands_and_scripts(capsys):
    for ask in (lambda: command("--help"), lambda: parse(Texts, ["--help"])):
        with pytest.raises(SystemExit) as exit:
            ask()
        assert exit.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("what to do it to", "where it goes", "how much", "LOW:HIGH", "of it, %s", "usage: do"):
        assert text in shown


@dataclass
class Masks:
    """Masks.

    Attributes:
        prompts: texts.
        mask: ranges.
    """

    prompts: list[str] = field(default_factory=list)
    mask: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ()),
        (["--mask", "1:2"], ("1:2",)),
        (["--mask", "1:2", "--mask=3:4", "rain"], ("1:2", "3:4")),
        (["rain", "--mask", "-1:2"], ("-1:2",)),
    ],
)
def test_a_flag_with_several_values_is_given_once_for_each_and_takes_no_more(arguments, expected):
    found = parse_command(Masks, arguments, program="x", description="x", flags={"prompts": ("prompt",)})
    assert found.mask == expected
    assert found.prompts == (["rain"] if "rain" in arguments else [])


@pytest.mark.parametrize("arguments", [["--mask"], ["--mask", "--mask", "1:2"]])
def test_a_flag_with_several_values_needs_one(arguments):
    with pytest.raises(UserError, match="command line: --mask needs a value"):
        parse_command(Masks, arguments, program="x", description="x")


def test_presets_take_the_place_of_defaults_and_give_way_to_the_command_line(tmp_path):
    presets = (Path("dog.json"), {"mask": ["1:2", "3:4"]})
    command = {"program": "x", "description": "x", "presets": presets}
    assert parse_command(Masks, [], **command).mask == ("1:2", "3:4")
    assert parse_command(Masks, ["--mask", "5:6"], **command).mask == ("5:6",)
    with pytest.raises(UserError, match=r"dog\.json: unknown key 'masks'; did you mean 'mask'\?"):
        parse_command(Masks, [], **command | {"presets": (Path("dog.json"), {"masks": []})})
