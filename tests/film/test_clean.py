"""What no film uses can go, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storyreel.cli.app import run
from storyreel.film.folder import FilmFolder
from storyreel.film.store import FORMAT
from storyreel.models.specs import ModelSpec
from storyreel.rendering import render_take
from tests.conftest import FakeEngine, Silent, plan_of
from tests.test_rendering import film, make, raising, story

SHORT = story([("a park", "a fox sits"), ("a street", "it walks")])


@pytest.fixture(autouse=True)
def out(tmp_path: Path, fake_model: ModelSpec) -> Path:
    """A finished film of seed 0, where that of seed 1 was before."""
    out = tmp_path / "out"
    make(out, SHORT, seed=1)
    make(out, SHORT)
    return out


def everything(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_nothing_is_removed_before_one_has_seen_it(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(out)
    assert run(["clean", str(out)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out / 'foxes'}: 8 files, ")
    assert last.endswith("would be removed: add --yes")
    assert everything(out) == before


@pytest.mark.parametrize("place", [".", "foxes"])
def test_what_another_seed_left_goes_and_the_film_stays(
    out: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, whole = film(out), everything(out)
    assert run(["clean", str(out / place), "--yes", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    gone = whole.keys() - everything(out).keys()
    assert row["removed"]
    assert {f"foxes/segments/{name}" for name in row["files"]} == gone
    assert row["bytes"] == sum(len(whole[name]) for name in gone)
    assert len(gone) == 8
    assert film(out) == before
    assert make(out, SHORT)[0].rendered == 0
    assert run(["clean", str(out), "--yes"]) == 0
    assert capsys.readouterr().out == "0 files, 0 bytes removed\n"


def test_the_work_of_a_render_that_was_not_finished_stays(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(out, SHORT, engine=raising(FakeEngine(), 5), seed=2)
    before = film(out)
    assert run(["clean", str(out), "--yes"]) == 0
    assert film(out) == before
    _, progress, _ = make(out, SHORT, seed=2)
    assert progress.forwards == progress.promised < 6
    make(out, SHORT)  # back to what was there
    assert film(out) == before


def test_a_state_stays_while_it_is_needed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyreel.rendering.KEEP_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        make(out, SHORT, engine=raising(FakeEngine(), 2), seed=2)
    assert run(["clean", str(out), "--yes"]) == 0
    assert list(out.rglob("*.state.safetensors"))
    make(out, SHORT, seed=3)  # which begins something else
    assert run(["clean", str(out), "--yes"]) == 0
    assert not list(out.rglob("*.state.safetensors*"))


def test_a_take_that_was_begun_stays(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyreel.rendering.KEEP_EVERY", 0.0)
    text = SHORT.replace("action: it walks", "action: it walks, retake: 2")
    plan = plan_of(text)
    assert plan.segments[1].take == 2
    with pytest.raises(KeyboardInterrupt):
        render_take(plan, 1, "foxes", out, raising(FakeEngine(), 2), Silent())
    assert run(["clean", str(out), "--yes"]) == 0
    assert list(out.rglob("*.state.safetensors"))
    render_take(plan, 1, "foxes", out, FakeEngine(), Silent())
    assert not (out / "foxes" / "take.unfinished.json").exists()
    assert not list(out.rglob("*.state.safetensors*"))


@pytest.mark.parametrize("seen", [True, False], ids=["at once", "only when it is to be locked"])
def test_a_folder_in_use_is_left_alone(
    out: Path, seen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(out)
    with FilmFolder(out / "foxes", "foxes"):
        if not seen:  # since a render has begun just then
            monkeypatch.setattr(FilmFolder, "is_in_use", lambda folder: False)
        assert run(["clean", str(out), "--yes"]) == 0
        (out / "foxes" / ".lock.json").unlink()
    assert "in use: left alone" in capsys.readouterr().err
    assert everything(out) == before


@pytest.mark.parametrize("name", ["manifest.json", "unfinished.json"])
@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", '{"format": 3, "segments": [], "film": {}}', None),
        *(f'{{"format": {FORMAT}, "segments": {segments}, "film": {{}}}}' for segments in ("[]", "[{}]")),
    ],
)
def test_where_nothing_says_what_is_needed_everything_is(
    out: Path, name: str, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "foxes" / name
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(text)
    if name == "unfinished.json" and text is None:
        return
    before = everything(out)
    assert run(["clean", str(out), "--yes"]) == 0
    assert "what is needed is not known" in capsys.readouterr().err
    assert everything(out) == before


def test_what_is_not_ours_is_left_alone(out: Path, tmp_path: Path) -> None:
    segments = out / "foxes" / "segments"
    (segments / "notes.txt").write_text("mine")
    (segments / "holiday.mp4").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "01-abababab.mp4").write_text("no film's folder")
    assert run(["clean", str(out), str(other), "--yes"]) == 0
    assert (segments / "notes.txt").exists()
    assert (segments / "holiday.mp4").exists()
    assert (other / "01-abababab.mp4").exists()


def test_a_link_is_left_alone(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    (out / "foxes" / "segments").rename(tmp_path / "elsewhere" / "segments")
    (out / "foxes" / "segments").symlink_to(tmp_path / "elsewhere" / "segments")
    before = everything(tmp_path)
    assert run(["clean", str(out), "--yes"]) == 0
    assert "not a plain folder" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_a_place_that_is_not_there_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "out" / "foxes")
    assert run(["clean"]) == 2  # the usual place is not here
    monkeypatch.chdir(tmp_path)
    assert run(["clean"]) == 0
