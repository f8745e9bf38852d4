"""Hashes of large files are remembered, and forgotten as soon as there is any reason to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storyreel import files as disk
from storyreel.files import file_hash
from storyreel.film import hashes as remembered
from storyreel.film import keys
from storyreel.film.hashes import RememberedHashes
from storyreel.models.specs import ModelSpec
from tests.conftest import FakeEngine


class Counting:
    """Files that are hashed, and a cache for them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        self.path = folder / "cache" / "hashes.json"
        self.file = folder / "model.safetensors"
        self.file.write_bytes(b"weights" * 9)
        patch.setattr(remembered, "LARGE", 20)
        patch.setattr(remembered, "SETTLED", 0.0)
        patch.setattr(disk, "file_hash", self._hash)

    def _hash(self, path: Path) -> str:
        self.read.append(path.name)
        return file_hash(path)

    def asked(self) -> int:
        """Ask for the file's hash, which must be true; return how often it was read for that."""
        before = len(self.read)
        hashes = RememberedHashes(self.path)
        to_read = hashes.to_read([self.file])
        assert hashes.of([self.file]) == {self.file: file_hash(self.file)}
        count = len(self.read) - before
        assert to_read == count * self.file.stat().st_size
        return count


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(tmp_path, monkeypatch)


def test_a_large_file_is_read_once(files: Counting) -> None:
    assert [files.asked() for _ in range(3)] == [1, 0, 0]


def test_a_small_file_is_read_every_time_and_leaves_nothing(files: Counting) -> None:
    files.file.write_bytes(b"small")
    hashes = RememberedHashes(files.path)
    for _ in range(2):
        assert hashes.of([files.file]) == {files.file: file_hash(files.file)}
    assert files.read == ["model.safetensors"] * 2
    assert not files.path.exists()


def test_whatever_happens_to_a_file_has_it_read_again(files: Counting, tmp_path: Path) -> None:
    files.asked()
    size, times = files.file.stat().st_size, files.file.stat()

    def put_another_in_its_place() -> None:
        shutil.copy(files.file, tmp_path / "copy")
        (tmp_path / "copy").replace(files.file)

    changes: list[Callable[[], object]] = [
        lambda: files.file.write_bytes(b"x" * size),
        lambda: files.file.write_bytes(b"y" * (size + 1)),
        lambda: os.utime(files.file, ns=(0, 0)),
        lambda: os.truncate(files.file, size - 1),
        put_another_in_its_place,
        lambda: files.file.chmod(0o600),
    ]
    for change in changes:
        time.sleep(0.01)  # longer than a tick of the file system's clock
        change()
        assert [files.asked(), files.asked()] == [1, 0]
    # Nor does a program that sets the time of the last writing back hide anything.
    time.sleep(0.01)
    files.file.write_bytes(b"z" * files.file.stat().st_size)
    os.utime(files.file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files.asked() == 1


def test_a_file_that_has_just_changed_is_not_remembered(
    files: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SETTLED", 1000.0)
    assert [files.asked(), files.asked()] == [1, 1]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    files: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path) -> str:
        value = files._hash(path)
        time.sleep(0.01)
        path.write_bytes(b"other weights" * 9)
        return value

    monkeypatch.setattr(disk, "file_hash", changing)
    RememberedHashes(files.path).of([files.file])
    monkeypatch.setattr(disk, "file_hash", files._hash)
    assert files.asked() == 1


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 9999, '{"x": 1}'])
def test_a_cache_that_is_damaged_counts_as_none(files: Counting, text: str) -> None:
    files.asked()
    files.path.write_text(text)
    assert [files.asked(), files.asked()] == [1, 0]


def test_no_bit_of_an_entry_may_flip(files: Counting) -> None:
    files.asked()
    whole = files.path.read_bytes()
    for at in range(0, len(whole), 3):
        data = bytearray(whole)
        data[at] ^= 1
        files.path.write_bytes(data)
        assert RememberedHashes(files.path).of([files.file]) == {files.file: file_hash(files.file)}


def test_an_entry_vouches_for_no_other_file(files: Counting, tmp_path: Path) -> None:
    files.asked()
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"foreign" * 9)
    known = json.loads(files.path.read_text())
    files.path.write_text(json.dumps({str(other): next(iter(known.values()))}))
    assert RememberedHashes(files.path).of([other]) == {other: file_hash(other)}


def test_what_is_gone_is_forgotten(files: Counting, tmp_path: Path) -> None:
    files.asked()
    other = tmp_path / "other.safetensors"
    files.file.rename(other)
    RememberedHashes(files.path).of([other])
    assert list(json.loads(files.path.read_text())) == [str(other)]


def test_a_cache_that_cannot_be_written_is_none(files: Counting) -> None:
    files.path.parent.write_text("in the way")
    assert [files.asked(), files.asked()] == [1, 1]


def test_what_a_hub_names_by_its_hash_is_not_read(files: Counting, tmp_path: Path) -> None:
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes(b"weights" * 99)
    link = tmp_path / "link.safetensors"
    link.symlink_to(blob)
    hashes = RememberedHashes(files.path)
    assert hashes.to_read([link]) == 0
    assert hashes.of([link]) == {link: "ab" * 32}
    assert files.read == []


def test_weights_are_remembered_and_a_long_reading_is_said(
    files: Counting, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    (fake_model.weights / "vae" / "model.safetensors").write_bytes(b"weights" * 9)
    monkeypatch.setattr("storyreel.engine.LONG", 20)
    said: list[str] = []
    first = FakeEngine().ingredients(fake_model, said.append)
    assert (len(said), files.read) == (1, ["model.safetensors"])
    engine = FakeEngine()
    assert engine.ingredients(fake_model, said.append) == first
    assert engine.ingredients(fake_model, said.append) is first or engine._ingredients
    assert (len(said), files.read) == (1, ["model.safetensors"])
    assert (tmp_path / "caches" / "storyreel" / "hashes.json").exists()
    (fake_model.weights / "vae" / "model.safetensors").write_bytes(b"others!" * 9)
    assert keys.weight_hashes(fake_model) != first["model"]["weights"]


def test_a_tokenizers_words_are_weights_too(fake_model: ModelSpec) -> None:
    before = keys.weight_hashes(fake_model)
    (fake_model.weights / "tokenizer").mkdir()
    (fake_model.weights / "tokenizer" / "spiece.model").write_bytes(b"words")
    assert set(keys.weight_hashes(fake_model)) - set(before) == {"tokenizer/spiece.model"}
