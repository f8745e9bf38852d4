"""Weights are held against their published hashes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storyreel.errors import DamagedError, MissingError
from storyreel.models.checksums import CHECKSUMS, check_checksums, write_checksums
from storyreel.models.loading import load_adapter
from storyreel.models.specs import MINI_WEIGHTS, MODELS


def test_the_embedded_weights_are_what_was_published() -> None:
    check_checksums(MINI_WEIGHTS)
    listed = {line.partition("  ")[2] for line in (MINI_WEIGHTS / CHECKSUMS).read_text().splitlines()}
    files = {p.relative_to(MINI_WEIGHTS).as_posix() for p in MINI_WEIGHTS.rglob("*") if p.is_file()}
    assert listed == files - {CHECKSUMS}


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(MINI_WEIGHTS, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="SHA-256") as caught:
        load_adapter(replace(MODELS["mini"], weights=folder), torch.device("cpu"))
    assert str(path) in str(caught.value)
    assert "--force-reinstall" in caught.value.remedy


def test_a_listed_file_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    write_checksums(tmp_path)
    check_checksums(tmp_path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(MissingError, match=r"a\.json"):
        check_checksums(tmp_path)


def test_a_damaged_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS).write_bytes(b"\xff\x00 no list")
    with pytest.raises(DamagedError, match=CHECKSUMS):
        check_checksums(tmp_path)


def test_a_folder_of_ones_own_needs_no_hashes(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    check_checksums(tmp_path)
