from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.errors import LockedError, OutputError
from storyreel.files import digest, read_json, replacing, write_atomically, writing
from storyreel.film.folder import FilmFolder
from storyreel.film.manifest import Manifest
from storyreel.film.store import FORMAT
from storyreel.lock import Lock

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
    assert manifest["format"] == FORMAT == 5
    found = Manifest.read(finished / "manifest.json")
    assert found == Manifest({"title": "t"}, SEGMENTS, film_of(b"film"))


@pytest.mark.parametrize(
    "change",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"format": 5}',
        '{"format": 5, "segments": [1], "film": {}}',
        '{"format": 5, "segments": [], "film": {"key": 1}}',
        "[" * 9999,
        ('"format": 5', '"format": 4'),
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
        "import sys; from pathlib import Path; from storyreel.film.folder import FilmFolder\n"
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


def test_what_is_no_json_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("NaN", "[-Infinity]", "1e400", '"\\ud800"', "[" * 100_000, "9" * 5000, "", '{"a": \xff}'):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"."):
            read_json(path)
    path.write_bytes('"\ud800"'.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"."):
        read_json(path)
    for data in (b'\xef\xbb\xbf{"a": 1e9}\r\n', '{"a": 1e9}'.encode("utf-16"), b' {"a":1000000000}\n\n'):
        path.write_bytes(data)  # as other programs write it
        assert read_json(path) == {"a": 1e9}
    path.write_text('"\\ud83e\\udd8a \ud83e"'.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    assert read_json(path).startswith("🦊")
    with pytest.raises(OSError, match="not a file"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "Make room, or choose another --out."),
        (errno.EDQUOT, "Make room, or"),
        (errno.EACCES, "Make it writable, or"),
        (errno.EROFS, "Make it writable, or"),
        (errno.EIO, "Check the disk, or"),
        (errno.ENAMETOOLONG, "Shorten the name, or"),
        (errno.EINVAL, "Choose another --out."),
    ],
)
def test_the_remedy_is_true(tmp_path: Path, code: int, advice: str) -> None:
    path = tmp_path / "film.mp4"
    with pytest.raises(OutputError) as caught, writing(path):
        raise OSError(code, os.strerror(code), str(tmp_path / ".film-0123.part.mp4"))
    assert caught.value.message == f"cannot write {path}: {os.strerror(code)}"
    assert caught.value.remedy.startswith(advice)
    assert caught.value.remedy.endswith("finished scenes are kept.")
    with pytest.raises(OutputError) as caught, writing(path, "choose another --report", ""):
        raise OSError(code, os.strerror(code))
    assert "--out" not in caught.value.remedy
    assert caught.value.remedy.endswith("hoose another --report.")


def test_a_file_into_a_folder_that_is_not_there_names_the_file_and_the_option(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "page.html"
    with pytest.raises(OutputError) as caught, writing(path, "name another file: --page FILE", ""):
        write_atomically(path, "page")
    assert str(caught.value).splitlines() == [
        f"error: cannot write {path}: No such file or directory",
        "Name another file: --page FILE.",
    ]


def test_what_cannot_be_read_is_not_called_unwritable(tmp_path: Path) -> None:
    for name in ("weights/model.json", "film/01.safetensors"):
        with pytest.raises(FileNotFoundError), writing(tmp_path / "film" / "02.mp4"):
            raise FileNotFoundError(2, "No such file", str(tmp_path / name))


@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "file"])
def test_what_stands_in_the_way_is_named(tmp_path: Path, kind: str) -> None:
    block = tmp_path / "out"
    if kind == "file":
        block.write_text("")
    else:
        block.symlink_to("out" if kind == "link to itself" else tmp_path / "nothing")
    for path in (block / "film", block / "deep" / "film"):
        with pytest.raises(OutputError) as caught, FilmFolder(path, "film"):
            pass
        words = "not a folder" if kind == "file" else "a broken link"
        assert caught.value.message.endswith(f": {block} is {words}")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, as some networks have."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_one_folder_one_process_where_there_are_no_locks(finished: Path) -> None:
    outside = FilmFolder(finished, "film")
    assert not outside.is_in_use()
    with FilmFolder(finished, "film") as folder:
        assert folder.film_is_complete("f")
        assert outside.is_in_use()
        words = rf"another storyreel \(process {os.getpid()} on "
        with pytest.raises(LockedError, match=words) as caught, FilmFolder(finished, "film"):
            pass
        assert f"delete {finished / '.lock.json'}" in caught.value.remedy
    assert not outside.is_in_use()
    assert not (finished / ".lock.json").exists()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(("job", "again", "counts"), [("7", "0", True), ("7", "1", False), ("8", "1", True)])
def test_a_job_that_slurm_has_put_back_into_the_queue_takes_its_own_lock(
    finished: Path, job: str, again: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node has failed: the process that noted the lock there ends no more."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    lock = Lock(finished / ".lock")
    assert lock.acquire(0)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(platform, "node", lambda: "another")
        elsewhere.setenv("SLURM_JOB_ID", job)
        elsewhere.setenv("SLURM_RESTART_COUNT", again)
        assert Lock(finished / ".lock").acquire(0) == (not counts)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    ("note", "counts"),
    [
        ("[{dead}, {here}, 1]", False),
        ('[{dead}, "elsewhere", 1]', True),
        ("[{alive}, {here}, 1]", True),
        ("", True),  # just being written
        ("[1]", True),
        ("[-1e99, {here}, 1]", True),
        ("[" * 100_000, True),
    ],
    ids=["dead", "elsewhere", "alive", "empty", "short", "huge", "deep"],
)
def test_the_note_of_a_dead_process_counts_for_nothing(finished: Path, note: str, counts: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    facts = {"{dead}": str(process.pid), "{alive}": str(os.getppid()), "{here}": json.dumps(platform.node())}
    for name, value in facts.items():
        note = note.replace(name, value)
    (finished / ".lock.json").write_text(note)
    assert FilmFolder(finished, "film").is_in_use() == counts
    if counts:
        with pytest.raises(LockedError, match="another storyreel"), FilmFolder(finished, "film"):
            pass
    else:
        assert is_there(finished)


def test_a_look_writes_nothing(tmp_path: Path) -> None:
    assert not FilmFolder(tmp_path / "nothing", "film").is_in_use()
    assert not list(tmp_path.iterdir())


def test_who_waits_for_a_lock_gets_it(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire(0)
    assert not second.acquire(0)
    threading.Timer(0.1, first.release).start()
    said: list[str] = []
    with second.waited_for(said.append):
        assert first.is_held()
    assert not first.is_held()
    assert said == []


def test_who_waits_long_is_told_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyreel.lock.SILENT", 0.01)
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire(0)

    def tell(words: str) -> None:
        assert words.startswith(f"waiting for another storyreel (process {os.getpid()} on ")
        first.release()

    with second.waited_for(tell):
        pass


def test_where_nothing_can_be_synced_it_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    for code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        write_atomically(tmp_path / "a", f"{code}")
        assert (tmp_path / "a").read_text() == f"{code}"
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "a", "lost")
    assert (tmp_path / "a").read_text() != "lost"
