"""The package as a whole: floors, import time, scripts, wheel."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from diffaudio.cli.main import COMMANDS as SUBCOMMANDS

REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))

FLOORS = [
    {
        "adapter_names",
        "atomic_io",
        "errors",
        "file_names",
        "folder_lock",
        "hub",
        "library_loading",
        "prompt_templates",
        "safe_loading",
        "seeding",
        "tables",
    },
    {"config", "distributed", "media", "pages", "settings_schema"},
    {"models"},
    {"diffusion", "metrics"},
    {"corpus"},
    {
        "adapters",
        "checkpoint",
        "pipeline",
        "pipeline_inputs",
        "queries",
        "sound_design",
    },
    {"doctor", "evaluation", "generation", "training"},
    {"sweep"},
    {"cli", "__main__"},
]


def floor(module: str) -> int:
    part = module.split(".")[1]
    for number, parts in enumerate(FLOORS):
        if part in parts:
            return number
    raise AssertionError(f"{module} stands on no floor; add it to FLOORS where it belongs")


def imported(module: str, source: str) -> set[str]:
    """Modules of ours that a source text imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("diffaudio.") and name != "diffaudio.__version__"}


def forbidden_imports(module: str, source: str) -> list[str]:
    """Imports from a floor above, and from one model to another."""

    def is_forbidden(name: str) -> bool:
        own, other = module.split("."), name.split(".")
        between_models = own[1] == other[1] == "models" and own[2:3] != other[2:3]
        return floor(name) > floor(module) or between_models

    return sorted(name for name in imported(module, source) if is_forbidden(name))


def modules() -> dict[str, str]:
    """The source of every module of the package, but for its own `__init__`, which gives the names of all floors."""
    paths = ((path, path.relative_to(REPO).with_suffix("").parts) for path in (REPO / "diffaudio").rglob("*.py"))
    sources = {".".join(parts).removesuffix(".__init__"): path.read_text(encoding="utf-8") for path, parts in paths}
    return {name: source for name, source in sources.items() if name != "diffaudio"}


def test_nothing_imports_from_a_floor_above():
    for module, source in modules().items():
        assert forbidden_imports(module, source) == [], module


def circles(imports: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when all that stands on nothing of the rest has been taken away, again and again."""
    left = dict(imports)
    while free := [name for name, others in left.items() if not others & left.keys() - {name}]:
        for name in free:
            del left[name]
    return sorted(left)


def test_no_two_packages_import_each_other():
    """Neither the parts of diffaudio, nor the rooms within corpus, models and so on."""
    for depth in (2, 3):
        imports: dict[str, set[str]] = {}
        for module, source in modules().items():
            others = {".".join(name.split(".")[:depth]) for name in imported(module, source)}
            imports.setdefault(".".join(module.split(".")[:depth]), set()).update(others)
        assert circles(imports) == [], f"at depth {depth}"


def test_a_circle_of_imports_is_noticed():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]
    assert circles({"a": {"b", "a"}, "b": set()}) == []


def test_contributing_lists_the_floors_as_they_are():
    listed = " ← ".join(" ".join(sorted(parts)) for parts in FLOORS)
    text = " ".join((REPO / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("`", "").split())
    assert listed in text


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("diffaudio.media.audio", "from diffaudio.models.clip import Clip"),
        ("diffaudio.diffusion.guidance", "def f():\n    import diffaudio.pipeline"),
        ("diffaudio.corpus.encode.run", "from ...pipeline import DiffAudioPipeline"),
        ("diffaudio.models.unet", "from diffaudio.models.bridge.folder import load_bridge"),
        ("diffaudio.training.run_folder", "from diffaudio.cli.main import main"),
    ],
)
def test_an_import_from_a_floor_above_is_noticed(module, source):
    assert forbidden_imports(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("diffaudio.pipeline", "from diffaudio.models.autoencoders import load_autoencoder"),
        ("diffaudio.corpus.prepare.run", "from .store import write_clips"),
        ("diffaudio.models.autoencoders.spectral", "from diffaudio.models.autoencoders.base import Autoencoder"),
        ("diffaudio.models.autoencoders.spectral", "from diffaudio.media.audio import resample"),
    ],
)
def test_an_import_from_below_is_allowed(module, source):
    assert forbidden_imports(module, source) == []


def test_importing_the_package_is_light_and_takes_less_than_a_second():
    program = (
        "import sys, time; start = time.process_time(); import diffaudio; took = time.process_time() - start; "
        "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'av', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; assert took < 1, took"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPO.parent, timeout=120)


SCRIPTS = sorted(path for folder in ("train", "sample") for path in (REPO / folder).glob("*.py"))
COMMANDS = [[sys.executable, str(path)] for path in SCRIPTS]
COMMANDS += [[str(Path(sys.executable).with_name("diffaudio")), *c] for c in ([], *([name] for name in SUBCOMMANDS))]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(Path(part).name for part in command))
def test_every_script_and_command_explains_itself(command, tmp_path):
    done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_hides_an_importable_module(path):
    """`python train/x.py` puts `train/` first on the path."""
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({path.stem!r}) is not None)"
    subprocess.run([sys.executable, "-I", "-c", program], check=True, timeout=60)


def test_the_wheel_carries_the_package_the_bundled_networks_and_nothing_else():
    wheel = {file.distribution_path.replace(os.sep, "/") for file in WheelBuilder(str(REPO)).recurse_included_files()}
    package = {path.relative_to(REPO).as_posix() for path in (REPO / "diffaudio").rglob("*.py")}
    model = {
        f"diffaudio/{path.relative_to(REPO).as_posix()}"
        for name in ("mini", "tagger", "yamnet")
        for path in (REPO / "checkpoints" / name).rglob("*")
        if path.is_file()
    }
    assert package | model <= wheel
    assert {f"diffaudio/checkpoints/mini/{name}" for name in ("README.md", "model_index.json")} <= wheel
    assert {"diffaudio/checkpoints/tagger/config.json", "diffaudio/configs/audioset/kinds.yaml"} <= wheel
    assert all(name.startswith("diffaudio/") for name in wheel)


def reached(sources: dict[str, str], start: dict[str, str]) -> set[str]:
    """All modules of ours that some sources import, and those that these import, and so on."""
    found: set[str] = set()
    new = {name for module, source in start.items() for name in imported(module, source)}
    while new := {part for name in new for part in (name, name.rpartition(".")[0]) if part in sources} - found:
        found |= new
        new = {name for module in new for name in imported(module, sources[module])}
    return found


def test_nothing_that_trains_imports_the_network_that_measures():
    """YAMNet stays an independent judge: no loss, filter or choice of training may depend on what it says."""
    sources = modules()
    training = {name: source for name, source in sources.items() if name.startswith("diffaudio.training")}
    training |= {path.name: path.read_text(encoding="utf-8") for path in (REPO / "train").glob("*.py")}
    assert len(training) > 5
    for name, source in training.items():
        assert "yamnet" not in source.lower(), name
        reach = reached(sources, {name: source})
        assert not {each for each in reach if each.startswith("diffaudio.evaluation.backbones")}, name
    assert "diffaudio.evaluation.backbones" in reached(sources, {"x.py": "from diffaudio.evaluation.rows import x"})


def test_the_version_that_was_tested_is_written_down_for_every_dependency():
    def name(requirement: str) -> str:
        return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")

    tested = {name(pin) for pin in PROJECT["tool"]["uv"]["constraint-dependencies"]}
    wanted = {name(line) for line in PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]}
    assert wanted <= tested
