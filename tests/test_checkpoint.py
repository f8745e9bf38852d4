from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.checkpoint import FilmFolder, digest, replacing, write_atomically, writing
from storyreel.errors import LockedError, OutputError


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with one finished segment, key ``k``."""
    path = tmp_path / "film"
    with FilmFolder(path, "film") as folder:
        folder.video("01").write_bytes(b"video")
        folder.latents("01").write_bytes(b"latents")
        folder.record_segment("01", "k", 24, "cpu", 1.0)
        folder.write_manifest({"title": "t"}, [{"number": "01"}])
    return path


def complete(path: Path, key: str = "k", device: str = "auto") -> bool:
    with FilmFolder(path, "film") as folder:
        return folder.is_complete("01", key, device)


def test_a_segment_is_complete_with_its_key_and_its_bytes(finished: Path) -> None:
    assert complete(finished)
    assert not complete(finished, "other")
    assert complete(finished, device="cpu")
    assert not complete(finished, device="cuda")  # asked for, so the other's is not good enough


@pytest.mark.parametrize("name", ["01.mp4", "01.safetensors"])
@pytest.mark.parametrize("bit", range(0, 40, 7))
def test_a_flipped_bit_or_a_missing_file_is_found(finished: Path, name: str, bit: int) -> None:
    path = finished / "segments" / name
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    assert not complete(finished)
    path.unlink()
    assert not complete(finished)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "segments": [1], "film": {}}', "[" * 9999],
)
def test_a_manifest_that_is_not_ours_counts_as_none(finished: Path, text: str) -> None:
    (finished / "manifest.json").write_text(text)
    assert not complete(finished)


@given(data=st.data())
def test_a_damaged_manifest_never_raises(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("film")
    text = json.dumps(
        {
            "format": 1,
            "segments": [{"number": "01", "key": "k", "frames": 1, "files": {"01.mp4": "0"}, "seconds": 1}],
            "film": {},
        }
    )
    at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 9))
    (path / "manifest.json").write_text(
        text[:at] + data.draw(st.text(max_size=3)) + text[at + cut :], "utf-8"
    )
    with FilmFolder(path, "film") as folder:
        assert not folder.is_complete("01", "k")
        assert not folder.film_is_complete("k")


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
    assert complete(finished)
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
        with pytest.raises(LockedError, match="another storyreel"), FilmFolder(tmp_path / "film", "film"):
            pass
        holder.kill()
    assert not complete(tmp_path / "film")  # a dead holder's lock is no obstacle


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
