"""Where this storyreel was installed from, for advice that can be followed: it is in no package index."""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path


def with_extra(extra: str) -> str:
    """Return the command that installs one of storyreel's extras."""
    folder, address, _ = _source()
    if folder is not None:
        return f"pip install {shlex.quote(f'{folder}[{extra}]')}"
    if address:
        return f"pip install {shlex.quote(f'storyreel[{extra}] @ {address}')}"
    return f"pip install '.[{extra}]' in a clone of storyreel"


def again(path: Path) -> str:
    """Return the command that brings back a file that came with storyreel."""
    folder, address, is_editable = _source()
    if folder is not None and is_editable and (folder / ".git").exists() and folder in path.parents:
        return f"git -C {shlex.quote(str(folder))} checkout -- {shlex.quote(str(path.relative_to(folder)))}"
    forced = "pip install --force-reinstall --no-deps"
    if folder is not None:
        return f"{forced} {shlex.quote(str(folder))}"
    return f"{forced} " + (shlex.quote(f"storyreel @ {address}") if address else ". in a clone of storyreel")


def _unquoted(path: str) -> str:
    """Return a path that an address holds, where %20 is a blank."""
    return re.sub(rb"%([0-9a-fA-F]{2})", lambda code: bytes.fromhex(code[1].decode()), path.encode()).decode(
        errors="replace"
    )


def _source() -> tuple[Path | None, str, bool]:
    """Return the folder that pip installed from, if it is still there; an address, if it was one.

    And whether the files that are used are those of the folder.
    """
    try:
        facts = json.loads(metadata.distribution("storyreel").read_text("direct_url.json") or "{}")
        url, vcs = facts.get("url"), facts.get("vcs_info")
        if not isinstance(url, str):
            return None, "", False
        if url.startswith("file://"):
            folder = Path(_unquoted(url.removeprefix("file://")))
            is_editable = bool(facts.get("dir_info", {}).get("editable"))
            return (folder if (folder / "pyproject.toml").is_file() else None), "", is_editable
        if isinstance(vcs, dict):
            return None, f"{vcs.get('vcs')}+{url}@{vcs.get('commit_id')}", False
        return None, url, False
    except (metadata.PackageNotFoundError, OSError, ValueError, AttributeError):
        return None, "", False
