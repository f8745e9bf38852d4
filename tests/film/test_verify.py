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

from storyreel.errors import LockedError, OutputError
from storyreel.film import keys, reader, writer
from storyreel.film.folder import FilmFolder
from storyreel.film.store import Store
from storyreel.film.verify import DAMAGED, MISSING, UNFINISHED, UNKNOWN, UNRECORDED, verify
from storyreel.models.specs import MODELS, ModelSpec
from tests.conftest import VERSIONS, FakeEngine, plan_of
from tests.test_rendering import make, raising, segment, story

STORY = story([("a park", "a fox sits"), ("a street", "it walks")])
FILES = ["01.mp4", "01.safetensors", "02.mp4", "02.safetensors", "foxes.mp4", "index.html", "manifest.json"]


@pytest.fixture
def out(tmp_path: Path, fake_model: ModelSpec) -> Path:
    """A film of two scenes."""
    make(tmp_path / "out", STORY)
    return tmp_path / "out"


def plain(path: str | Path) -> str:
    """The name of a file without its key."""
    return re.sub(r"-[0-9a-f]{8}", "", Path(path).name)


def faults(out: Path, text: str = STORY, **options: object) -> dict[str, str]:
    """What is wrong, by the names of files."""
    found = verify(plan_of(text, **options), "foxes", out)
    return {plain(path): fault for path, fault in found.items() if fault}


def file(out: Path, name: str) -> Path:
    path = out / "foxes" / name
    return path if name in FILES[4:] else segment(out, name[:2], path.suffix)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *sorted(folder.rglob("*")))
    }


def test_every_file_is_read(out: Path, tmp_path: Path) -> None:
    files = verify(plan_of(STORY), "foxes", out)
    assert sorted(map(plain, files)) == sorted([*FILES, "model.safetensors"])
    assert not any(files.values())
    assert faults(tmp_path / "elsewhere") == {"foxes": "not rendered"}
    assert not (tmp_path / "elsewhere").exists()


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
    assert tree(out) == before


def test_a_film_that_is_being_rendered_is_not_verified(out: Path) -> None:
    with FilmFolder(out / "foxes", "foxes"), pytest.raises(LockedError, match="another storyreel"):
        faults(out)


def test_what_would_never_end_is_refused_unread(out: Path) -> None:
    path = file(out, "01.mp4")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutputError, match="not a plain file"):
        faults(out)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told_from_a_missing_one(out: Path, name: str) -> None:
    path = file(out, name)
    if name == "manifest.json":
        path.write_bytes(path.read_bytes().replace(b"a park", b"e park", 1))
        assert faults(out) == {name: DAMAGED}
        path.write_text("{")
        unknown = {"foxes.mp4": UNKNOWN, "index.html": UNKNOWN}
        assert faults(out) == unknown | {name: "is damaged, or of an earlier version"}
        path.unlink()
        assert faults(out) == dict.fromkeys(FILES[4:], UNFINISHED)  # which the next render makes good
    else:
        flip(path)
        assert faults(out) == {name: DAMAGED}
        path.unlink()
        assert faults(out) == {name: MISSING}


def test_the_page_of_another_version_is_not_called_damaged(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is laid out otherwise, and no hash of it is recorded."""
    file(out, "index.html").write_text("a page")
    assert faults(out) == {"index.html": DAMAGED}
    monkeypatch.setattr("storyreel.film.verify.__version__", "another")
    assert faults(out) == {}
    file(out, "index.html").unlink()
    assert faults(out) == {"index.html": MISSING}


@pytest.mark.parametrize("entry", ["file", "key", "sha256", "storyreel", "seal"])
def test_damage_is_found_in_whatever_the_manifest_says_of_the_film(out: Path, entry: str) -> None:
    """Nothing else knows which version joined it."""
    path = file(out, "manifest.json")
    whole = path.read_bytes()
    value = json.loads(whole)["film"][entry]
    path.write_bytes(whole.replace(f'"{entry}": "{value}"'.encode(), f'"{entry}": "x{value[1:]}"'.encode()))
    unknown = {"foxes.mp4": UNKNOWN, "index.html": UNKNOWN}
    assert faults(out) == unknown | {"manifest.json": "is damaged, or of an earlier version"}
    make(out, STORY)
    assert path.read_bytes() == whole


def test_a_damaged_record_is_told(out: Path) -> None:
    record = segment(out, "02", ".mp4.json")
    flip(record)
    around = dict.fromkeys(FILES[4:], UNKNOWN)
    assert faults(out) == {"02.mp4": UNRECORDED} | around
    record.unlink()
    assert faults(out) == {"02.mp4": UNRECORDED} | around


def test_what_is_not_finished_is_told(tmp_path: Path, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "begun", STORY, engine=raising(FakeEngine(), 5))
    unfinished = ["01.mp4", "02.mp4", "02.safetensors", *FILES[4:]]
    assert faults(tmp_path / "begun") == dict.fromkeys(unfinished, UNFINISHED)


Change = Callable[[ModelSpec, pytest.MonkeyPatch], dict[str, Any]]


def weights(spec: ModelSpec, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (spec.weights / "vae" / "model.safetensors").write_bytes(b"others")
    return {}


def version(spec: ModelSpec, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(keys, "versions", lambda: VERSIONS | {"torch": "9"})
    return {}


def model(spec: ModelSpec, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setitem(MODELS, "other", replace(spec, name="other"))
    return {"model": "other"}


CHANGES: dict[str, tuple[Change, str]] = {
    "model": (model, "model fake -> other"),
    "weights": (weights, "the model's weights: vae/model.safetensors"),
    "seed": (lambda *_: {"seed": 5}, "seed 0 -> 5"),
    "method": (lambda *_: {"method": ("lead_noise=1",)}, "lead noise 0.2 -> 1.0"),
    "version": (version, "torch 2 -> 9"),
    "story": (lambda *_: {"text": STORY.replace("it walks", "it runs")}, "scene 2's action prompt"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_film_belongs_to_instead_is_told(
    out: Path, name: str, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = CHANGES[name]
    found = faults(out, **change(fake_model, monkeypatch))
    others = [file for file in FILES if name != "story" or file != "01.safetensors"]  # which has its own key
    assert found == dict.fromkeys(others, f"belongs to another film ({words})")


def test_another_title_is_of_the_film_alone(out: Path) -> None:
    found = faults(out, STORY.replace("title: Foxes", "title: Others"))
    assert found == dict.fromkeys(FILES[4:], "belongs to another film (title Foxes -> Others)")


def test_what_another_seed_left_is_no_fault(out: Path) -> None:
    make(out, STORY, seed=3)
    make(out, STORY)
    assert len(list((out / "foxes" / "segments").iterdir())) == 16
    assert faults(out) == {}


def test_the_frames_of_every_film_are_counted(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "count_frames", lambda path: 6)
    assert faults(out) == {"foxes.mp4": "has 6 frames instead of 12"}
    monkeypatch.setattr(reader, "count_frames", lambda path: 12)
    assert set(faults(out)) == {"01.mp4", "02.mp4"}


def test_published_checksums_count(out: Path, fake_model: ModelSpec) -> None:
    (fake_model.weights / "SHA256SUMS").write_text(f"{'0' * 64}  vae/model.safetensors\n")
    assert faults(out) == {"model.safetensors": "is damaged or missing"}


@pytest.mark.usefixtures("ffmpeg")
def test_a_shorter_film_with_a_record_of_its_own_is_found(tmp_path: Path, fake_model: ModelSpec) -> None:
    """With ffmpeg itself, as an older version may have left it."""
    make(tmp_path, STORY)
    assert faults(tmp_path) == {}
    path = segment(tmp_path, "02", ".mp4")
    with writer.SegmentWriter(path, 96, 64, 12, 1) as encoder:
        encoder.write(bytes(5 * 96 * 64 * 3))
    (record,) = Store(path.parent).folder.glob("02-*.mp4.json")
    key = re.search(r'"key": "(\w+)"', record.read_text())
    assert key is not None
    Store(path.parent).keep("video", "02", key[1], "cpu")
    assert faults(tmp_path)["02.mp4"] == "has 5 frames instead of 6"
