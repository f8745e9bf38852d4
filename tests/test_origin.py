"""Advice to install something can be followed: storyreel is in no package index."""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from storyreel import origin
from storyreel.evaluation.weights import WEIGHTS
from storyreel.models.checksums import check_checksums
from storyreel.models.specs import MINI_WEIGHTS, MODELS
from tests.test_readme import READMES


def installed(patch: pytest.MonkeyPatch, facts: object) -> None:
    text = facts if isinstance(facts, str) or facts is None else json.dumps(facts)
    distribution = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    patch.setattr(metadata, "distribution", lambda name: distribution)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "my clone"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "storyreel"\nversion = "0"\n')
    return folder


def test_what_was_installed_from_a_clone_comes_from_there(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, {"url": clone.as_uri(), "dir_info": {}})
    assert shlex.split(origin.with_extra("eval")) == ["pip", "install", f"{clone}[eval]"]
    forced = ["pip", "install", "--force-reinstall", "--no-deps", str(clone)]
    assert shlex.split(origin.again(MINI_WEIGHTS)) == forced
    installed(monkeypatch, {"url": clone.as_uri(), "dir_info": {"editable": True}})
    assert shlex.split(origin.again(clone / "w")) == forced  # no repository, nothing to check out from
    (clone / ".git").mkdir()
    assert shlex.split(origin.again(clone / "w/x")) == ["git", "-C", str(clone), "checkout", "--", "w/x"]


def test_what_was_installed_from_an_address_comes_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": "https://x.org/s", "vcs_info": {"vcs": "git", "commit_id": "0123"}})
    address = "git+https://x.org/s@0123"
    assert shlex.split(origin.with_extra("eval")) == ["pip", "install", f"storyreel[eval] @ {address}"]
    assert origin.again(MINI_WEIGHTS).endswith(f"'storyreel @ {address}'")
    installed(monkeypatch, {"url": "https://x.org/s.whl", "archive_info": {}})
    assert "storyreel[eval] @ https://x.org/s.whl" in origin.with_extra("eval")


@pytest.mark.parametrize(
    "facts", [None, "", "[]", "{", {"url": 7}, {"url": "file:///gone"}, {"url": "", "dir_info": 1}], ids=str
)
def test_where_nothing_is_known_a_clone_is_named(facts: object, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, facts)
    assert origin.with_extra("eval") == "pip install '.[eval]' in a clone of storyreel"
    assert origin.again(MINI_WEIGHTS).endswith("--no-deps . in a clone of storyreel")


def test_no_advice_installs_a_name_from_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, None)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a.json\n")
    with pytest.raises(Exception, match=r"a\.json") as caught:
        check_checksums(tmp_path)
    told = [str(caught.value), *(spec.remedy for spec in MODELS.values())]
    told += [weights.remedy for weights in WEIGHTS.values()]
    for words in (*told, *READMES.values()):
        assert not re.search(r"pip install( -\S+)* '?storyreel[^ ]*(?! @) ", " ".join(words.split()) + " ")
