"""The scores of a film, kept beside it: they count only for this very film, looked at by the same means."""

from __future__ import annotations

import importlib.util
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from storyreel.evaluation.films import Film
from storyreel.evaluation.frames import Pictures
from storyreel.files import digest, file_hash, read_json, write_atomically
from storyreel.models.specs import known_model

FILE = "scores.json"
MEANS = ("*.py", "*.toml", "*.json", "*.safetensors")  # what a package measures by


def scores_key(film: Film, means: object) -> str:
    """Return what covers all that shapes a film's scores, the code that makes them too.

    ``means`` is what the evaluator measures with, as plain data.
    """
    spec = known_model(film.model or "")
    of_model = [_code_beside(place) for place in (spec.judge, spec.strangeness) if place] if spec else []
    seen = [film.sha256, film.fps, film.picks, film.hdr, film.model, film.cost]
    return digest([_own_code(), of_model, means, seen, [asdict(span) for span in film.spans]])


@cache
def _own_code() -> dict[str, str]:
    package = Path(__file__).parent.parent
    files = [package / name for name in ("film/reader.py", "models/scorer.py")]
    return _hashes(package, [*files, *_means(package / "evaluation")])


@cache
def _code_beside(place: str) -> dict[str, str]:
    """Return the SHA-256 of the code and weights of what "module:function" names; nothing is loaded."""
    found = importlib.util.find_spec(place.partition(":")[0])
    if found is None or found.origin is None:
        raise ImportError(f"there is no {place}")
    folder = Path(found.origin).parent
    return _hashes(folder, _means(folder))


def _means(folder: Path) -> list[Path]:
    return sorted(path for pattern in MEANS for path in folder.rglob(pattern))


def _hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def read_scores(folder: Path, key: str) -> tuple[dict[str, Any], list[Pictures]] | None:
    """Return the scores that were kept under ``key``, and each scene's pictures; None if there are none."""
    try:
        content = read_json(folder / FILE)
        seal = content.pop("seal")
        if content["key"] != key or seal != digest(content):
            return None
        return content["scores"], [Pictures(*map(b64decode, three)) for three in content["pictures"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def keep_scores(folder: Path, key: str, scores: dict[str, Any], pictures: Sequence[Pictures]) -> None:
    """Keep a film's scores; where nothing can be written, they are made again next time."""
    shown = [[b64encode(jpeg).decode() for jpeg in of_scene] for of_scene in pictures]
    content = {"key": key, "scores": scores, "pictures": shown}
    with suppress(OSError):
        write_atomically(folder / FILE, json.dumps({"seal": digest(content), **content}, indent=1) + "\n")
