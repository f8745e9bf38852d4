"""A film's folder that somebody has tampered with: refused, or made again to the same bytes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from storyreel.errors import OutputError, StoppedError, StoryreelError
from storyreel.files import digest
from storyreel.film.store import Record
from storyreel.rendering import render
from tests.conftest import FakeEngine, plan_of
from tests.test_rendering import Stopping, film, make, segment, story

pytestmark = pytest.mark.usefixtures("fake_model")

STORY = story([("a park", "a fox sits"), ("a street", "it walks")])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output with a finished film of two scenes."""
    make(tmp_path / "out", STORY)
    return tmp_path / "out"


def rendered(out: Path) -> int:
    """Render again; return how many scenes had to be made. The film must be what it was."""
    return make(out, STORY)[0].rendered


def values(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every value."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from values(value, (*path, key))


def changed(data: Any, path: tuple[str | int, ...], value: object) -> Any:
    if not path:
        return value
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


def seal(content: Any) -> Any:
    """Sign a record as ours, as whoever reads the code can."""
    fields = {"format", *(field.name for field in dataclasses.fields(Record))}
    return content | {"seal": digest({key: value for key, value in content.items() if key in fields})}


STRANGE: list[object] = [None, True, -1, 1e308, "", "../../x", [], {}, [[]], {"": []}, "<script>"]


@pytest.mark.parametrize("sealed", [False, True], ids=["changed", "changed and signed"])
def test_no_value_of_another_type_in_a_record_harms(out: Path, sealed: bool) -> None:
    before = film(out)
    path = segment(out, "02", ".safetensors.json")
    whole = json.loads(path.read_text())
    parts = ("kind", "number", "key", "sha256", "device", "step", "decided")
    places = [place for place in values(whole) if place and place[0] in parts]
    assert len(places) > 15
    for number, place in enumerate(places):
        content = changed(whole, place, STRANGE[number % len(STRANGE)])
        path.write_text(json.dumps(seal(content) if sealed else content))
        again = rendered(out)
        if not sealed:
            assert again == 1, place  # a record that was changed vouches for nothing
            assert film(out) == before
            assert json.loads(path.read_text())["decided"] == whole["decided"]
        assert film(out)["foxes.mp4"] == before["foxes.mp4"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"strength": ', '"strength": 9'),
        lambda text: text.replace('"title": "Foxes"', '"title": "Other"'),
        lambda text: text.replace('"file": "foxes.mp4"', '"file": "foxes.mp5"'),
        lambda text: text.replace('"seconds": ', '"seconds": 1e400, "x": '),
        lambda text: text.replace('"overlap": ', '"overlap": NaN, "x": '),
        lambda text: "[" * 100_000,
        lambda text: '{"format": ' + "9" * 5000 + "}",
        lambda text: text + text,
        lambda text: text.replace("a park", "\\ud800"),
    ],
    ids=["cut", "number", "title", "film", "1e400", "NaN", "deep", "huge", "twice", "surrogate"],
)
def test_a_spoilt_manifest_is_mended(out: Path, spoil: Callable[[str], str]) -> None:
    before = film(out)
    path = out / "foxes" / "manifest.json"
    text = path.read_text()
    assert spoil(text) != text
    path.write_text(spoil(text))
    assert rendered(out) == 0  # what is known of segments is elsewhere
    assert film(out) == before
    mended = json.loads(path.read_text())
    assert mended["film"] == json.loads(text)["film"]
    assert mended["title"] == "Foxes"
    assert [s["decided"] for s in mended["segments"]] == [s["decided"] for s in json.loads(text)["segments"]]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.", save({}), save({"latents": torch.zeros(3)})],
    ids=["empty", "pickle", "nothing", "another shape"],
)
def test_forged_latents_are_one_clear_error(out: Path, data: bytes) -> None:
    """Signed and with the right hash, so that only what they hold tells."""
    before = film(out)
    segment(out, "01", ".safetensors").write_bytes(data)
    segment(out, "02", ".safetensors").unlink()
    path = segment(out, "01", ".safetensors.json")
    content = json.loads(path.read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(seal(content)))
    with pytest.raises(StoryreelError, match="holds no segment") as caught:
        rendered(out)
    assert "--overwrite" in caught.value.remedy
    make(out, STORY, overwrite=True)
    assert film(out) == before


SHAPE = (1, 48, 1 + 2, 8, 12)  # of the first scene's latents
STATES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 1),
    "nothing": (save({}), 1),
    "no latents": (save({"x": torch.zeros(3)}), 1),
    "latents of another size": (save({"x": torch.zeros(1, 48, 3, 8, 8)}), 1),
    "velocities of another size": (
        save({"x": torch.zeros(SHAPE), "levels": torch.ones(1), "velocities": torch.zeros(1, 2)}),
        1,
    ),
    "a level too much": (
        save({"x": torch.zeros(SHAPE), "levels": torch.ones(2), "velocities": torch.zeros(1, *SHAPE)}),
        1,
    ),
    "weights of no step": (save({"x": torch.zeros(SHAPE), "history": torch.zeros(0, 2)}), 1),
    "weights of three prompts": (save({"x": torch.zeros(SHAPE), "history": torch.ones(2, 3)}), 1),
    "a step too much": (save({"x": torch.zeros(SHAPE)}), 4),
    "a step before the first": (save({"x": torch.zeros(SHAPE)}), -1),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_forged_state_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    """Signed and with the right hash, so that only what it holds tells."""
    data, step = STATES[kind]
    engine = FakeEngine()
    with pytest.raises(StoppedError):
        render(plan_of(STORY), "foxes", tmp_path, engine, Stopping(engine, 2))
    segment(tmp_path, "01", ".state.safetensors").write_bytes(data)
    path = segment(tmp_path, "01", ".state.safetensors.json")
    content = json.loads(path.read_text()) | {"sha256": hashlib.sha256(data).hexdigest(), "step": step}
    path.write_text(json.dumps(seal(content)))
    with pytest.raises(StoryreelError, match="holds no segment") as caught:
        make(tmp_path, STORY)
    assert "--overwrite" in caught.value.remedy
    make(tmp_path, STORY, overwrite=True)
    make(tmp_path / "whole", STORY)
    assert film(tmp_path) == film(tmp_path / "whole")


NAMES = ["manifest.json", "unfinished.json", "events.jsonl", "index.html", "foxes.mp4", ".lock"]
NAMES += ["segments/01.mp4", "segments/01-abababab.mp4.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a file", "link to nothing", "endless"])
def test_what_is_no_plain_file_is_refused_unread(out: Path, tmp_path: Path, name: str, kind: str) -> None:
    path, outside, before = out / "foxes" / name, tmp_path / "outside", film(out)
    path.unlink(missing_ok=True)
    outside.write_text("not ours")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "endless":
            path.symlink_to("/dev/zero")
        case "link to a file":
            path.symlink_to(outside)
        case "link to nothing":
            path.symlink_to(tmp_path / "nothing")
    with pytest.raises(OutputError, match="not a plain file"):
        rendered(out)
    assert outside.read_text() == "not ours"
    assert not (tmp_path / "nothing").exists()
    shutil.rmtree(path) if kind == "folder" else path.unlink()
    rendered(out)  # what the message says to do helps
    assert film(out) == before


@pytest.mark.parametrize("name", [".", "segments"])
def test_a_folder_that_leads_elsewhere_is_refused(out: Path, tmp_path: Path, name: str) -> None:
    """Else the films of a folder that is not ours would be removed as strangers."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "holiday.mp4").write_bytes(b"not ours")
    path = out / "foxes" / name
    shutil.rmtree(path)
    (out / "foxes" if name == "." else path).symlink_to(elsewhere)
    with pytest.raises(OutputError, match="not a plain folder"):
        rendered(out)
    assert [p.name for p in elsewhere.iterdir()] == ["holiday.mp4"]


def test_out_itself_may_be_a_link(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    assert rendered(tmp_path / "link") == 0
