"""The recipe: a digest of storyreel's own source code that shapes pictures.

It is part of every key, so that an edited formula renders again by itself, without a number that has to be
raised. It is made of the syntax trees, without comments, docstrings and layout, of all modules that
denoising and decoding import, but for those in `NO_PART`.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from storyreel.errors import MissingError

# Where imports are followed from; for latents, from the model's adapter too.
LATENTS = ("storyreel.film.segments", "storyreel.models.scorer")
PICTURES = "storyreel.film.decode"  # from latents to encoded pictures
# What rendering imports and shapes no picture, and why. Any other module counts.
NO_PART: dict[str, str] = {
    "storyreel": "the version: a release that changes no picture renders nothing again",
    "storyreel.errors": "words",
    "storyreel.models.device_errors": "which error is a lack of memory",
    "storyreel.plugins": "which plugins there are; the source of those that a film uses is in its keys",
    "storyreel.origin": "words: where this program comes from",
    "storyreel.stopping": "when to stop",
    "storyreel.models.specs": "facts; those of a film's model are in its keys",
    "storyreel.models.inventory": "whether a model's files are there",
    "storyreel.story.schema": "reads the story; what it reads is in the keys",
    "storyreel.story.sounds": "what is heard",
    "storyreel.story.yaml_source": "reads the story; the same",
    "storyreel.story.quoting": "reads the story; the same",
    "storyreel.files": "how files are written and hashed",
    "storyreel.lock": "one process a folder",
    "storyreel.pages": "templates of pages",
    "storyreel.film.folder": "where files lie",
    "storyreel.film.store": "where files lie, and what is said of them",
    "storyreel.film.sides": "measures; what it adds to decoding is no picture",
    "storyreel.film.hashes": "how files are hashed",
    "storyreel.film.manifest": "what was made",
    "storyreel.film.inventory": "what is there and what is missing",
    "storyreel.film.keys": "what is hashed; a change here changes the keys by itself",
    "storyreel.film.recipe": "which code counts; the same",
    "storyreel.film.differences": "says what has changed",
    "storyreel.film.clean": "removes files that are not needed",
    "storyreel.film.page": "decorates the film",
    "storyreel.film.sheet": "shows drafts of it",
    "storyreel.film.provenance": "says that the film is generated",
    "storyreel.film.cards": "draws cards; it is in the keys of films that have any",
    "storyreel.story.cards": "what may stand on them",
    "storyreel.film.stills": "decorates the film's page",
    "storyreel.film.reader": "reads films that are made",
    "storyreel.models.checksums": "whether a model's files are whole",
    "storyreel.models.devices": "which device computes; its kind is in the keys",
    "storyreel.models.host": "how much memory the machine has",
    "storyreel.models.memory": "how much a model needs; no memory mode changes a picture",
    "storyreel.models.workers": "which device answers; no arithmetic",
    "storyreel.film.messages": "words",
    "storyreel.film.reasons": "words",
    "storyreel.film.takes": "which takes there are; those that films show are in the keys",
    "storyreel.film.audio": "how sound is read and measured; films with sound have it in their keys",
    "storyreel.film.mix": "mixes sound; the same",
    "storyreel.film.sound": "where sounds stand; the same",
    "storyreel.film.hearing": "finds sounds; what it finds is in the keys",
    "storyreel.film.voice": "says texts; its version is in the keys of what it has said",
    "storyreel.film.ffmpeg": "how ffmpeg is started; its version is in the keys",
    "storyreel.engine": "loads the model",
    "storyreel.rendering": "calls all others, in an order that no picture depends on",
}


@dataclass(frozen=True)
class Recipe:
    """The digests of the sources that shape latents, and of those that only shape pictures, by file."""

    latents: dict[str, str]
    pictures: dict[str, str]


def recipe_of(adapter: str, read: Callable[[str], str | None] | None = None) -> Recipe:
    """Return the recipe of a model whose adapter is "module:class".

    ``read`` returns a module's source, or None if there is no such module. Raises MissingError if the
    source of what shapes pictures is not there.
    """
    read = read or source
    latents = closure([*LATENTS, adapter.partition(":")[0]], {*NO_PART, PICTURES}, read)
    pictures = closure([PICTURES], {*NO_PART, *latents}, read)
    return Recipe(_by_file(latents), _by_file(pictures))


def plugin_sources(module: str) -> dict[str, str]:
    """Return the fingerprints of a plugin's module, and of what that imports of its own package, by file.

    Raises MissingError if its source is not there.
    """
    return _by_file(closure([module], (), source))


def fingerprints(modules: Collection[str]) -> dict[str, str]:
    """Return the fingerprints of some of storyreel's own modules, by file, without what they import."""
    texts = {module: source(module) for module in modules}
    return _by_file({name: fingerprint(ast.parse(text)) for name, text in texts.items() if text is not None})


def source(module: str) -> str | None:
    """Return a module's source without importing it; None if there is no such module."""
    top, *inner = module.split(".")
    found = find_spec(top)
    if found is None or found.origin is None:
        return None
    base = Path(found.origin)
    if found.submodule_search_locations is not None:
        base = base.parent.joinpath(*inner)
        paths = [base.with_name(f"{base.name}.py")] if inner else []
        paths.append(base / "__init__.py")
    else:
        paths = [] if inner else [base]
    return next((path.read_text("utf-8") for path in paths if path.is_file()), None)


def closure(
    roots: Collection[str], without: Collection[str], read: Callable[[str], str | None]
) -> dict[str, str]:
    """Return the fingerprints of modules and of all that they import of their own packages, by name.

    Modules in ``without`` are left out, and so is what only they import.
    """
    waiting, found = list(roots), dict[str, str]()
    packages = {root.partition(".")[0] for root in waiting}
    while waiting:
        module = waiting.pop()
        if module in found or module in without:
            continue
        text = read(module)
        if text is None and module in roots:
            remedy = "Install storyreel, the model's adapter and plugins with their sources."
            raise MissingError(f"the source of {module} is not here, and it shapes pictures", remedy)
        if text is None:  # a name inside a module
            continue
        tree = ast.parse(text)
        if len(tree.body) > 1 or ast.get_docstring(tree) is None:  # a package is often its docstring alone
            found[module] = fingerprint(tree)
        waiting += [name for name in imported(tree, module) if name.partition(".")[0] in packages]
    return found


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield every name that a module imports, at its top or inside, modules and what may be in them.

    What is imported for type checkers alone is left out.
    """
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements, but for those under ``if TYPE_CHECKING``; expressions hold none."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        blocks: tuple[str, ...] = ("body", "orelse", "finalbody", "handlers", "cases")
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            blocks = ("orelse",)
        elif isinstance(node, ast.expr):  # a lambda and a condition have parts of the same names
            continue
        for block in blocks:
            waiting += getattr(node, block, ())


def fingerprint(tree: ast.AST) -> str:
    """Return a digest of what a module does: its syntax tree without docstrings.

    Fields that are empty are left out: newer versions of Python add some.
    """
    words: list[str] = []
    _write(tree, words)
    return hashlib.sha256("\n".join(words).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _write(node: ast.AST, words: list[str]) -> None:
    words.append(type(node).__name__)
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name == "kind":  # of a constant: whether it is written u""
            continue
        words.append(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                if not _is_nothing(item, node):
                    _write(item, words)
            else:
                words.append(repr(item))
    words.append(")")


def _is_nothing(node: ast.AST, parent: ast.AST) -> bool:
    """Tell whether a node is a text without effect: a docstring, or an empty part of an f-string.

    Some versions of Python have such parts and some do not.
    """
    if isinstance(parent, ast.JoinedStr):
        return isinstance(node, ast.Constant) and node.value == ""
    text = node.value if isinstance(node, ast.Expr) else None
    return isinstance(text, ast.Constant) and isinstance(text.value, str)


def _by_file(digests: dict[str, str]) -> dict[str, str]:
    """Name storyreel's own modules by their files inside it, others by theirs."""
    return {
        f"{module.removeprefix('storyreel.').replace('.', '/')}.py": digest
        for module, digest in sorted(digests.items())
    }
