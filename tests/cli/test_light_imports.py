"""Imports of `diffaudio generate`: modules that a sound does not need are left out, and work when they are used."""

import json
import subprocess
import sys

import pytest

from tests.helpers.tiny_model import write_tiny_model

# each takes between half a second and five seconds of CPU time
UNNEEDED = [
    "torch._dynamo", "torch.distributed.tensor", "sympy", "torchvision", "timm", "transformers", "open_clip",
    "accelerate", "scipy.stats", "scipy.signal", "scipy.optimize", "pandas", "pyarrow", "matplotlib", "sklearn",
]  # fmt: skip

GENERATE = f"""
import sys
from diffaudio.cli.generate import run
run(sys.argv[1:])
import importlib, json, types
from diffaudio.cli.light_imports import _Deferred
imported = [name for name in {UNNEEDED} if not isinstance(sys.modules.get(name), (type(None), _Deferred))]
print(json.dumps(imported))
"""

DEFERRED = """
import sys
from diffaudio.cli.light_imports import light_imports
with light_imports():
    import scipy.signal
    import scipy.stats
import numpy as np
x = np.random.default_rng(0).normal(size=1000)
b, a = [1.5, -2.6, 1.2], [1.0, -1.7, 0.7]
light = scipy.signal.lfilter(b, a, x)
pair, state = np.stack([x, 2 * x]), np.ones((2, 2))
light_pair = scipy.signal.lfilter(b, a, pair, axis=1, zi=state)
assert "scipy.signal._signaltools" not in sys.modules
assert len(scipy.signal.find_peaks(x)[0]) > 10  # imports the real module
assert "scipy.signal._signaltools" in sys.modules
import scipy.signal
assert np.array_equal(light, scipy.signal.lfilter(b, a, x))
for one, other in zip(light_pair, scipy.signal.lfilter(b, a, pair, axis=1, zi=state), strict=True):
    assert np.array_equal(one, other)
assert abs(scipy.stats.norm.cdf(0.0) - 0.5) < 1e-12
from scipy.stats import linregress
import torch._dynamo, transformers, accelerate, torchvision
assert "dynamo" in torch._dynamo.__name__ and transformers.BertConfig().vocab_size
"""


def run_python(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model")


def test_generating_from_text_imports_nothing_that_a_sound_does_not_need(model, tmp_path):
    arguments = ["rain", "-o", str(tmp_path / "rain.wav"), "--model", str(model), "--steps", "2", "--seed", "1"]
    assert json.loads(run_python(GENERATE, *arguments).splitlines()[-1]) == []


def test_what_was_left_out_is_imported_when_it_is_used():
    run_python(DEFERRED)
