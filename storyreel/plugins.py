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
from contextlib import contextmanager, redirect_stdout
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
# What a plugin's code may end with. A SystemExit that nobody catches would end a command as if all were done.
FAULTS = (Exception, SystemExit)
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
            with redirect_stdout(sys.stderr):
                return self._find()
        except StoryreelError:
            raise
        except FAULTS as error:
            words = f"{self.words} cannot be loaded ({self.place}): {_one_line(error)}"
            raise MissingError(words, "Correct or uninstall what offers it.") from error

    def function(self) -> Callable[..., Any]:
        """Return the function that it is, with what it prints on stderr: stdout is for results.

        Raises UsageError if it does not take what its kind is given.
        """
        found = self.load()
        given = ARGUMENTS[self.kind]
        try:
            inspect.signature(found).bind(*given)
        except (TypeError, ValueError) as error:
            wanted = f"a function of ({', '.join(given)})"
            words = f"{self.words} ({self.place}) is not {wanted}: {_one_line(error)}"
            raise UsageError(words, "storyreel/README.md (Plugins) says what each kind is.") from None

        def function(*given: Any) -> Any:
            with redirect_stdout(sys.stderr):
                return found(*given)

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
def using(names: Iterable[str]) -> Iterator[tuple[Plugin, ...]]:
    """Have what some modules offer as well, for as long as this lasts; give that.

    Each is the name of a module that can be imported, or the path of a file that ends in .py. Raises
    UsageError for what is no plugin, also for functions that take other arguments, and MissingError for
    what cannot be imported.
    """
    found = tuple(plugin for name in dict.fromkeys(names) for plugin in _of_module(name))
    for plugin in found:
        if plugin.kind in ARGUMENTS:
            plugin.function()
    before = _NAMED.set((*_NAMED.get(), *found))
    try:
        yield found
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
    nothing = UsageError(
        f"--plugin {name!r} is neither the name of a module nor a file that ends in .py",
        "Name one, as in --plugin ramps.py.",
    )
    if not name.endswith(".py") and not all(name.split(".")):
        raise nothing
    try:
        with redirect_stdout(sys.stderr):
            module = _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except UsageError:
        raise
    except FAULTS as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        if missing and Path(name).is_file():
            raise nothing from None
        remedy = "Install it, or name a file: --plugin FILE.py" if missing else "Correct that."
        raise MissingError(f"{option} cannot be imported: {_one_line(error)}", remedy) from error
    for kind, objects in _table(module, option).items():
        for own, value in objects.items():
            place = f"{module.__name__}:{own}"
            yield Plugin(kind, own, module.__name__, place, option, partial(_itself, value))


def _table(module: ModuleType, option: str) -> Mapping[str, Mapping[str, Any]]:
    """Return what a module says that it offers: objects by kind and name. Raises UsageError."""
    remedy = f"Write, as in {TABLE} = {{'blendings': {{'ramp': ramp}}}}: {', '.join(KINDS)}."
    if not hasattr(module, TABLE):
        raise UsageError(f"{option} has no {TABLE}, which says what it offers", remedy)
    table: Any = getattr(module, TABLE)
    if not isinstance(table, Mapping) or not table:
        words = "is empty" if isinstance(table, Mapping) else f"is of type {type(table).__name__}"
        raise UsageError(f"{option}: {TABLE} {words}; it is to be a mapping of kinds", remedy)
    for kind, objects in table.items():
        if kind not in KINDS:
            words = f"{option}: {TABLE} has an unknown kind {kind!r}"
            raise UsageError(words, f"Known: {', '.join(KINDS)}")
        if not isinstance(objects, Mapping):
            words = f"of {kind!r} is of type {type(objects).__name__}; it is to be a mapping of names"
            raise UsageError(f"{option}: what {TABLE} has {words}", remedy)
        if wrong := [name for name in objects if not isinstance(name, str) or not name]:
            words = f"has {wrong[0]!r} among the names of {kind!r}, which is no name"
            raise UsageError(f"{option}: {TABLE} {words}", remedy)
    return table


def _itself(value: Any) -> Any:
    return value


def _from_file(path: Path) -> ModuleType:
    """Return the module in a file, which is imported under its own name, once."""
    if not path.is_file():
        raise UsageError(f"--plugin {path} is not a file", "Name a file of Python, or a module.")
    if "." in path.stem:
        raise UsageError(f"--plugin {path}: no module has a dot in its name", "Rename the file.")
    there = sys.modules.get(path.stem)
    # The file itself is found where its folder is searched, as python -m does with the present one.
    found = util.find_spec(path.stem) if there is None else None
    origin = getattr(there, "__file__", None) if there is not None else found and found.origin
    is_itself = Path(origin or "").resolve() == path.resolve()
    if (there is not None or found is not None) and not is_itself:
        raise UsageError(f"--plugin {path}: there is a module {path.stem!r} already", "Rename the file.")
    if there is not None:
        return there
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
