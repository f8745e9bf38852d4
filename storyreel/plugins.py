"""What other packages add to storyreel, by name: blendings, noise levels, scorers, metrics and models.

An installed package offers them as entry points of the groups ``storyreel.blendings`` and so on, as `KINDS`
has them. A module that one command names (``--plugin``) has a mapping ``STORYREEL`` of kinds to names to
objects. Reading what is offered imports nothing; a package is imported when one of its names is used.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from storyreel.errors import MissingError, StoryreelError, UsageError

KINDS = {
    "blendings": "blending",
    "schedulers": "scheduler",
    "scorers": "scorer",
    "metrics": "metric",
    "models": "model",
}
TABLE = "STORYREEL"  # what a module that is named for one command offers
# What the functions of a kind are called with.
ARGUMENTS = {
    "blendings": ("x", "lead", "weights", "noise", "sigma"),
    "schedulers": ("steps", "tokens"),
    "scorers": ("device",),
}
_NAMED: ContextVar[tuple[Plugin, ...]] = ContextVar("plugins", default=())  # of the command that runs


@dataclass(frozen=True)
class Plugin:
    """One thing that a package offers: its ``kind`` of `KINDS`, its name, and where it comes from.

    ``place`` is "module:object" as its key has it, ``module`` the one whose source shapes it, ``origin`` says
    for people who offers it.
    """

    kind: str
    name: str
    module: str
    place: str
    origin: str
    _find: Callable[[], Any]

    @property
    def words(self) -> str:
        """What it is called in messages, as in "blending 'ramp' of package ramps 1.0"."""
        return f"{KINDS[self.kind]} {self.name!r} of {self.origin}"

    def load(self) -> Any:
        """Return the object. Raises MissingError if its module cannot be imported or lacks it."""
        try:
            return self._find()
        except StoryreelError:
            raise
        except Exception as error:
            words = f"{self.words} cannot be loaded ({self.place}): {_one_line(error)}"
            raise MissingError(words, "Correct or uninstall what offers it.") from error

    def function(self) -> Callable[..., Any]:
        """Return the function that it is. Raises UsageError if it does not take what its kind is given."""
        found = self.load()
        given = ARGUMENTS[self.kind]
        try:
            inspect.signature(found).bind(*given)
        except (TypeError, ValueError) as error:
            wanted = f"a function of ({', '.join(given)})"
            words = f"{self.words} ({self.place}) is not {wanted}: {_one_line(error)}"
            raise UsageError(words, "storyreel/README.md (Plugins) says what each kind is.") from None
        function: Callable[..., Any] = found
        return function


def offered(kind: str, own: Collection[str]) -> Mapping[str, Plugin]:
    """Return what is offered of a kind, by name, without importing it; ``own`` are storyreel's own names.

    Raises UsageError for a name that is storyreel's own, or that two offer.
    """
    found: dict[str, Plugin] = {}
    for plugin in (*_installed(tuple(sys.path)), *_NAMED.get()):
        if plugin.kind != kind:
            continue
        if plugin.name in own:
            remedy = "Give it another name there, or uninstall what offers it."
            raise UsageError(f"{plugin.words} has the name of one of storyreel's own", remedy)
        if (other := found.get(plugin.name)) is not None and other.place != plugin.place:
            remedy = "Uninstall one of them, or give one another name."
            raise UsageError(f"{plugin.words} has the name of one of {other.origin}", remedy)
        found[plugin.name] = plugin
    return found


@contextmanager
def using(names: Iterable[str]) -> Iterator[None]:
    """Have what some modules offer as well, for as long as this lasts.

    Each is the name of a module that can be imported, or the path of a file that ends in .py. Raises
    UsageError for what is no plugin, and MissingError for what cannot be imported.
    """
    found = [plugin for name in dict.fromkeys(names) for plugin in _of_module(name)]
    before = _NAMED.set((*_NAMED.get(), *found))
    try:
        yield
    finally:
        _NAMED.reset(before)


@cache
def _installed(path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Return what installed packages offer; ``path`` is where they are looked for."""
    points = metadata.entry_points()
    return tuple(
        _of_point(kind, point)
        for kind in KINDS
        for point in sorted(points.select(group=f"storyreel.{kind}"), key=lambda point: point.name)
    )


def _of_point(kind: str, point: metadata.EntryPoint) -> Plugin:
    origin = f"package {point.dist.name} {point.dist.version}" if point.dist else "an installed package"
    return Plugin(kind, point.name, point.module, point.value, origin, point.load)


def _of_module(name: str) -> Iterator[Plugin]:
    """Yield what a module offers that a command names."""
    option = f"--plugin {name}"
    try:
        module = _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except UsageError:
        raise
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
        remedy = "Install it, or name a file: --plugin FILE.py" if missing else "Correct that."
        raise MissingError(f"{option} cannot be imported: {_one_line(error)}", remedy) from error
    table = getattr(module, TABLE, None)
    if not isinstance(table, dict) or not table or not all(isinstance(of, dict) for of in table.values()):
        remedy = f"Write, as in {TABLE} = {{'blendings': {{'ramp': ramp}}}}: {', '.join(KINDS)}."
        raise UsageError(f"{option} has no {TABLE}, which says what it offers", remedy)
    if unknown := [kind for kind in table if kind not in KINDS]:
        words = f"{option}: {TABLE} has an unknown kind {unknown[0]!r}"
        raise UsageError(words, f"Known: {', '.join(KINDS)}")
    for kind, objects in table.items():
        for own, value in objects.items():
            place = f"{module.__name__}:{own}"
            yield Plugin(kind, str(own), module.__name__, place, option, partial(_itself, value))


def _itself(value: Any) -> Any:
    return value


def _from_file(path: Path) -> ModuleType:
    """Return the module in a file, which is imported under its own name, once."""
    if not path.is_file():
        raise UsageError(f"--plugin {path} is not a file", "Name a file of Python, or a module.")
    there = sys.modules.get(path.stem)
    if there is not None or util.find_spec(path.stem) is not None:
        if there is not None and Path(getattr(there, "__file__", None) or "").resolve() == path.resolve():
            return there
        raise UsageError(f"--plugin {path}: there is a module {path.stem!r} already", "Rename the file.")
    spec = util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import does, so that its classes and a model's adapter are found
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
