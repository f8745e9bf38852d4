"""Segments under their keys: what counts, what does not, and what lies beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.files import digest
from storyreel.film.store import Kind, Record, Store, read_record

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the first segment's latents and pictures."""
    store = Store(tmp_path)
    store.path("latents", "01", KEY).write_bytes(b"latents")
    store.keep("latents", "01", KEY, "cpu", 1.5, 4, {"lead": 2, "prompt_weights": [(0.5, 0.5)]})
    store.path("video", "01", OTHER).write_bytes(b"video")
    store.keep("video", "01", OTHER, "cpu", 0.25)
    return store


def test_files_are_named_by_number_and_key(store: Store) -> None:
    names = ["01-abababab.safetensors", "01-cdcdcdcd.mp4"]
    assert [path.name for path in sorted(store.folder.iterdir())] == sorted(
        [*names, *(f"{name}.json" for name in names)]
    )


def test_a_file_counts_with_its_key_and_its_bytes(store: Store) -> None:
    latents = store.find("latents", "01", KEY)
    assert latents is not None
    assert (latents.device, latents.seconds, latents.step) == ("cpu", 1.5, 4)
    assert latents.decided == {"lead": 2, "prompt_weights": [(0.5, 0.5)]}
    assert store.find("video", "01", OTHER) is not None
    for kind, number, key in (
        ("latents", "01", OTHER),
        ("latents", "02", KEY),
        ("video", "01", KEY),
        ("state", "01", KEY),
        ("latents", "01", KEY[:8] + OTHER),  # of the same name
    ):
        assert store.find(kind, number, key) is None  # type: ignore[arg-type]


def test_what_has_another_key_is_in_nobodys_way(store: Store) -> None:
    store.path("latents", "01", OTHER).write_bytes(b"of another seed")
    store.keep("latents", "01", OTHER, "cpu")
    assert store.find("latents", "01", KEY) is not None
    assert store.find("latents", "01", OTHER) is not None


@pytest.mark.parametrize("bit", range(0, 40, 7))
def test_a_flipped_bit_or_a_missing_file_is_found(store: Store, bit: int) -> None:
    path = store.path("video", "01", OTHER)
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    assert store.find("video", "01", OTHER) is None
    assert store.record("video", "01", OTHER) is not None
    path.unlink()
    assert store.find("video", "01", OTHER) is None


def test_new_bytes_without_a_record_are_a_strangers(store: Store) -> None:
    store.path("latents", "02", KEY).write_bytes(b"of a run that was killed just then")
    assert store.find("latents", "02", KEY) is None


def test_a_record_that_was_changed_counts_as_none(store: Store) -> None:
    path = store.path("latents", "01", KEY).with_name("01-abababab.safetensors.json")
    whole = path.read_text()
    for change in (
        ('"lead": 2', '"lead": 3'),
        ('"seconds": 1.5', '"seconds": 1.7'),
        ('"seconds": 1.5', '"seconds": NaN'),
        ('"device": "c', '"device": "g'),
        ('"device": "c', '"device": "\\ud800'),
        ('"format": 5', '"format": 4'),
        ('"step": 4', '"step": 3'),
    ):
        assert change[0] in whole
        path.write_text(whole.replace(*change))
        assert store.find("latents", "01", KEY) is None, change
    path.write_text(whole)
    assert store.find("latents", "01", KEY) is not None
    path.rename(path.with_name("02-abababab.safetensors.json"))  # vouches for no other file
    store.path("latents", "02", KEY).write_bytes(b"latents")
    assert store.find("latents", "02", KEY) is None


@given(data=st.data())
def test_a_damaged_record_never_raises(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    record = Record("latents", "01", KEY, OTHER, "cpu", 1.0, 1, {"lead": 1})
    path = tmp_path_factory.mktemp("store") / f"{record.file}.json"
    text = record.text()
    at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 9))
    path.write_text(text[:at] + data.draw(st.text(max_size=3)) + text[at + cut :], "utf-8")
    assert read_record(path) in (None, record)


@pytest.mark.parametrize(
    "change",
    [
        {"number": "../01"},
        {"number": "01\x1b"},
        {"kind": "code"},
        {"sha256": 3},
        {"decided": []},
        {"begun": "x"},
    ],
    ids=str,
)
def test_nobody_is_led_elsewhere_by_a_record_that_somebody_signed(
    tmp_path: Path, change: dict[str, object]
) -> None:
    record = Record("latents", "01", KEY, OTHER, "cpu", 1.0)
    content = json.loads(record.text())
    content |= change
    content.pop("seal")
    path = tmp_path / f"{record.file}.json"
    path.write_text(json.dumps(content | {"seal": digest(content)}))
    assert read_record(path) is None


def test_a_record_is_small(tmp_path: Path) -> None:
    record = Record(
        "latents", "01", KEY, OTHER, "cpu", 1.0, decided={"prompt_weights": [(0.1, 0.9)] * 90_000}
    )
    path = tmp_path / f"{record.file}.json"
    path.write_text(record.text())
    assert path.stat().st_size > 1 << 20
    assert read_record(path) is None  # nobody reads gigabytes to find out


def test_what_is_dropped_is_gone_and_may_be_gone_already(store: Store) -> None:
    for _ in range(2):
        store.drop("latents", "01", KEY)
        assert store.find("latents", "01", KEY) is None
    assert len(list(store.folder.iterdir())) == 2


def test_only_what_a_render_wrote_is_ours(store: Store) -> None:
    state: tuple[Kind, str, str] = ("state", "03", KEY)
    store.path(*state).write_bytes(b"state")
    store.keep(*state, "cpu")
    mine = {path.name for path in store.folder.iterdir()}
    strangers = ("notes.txt", "holiday.mp4", "01-abababab.mp4.bak", "1.mp4", "01-ABABABAB.mp4", "05.json")
    for name in strangers:
        (store.folder / name).write_bytes(b"")
    (store.folder / "07.mp4").symlink_to("elsewhere")
    found = [path.name for path in store.files()]
    assert set(found) == mine
    for name in found:
        if name.endswith(".json"):  # a record goes before its file, so that no file is believed half gone
            assert found.index(name) < found.index(name.removesuffix(".json"))
    assert list(Store(store.folder / "nowhere").files()) == []
