"""`render --verify` says why a film does not count, wherever the film lies."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storyreel.checkpoint import FilmFolder
from storyreel.errors import LockedError, OutputError
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.verify import difference, verify
from tests.conftest import plan_of
from tests.test_render import make, story

STORY = story([("a park", "a fox sits"), ("a street", "it walks")])
FILES = ["01.mp4", "01.safetensors", "02.mp4", "02.safetensors", "foxes.mp4", "index.html", "manifest.json"]


@pytest.fixture
def out(tmp_path: Path, fake_model: ModelSpec) -> Path:
    make(tmp_path / "out", STORY)
    return tmp_path / "out"


def faults(out: Path, text: str = STORY, **options: object) -> dict[str, str]:
    """What is wrong, by the names of files."""
    found = verify(plan_of(text, **options), "foxes", out)
    return {Path(path).name: fault for path, fault in found.items() if fault}


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *sorted(folder.rglob("*")))
    }


def test_an_archive_is_verified_without_a_trace(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system where nothing can be written, each of these would fail."""
    (out / "foxes" / ".lock").unlink()
    (out / "foxes" / "segments" / ".02-x.part.mp4").write_bytes(b"of a killed render")
    before = tree(out)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(out) in str(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return opens(path, flags, *rest, **named)

    opens = os.open
    monkeypatch.setattr(os, "open", opened)
    for name in ("mkdir", "rename", "replace"):
        monkeypatch.setattr(os, name, refuse)
    assert faults(out) == {}
    monkeypatch.undo()
    assert tree(out) == before


def test_a_film_that_is_being_rendered_is_not_verified(out: Path) -> None:
    with FilmFolder(out / "foxes", "foxes"), pytest.raises(LockedError, match="another storyreel"):
        faults(out)


def test_what_would_never_end_is_refused_unread(out: Path) -> None:
    path = out / "foxes" / "segments" / "01.mp4"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutputError, match="no plain file"):
        faults(out)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told_from_a_missing_one(out: Path, name: str) -> None:
    path = next((out / "foxes").rglob(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert faults(out)[name] == "is damaged: it is not what was recorded"
    if name != "manifest.json":
        assert len(faults(out)) == 1
        path.unlink()
        assert faults(out) == {name: "is missing"}


def test_what_is_not_finished_is_told(out: Path) -> None:
    path = out / "foxes" / "manifest.json"
    whole = json.loads(path.read_text())
    plan = {key: value for key, value in whole["segments"][1].items() if key in ("number", "scene", "action")}
    path.write_text(json.dumps(whole | {"segments": [whole["segments"][0], plan], "film": {}}))
    unfinished = dict.fromkeys(["02.mp4", "02.safetensors", "foxes.mp4"], "is not finished")
    assert faults(out).items() > unfinished.items()
    assert "01.mp4" not in faults(out)


def test_a_damaged_record_is_told(out: Path) -> None:
    path = out / "foxes" / "manifest.json"
    path.write_text(path.read_text().replace('"lead": 1', '"lead": 2', 1))
    found = faults(out)
    assert found["01.mp4"] == found["01.safetensors"] == "has a damaged record in the manifest"
    assert found["manifest.json"].startswith("is damaged")


Change = Callable[[ModelSpec, pytest.MonkeyPatch], dict[str, Any]]


def weights(spec: ModelSpec, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (spec.weights / "model.safetensors").write_bytes(b"others")
    return {}


def version(spec: ModelSpec, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr("storyreel.video.encoder_version", lambda: "9")
    return {}


def model(spec: ModelSpec, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setitem(MODELS, "other", replace(spec, name="other"))
    return {"model": "other"}


CHANGES: dict[str, tuple[Change, str]] = {
    "model": (model, r"another model \(fake, not other\)"),
    "weights": (weights, "other weights of fake"),
    "seed": (lambda *_: {"seed": 5}, r"other settings \(seed 0, not 5\)"),
    "method": (lambda *_: {"method": ("window=1",)}, r"other settings \(method.window 4, not 1\)"),
    "version": (version, r"other versions \(ffmpeg .+, not 9\)"),
    "story": (lambda *_: {"text": STORY.replace("it walks", "it runs")}, "another story"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_film_belongs_to_instead_is_told(
    out: Path, name: str, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = CHANGES[name]
    options = change(fake_model, monkeypatch)
    found = faults(out, **options)
    told = {fault for file, fault in found.items() if file.endswith(("mp4", "safetensors", "json"))}
    assert len(told) == 1
    (fault,) = told
    assert re.match(f"belongs to {words}", fault), fault


def test_another_title_is_of_the_film_alone(out: Path) -> None:
    found = faults(out, STORY.replace("title: Foxes", "title: Others"))
    assert "01.mp4" not in found
    assert found["foxes.mp4"].startswith("belongs to another story")


def test_nonsense_differs_and_breaks_nothing() -> None:
    wanted = {"model": {"name": "a", "weights": {}}, "settings": {"seed": 1}, "story": {}, "recipe": 1}
    for nonsense in ({}, {"model": 7, "settings": [1], "versions": "x", "story": None}):
        assert difference(nonsense, wanted)
    assert difference(wanted, wanted) == ""
