from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.checkpoint import FORMAT, FilmFolder, Manifest, digest, replacing, write_atomically, writing
from storyreel.errors import LockedError, OutputError

SEGMENTS = [{"number": "01", "key": "k", "video_key": "v"}, {"number": "02", "key": "l", "video_key": "w"}]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with a film of the key ``f``."""
    path = tmp_path / "film"
    with FilmFolder(path, "film") as folder:
        folder.begin(Manifest({"title": "t"}, SEGMENTS, {}))
        folder.film_path.write_bytes(b"film")
        folder.publish(Manifest({"title": "t"}, SEGMENTS, film_of(b"film")))
    return path


def film_of(data: bytes) -> dict[str, str]:
    return {"file": "film.mp4", "key": "f", "sha256": hashlib.sha256(data).hexdigest()}


def is_there(path: Path, key: str | None = "f") -> bool:
    with FilmFolder(path, "film") as folder:
        return folder.film_is_complete(key)


def test_a_film_counts_with_its_key_and_its_bytes(finished: Path) -> None:
    assert is_there(finished)
    assert is_there(finished, None)
    assert not is_there(finished, "other")
    film = finished / "film.mp4"
    for data in (b"", b"filn", b"film "):
        film.write_bytes(data)
        assert not is_there(finished)
    film.unlink()
    assert not is_there(finished, None)


def test_a_render_that_begins_leaves_the_film_and_its_manifest_alone(finished: Path) -> None:
    before = {name: (finished / name).read_bytes() for name in ("film.mp4", "manifest.json")}
    wanted = Manifest({"title": "u"}, [SEGMENTS[0] | {"video_key": "x"}], {})
    with FilmFolder(finished, "film") as folder:
        folder.begin(wanted)
    with FilmFolder(finished, "film") as folder:
        assert folder.unfinished == wanted
        assert folder.film_is_complete("f")
        folder.publish(Manifest({"title": "t"}, SEGMENTS, film_of(b"film")))  # back to what is there
        assert folder.unfinished == wanted  # which is still to be finished
        assert {name: (finished / name).read_bytes() for name in before} == before
        folder.publish(Manifest({"title": "u"}, wanted.segments, film_of(b"new")))
        assert folder.unfinished is None
    assert not (finished / "unfinished.json").exists()


def test_a_note_that_cannot_be_read_goes_with_the_next_film(finished: Path) -> None:
    (finished / "unfinished.json").write_text("{")
    with FilmFolder(finished, "film") as folder:
        assert folder.unfinished is None
        folder.publish(Manifest({"title": "t"}, SEGMENTS, film_of(b"film")))
    assert not (finished / "unfinished.json").exists()


def test_a_manifest_is_read_as_it_was_written(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["format"] == FORMAT == 4
    found = Manifest.read(finished / "manifest.json")
    assert found == Manifest({"title": "t"}, SEGMENTS, film_of(b"film"))


@pytest.mark.parametrize(
    "change",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"format": 4}',
        '{"format": 4, "segments": [1], "film": {}}',
        '{"format": 4, "segments": [], "film": {"key": 1}}',
        "[" * 9999,
        ('"format": 4', '"format": 3'),
        ('"title": "t"', '"title": NaN'),
        ('"title": "t"', '"title": 1e400'),
        ('"title": "t"', '"title": "\\ud800"'),
    ],
)
def test_a_manifest_that_is_not_ours_counts_as_none(finished: Path, change: str | tuple[str, str]) -> None:
    manifest = finished / "manifest.json"
    whole = manifest.read_text()
    text = change if isinstance(change, str) else whole.replace(*change)
    assert text != whole
    manifest.write_text(text)
    assert not is_there(finished, None)
    assert Manifest.read(manifest) is None


@given(data=st.data())
def test_a_damaged_manifest_never_raises(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("film")
    text = Manifest({"title": "t"}, SEGMENTS, film_of(b"film")).text()
    at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 9))
    for name in ("manifest.json", "unfinished.json"):
        changed = text[:at] + data.draw(st.text(max_size=3)) + text[at + cut :]
        (path / name).write_text(changed, "utf-8")
    with FilmFolder(path, "film") as folder:
        assert not folder.film_is_complete("f")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_leftovers_of_a_killed_run_are_removed(finished: Path) -> None:
    names = (".film-x.part.mp4", "segments/.02-x.part.mp4", "segments/.join.part.list.txt")
    leftovers = [finished / name for name in names]
    for path in leftovers:
        path.write_bytes(b"half")
    assert is_there(finished)
    assert not any(path.exists() for path in leftovers)


def test_one_folder_one_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from storyreel.checkpoint import FilmFolder\n"
        "with FilmFolder(Path(sys.argv[1]), 'film'): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "film")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        words = rf"another storyreel \(process {holder.pid} on {platform.node()}, since 2\d\d\d-.*\)"
        with pytest.raises(LockedError, match=words), FilmFolder(tmp_path / "film", "film"):
            pass
        (tmp_path / "film" / ".lock.json").write_text("[1]")  # of whom it is not known, it is not said
        with pytest.raises(LockedError, match="another storyreel is"), FilmFolder(tmp_path / "film", "film"):
            pass
        holder.kill()
    assert not is_there(tmp_path / "film")  # a dead holder's lock is no obstacle
    assert [path.name for path in (tmp_path / "film").iterdir() if "json" in path.name] == []


def test_what_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(OutputError, match="cannot write"), FilmFolder(blocker / "film", "film"):
        pass
    with pytest.raises(OutputError, match="No space"), writing(tmp_path):
        raise OSError(28, "No space left on device")


def test_digest_ignores_order_and_nothing_else() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) != digest({"a": "2"})
