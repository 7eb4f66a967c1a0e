"""Importing the libraries of generation without what a sound never needs, which takes most of the command's time.

Only commands use this, in their own process; the library itself imports its dependencies in the usual way.
"""

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

__all__ = ["light_imports"]

HIDDEN = ("accelerate", "timm", "torch._dynamo", "torchvision", "transformers")


@contextmanager
def light_imports() -> Iterator[None]:
    """Inside this context, modules are imported without parts that the libraries offer but generation does not use.

    - diffusers takes the modules in `HIDDEN` for not installed: it uses them to compile, to quantise, and to spread
      weights over devices. Other libraries import them as usual.
    - `scipy.stats` and `scipy.signal` are imported when something of them is used. diffusers' schedulers import the
      first for beta noise levels; the loudness meter needs a single function of the second.
    - No garbage is collected, and what was imported is never searched for garbage later on.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        with _hidden(HIDDEN):
            importlib.import_module("diffusers.models.modeling_utils")
        _defer("scipy.stats")
        _defer("scipy.signal", lfilter=_linear_filter())
        yield
        gc.freeze()
    finally:
        if was_collecting:
            gc.enable()


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))  # None makes an import fail, and the module is not found
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


def _defer(name: str, **attributes: Any) -> None:
    """Let `import name` succeed at once; the module is imported when an attribute other than the given ones is used."""
    if name not in sys.modules:
        sys.modules[name] = _Deferred(name, {key: value for key, value in attributes.items() if value is not None})


class _Deferred(ModuleType):
    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # the import system asks for these
            raise AttributeError(attribute)
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
        module = importlib.import_module(name)
        parent, _, child = name.rpartition(".")
        setattr(importlib.import_module(parent), child, module)
        return getattr(module, attribute)


def _linear_filter() -> Callable[..., Any] | None:
    """`scipy.signal.lfilter` for recursive filters, from its compiled part alone; None if scipy has another layout."""
    scipy = importlib.import_module("scipy")
    spec = PathFinder.find_spec("scipy.signal._sigtools", [f"{place}/signal" for place in scipy.__path__])
    if spec is None or spec.loader is None:
        return None
    module: Any = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "_linear_filter"):
        return None

    def lfilter(b: Any, a: Any, x: Any, axis: int = -1, zi: Any = None) -> Any:
        return module._linear_filter(b, a, x, axis, *([] if zi is None else [zi]))

    return lfilter
