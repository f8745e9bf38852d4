"""Fetching weights: the only code that ever contacts a hub, and only when `storyreel pull` asks it.

What is fetched lies in huggingface_hub's own cache, where other tools find it too. The commit is
written into a ref of ours there, and held to from then on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # by its __init__

from storyreel.errors import DamagedError, LicenceError, MissingError, OutputError, StoryreelError, counted
from storyreel.files import file_hash, write_atomically, writing
from storyreel.lock import Lock
from storyreel.models.inventory import KINDS, needed, of_another_variant
from storyreel.models.specs import FREE, PULLED, ModelSpec, pulled_folder

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
FORBIDDING = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # in the order in which the library reads them
SPARE = 1 << 30  # bytes that stay free on the disk
ACCEPTED = ".storyreel-licence"  # in a repository's folder; its own refs are commits, and nothing else


@dataclass(frozen=True)
class Remote:
    """A file of a repository. ``digest`` is the SHA-256 of a large one, of others git's SHA-1."""

    name: str
    size: int
    digest: str

    def is_named(self) -> bool:
        """Tell whether size and digest are such."""
        return isinstance(self.size, int) and bool(
            re.fullmatch("[0-9a-f]{40}([0-9a-f]{24})?", str(self.digest))
        )

    def is_at(self, path: Path) -> bool:
        """Tell whether a file is this one, byte for byte."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        if len(self.digest) == 64:
            return file_hash(path) == self.digest
        return hashlib.sha1(b"blob %d\0" % self.size + path.read_bytes()).hexdigest() == self.digest


def pull(
    spec: ModelSpec,
    tell: Callable[[str], None],
    update: bool = False,
    endpoint: str | None = None,
    accepts: Callable[[str], bool] = lambda licence: False,
) -> Path:
    """Fetch what is missing of a model, verify all of it, and return its folder: `agree`, `find`, `take`."""
    agree(spec, tell, endpoint, accepts)
    return take(spec, find(spec, tell, update, endpoint), tell, endpoint)


def agree(
    spec: ModelSpec,
    tell: Callable[[str], None],
    endpoint: str | None = None,
    accepts: Callable[[str], bool] = lambda licence: False,
) -> None:
    """Have a model's licence accepted, before any contact with the hub.

    ``tell`` is told licence and territory, which are the table's. A licence that has conditions is to be
    accepted: once for each repository, by ``accepts``, which is called with what it is. Raises LicenceError
    if it is not.
    """
    if spec.hub is None:
        return
    page = f"{huggingface_hub.HfApi(endpoint=endpoint).endpoint}/{spec.hub}"
    territory = f"; it gives no rights in {spec.territory}" if spec.territory else ""
    terms = f"{spec.licence}{territory}"
    tell(f"{spec.name}: licence {terms} ({page})")
    if spec.licence in FREE and not spec.territory:
        return
    repository = pulled_folder(spec.hub).parent.parent
    accepted = repository / ACCEPTED
    try:
        before = accepted.read_text(errors="replace")
    except OSError:
        before = ""
    if before == terms:
        return
    if not accepts(terms):
        remedy = f"Read it at {page}; if you accept it: storyreel pull {spec.name} --accept-licence"
        raise LicenceError(f"the licence of {spec.name} is not accepted: {terms}", remedy)
    with writing(accepted):
        # Other tools, which read this cache too, take a repository without that folder for a damaged one.
        (repository / "snapshots").mkdir(parents=True, exist_ok=True)
        write_atomically(accepted, terms)


def find(
    spec: ModelSpec, tell: Callable[[str], None], update: bool = False, endpoint: str | None = None
) -> list[Found]:
    """Return a model's files at the hub, and tell their size; nothing is fetched. `agree` comes first.

    The commit is the one of the last pull, the first time the table's, or with ``update`` and without
    either the newest. Of a variant, there are the files that are added to the model's too. Raises
    MissingError if the hub cannot be reached or refuses, DamagedError if it names no hashes.
    """
    if spec.hub is None:
        return []
    choose = partial(needed, variant=spec.variant, components=spec.components)
    found = [_find(spec.hub, choose, update, endpoint, spec.revision)]
    for hub, added in groupby(spec.added, lambda one: one.hub):
        several = list(added)
        found.append(_find(hub, _named([one.file for one in several]), update, endpoint, several[0].revision))
    size = sum(file.size for one in found for file in one.files) / 1e9
    missing = sum(_missing(one.repository, one.files) for one in found) / 1e9
    tell(f"{spec.name}: {size:.1f} GB, {missing:.1f} GB of them to be fetched")
    return found


def take(
    spec: ModelSpec, found: Sequence[Found], tell: Callable[[str], None], endpoint: str | None = None
) -> Path:
    """Fetch what is missing of a model's files, verify all of them, hold to their commits, return its folder.

    Raises MissingError if the hub cannot be reached or refuses, DamagedError if a file is not what the hub
    says, OutputError if the disk has no room.
    """
    for one in found:
        _take(spec.name, one, tell, endpoint)
    return pulled_folder(spec.hub) if spec.hub else spec.weights


def fetch(
    name: str,
    hub: str,
    choose: Callable[[Sequence[str]], list[str]],
    tell: Callable[[str], None],
    update: bool = False,
    endpoint: str | None = None,
    revision: str | None = None,
) -> Path:
    """Fetch the files of a repository that ``choose`` picks by their names; see `pull`."""
    return _take(name, _find(hub, choose, update, endpoint, revision), tell, endpoint)


@dataclass(frozen=True)
class Found:
    """The files of a repository that are wanted, at a commit."""

    hub: str
    commit: str
    files: list[Remote]

    @property
    def repository(self) -> Path:
        """Its folder in the cache."""
        return pulled_folder(self.hub).parent.parent


def _named(wanted: Sequence[str]) -> Callable[[Sequence[str]], list[str]]:
    """Return what chooses these files; it raises MissingError if one is not there."""

    def choose(names: Sequence[str]) -> list[str]:
        if gone := [name for name in wanted if name not in names]:
            raise MissingError(f"the hub has no {gone[0]} at that commit", "Try: --update")
        return list(wanted)

    return choose


def _find(
    hub: str,
    choose: Callable[[Sequence[str]], list[str]],
    update: bool,
    endpoint: str | None,
    revision: str | None,
) -> Found:
    """Ask the hub for a repository's files. Raises MissingError or DamagedError."""
    held = pulled_folder(hub)
    wanted = None if update else revision if held.name == "not pulled" else held.name
    with _told(hub):
        commit, files = listing(hub, wanted, choose, endpoint)
    if not any(file.name.endswith(".safetensors") for file in files):
        remedy = "Convert them elsewhere, and name the folder: --weights or --weights-dir."
        raise MissingError(f"{hub} has no safetensors at {commit}", remedy)
    return Found(hub, commit, files)


def _take(name: str, found: Found, tell: Callable[[str], None], endpoint: str | None) -> Path:
    """Fetch what is missing of some files, verify all, and hold to their commit; see `pull`."""
    hub, commit, files, repository = found.hub, found.commit, found.files, found.repository
    with _told(hub):
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        with Lock(repository / "blobs" / ".storyreel.lock").waited_for(tell):  # of two at once, one waits
            _check_room(repository, files)
            gigabytes = sum(file.size for file in files) / 1e9
            tell(f"{name}: {counted(len(files), 'file')}, {gigabytes:.1f} GB, {hub} at {commit}")
            for file in files:
                url = huggingface_hub.hf_hub_url(hub, file.name, revision=commit, endpoint=endpoint)
                _fetch(repository, commit, file, url)
                tell(f"{file.name}: {file.size / 1e6:.1f} MB")
    reference = repository / "refs" / PULLED
    with writing(reference):
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, commit)
    return pulled_folder(hub)


@contextmanager
def _told(hub: str) -> Iterator[None]:
    """Turn whatever the library raises for a repository into errors of ours."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(hub, error) from error
    except StoryreelError:
        raise
    except OfflineModeIsEnabled as error:
        name = next((name for name in FORBIDDING if os.environ.get(name)), FORBIDDING[0])
        remedy = f"Run it without that variable: env -u {name} storyreel pull …"
        raise MissingError(f"{name} forbids any contact with the hub", remedy) from error
    except Exception as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in OF_THE_DISK):
            where = error.filename or pulled_folder(hub).parent.parent
            remedy = "Make room, or set HF_HOME to another disk; what is there is kept."
            raise OutputError(f"cannot write {where}: {error.strerror}", remedy) from error
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith("http"):
            raise
        # The library hands on what its own library for HTTP, of one name or another, raises.
        remedy = "Check the network, or pull on another machine and copy its cache. What is there is kept."
        raise MissingError(f"the hub cannot be reached: {_first_line(error)}", remedy) from error


def listing(
    repository: str,
    revision: str | None,
    choose: Callable[[Sequence[str]], list[str]],
    endpoint: str | None = None,
) -> tuple[str, list[Remote]]:
    """Return a repository's commit and its files that a model is loaded from."""
    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True)
        commit = str(info.sha)
        files = [
            Remote(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
            for file in info.siblings or ()
        ]
        chosen = set(choose([file.name for file in files]))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        # Of the hub's own answers the library makes something; these are of another.
        raise _stranger(api.endpoint) from error
    files = [file for file in files if file.name in chosen]
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not all(file.is_named() for file in files):
        raise DamagedError(f"the hub names no commit of {repository}, or no hashes", "Try again later.")
    return commit, files


def _stranger(endpoint: str) -> MissingError:
    """Return the error for an answer that is not the hub's."""
    remedy = (
        f"A network's login page or a proxy may stand between: open {endpoint} in a browser on this machine "
        "and log in, or pull on another machine and copy its cache. What is there is kept."
    )
    return MissingError(f"something else than the hub answers at {endpoint}", remedy)


def at_the_top(names: Sequence[str]) -> list[str]:
    """Return the files of a single model of transformers: those that lie in no folder."""
    return [n for n in names if "/" not in n and n.endswith(KINDS) and not of_another_variant(n)]


def _check_room(repository: Path, files: Sequence[Remote]) -> None:
    missing, free = _missing(repository, files), shutil.disk_usage(repository).free
    if missing and missing + SPARE > free:
        message = f"{missing / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free in {repository}"
        raise OutputError(message, "Make room, or set HF_HOME to a larger disk.")


def _missing(repository: Path, files: Sequence[Remote]) -> int:
    """Return the bytes of some files that are still to be fetched."""
    blobs, missing = repository / "blobs", 0
    for file in files:
        found = [path.stat().st_size for path in (blobs / file.digest, _part(blobs, file)) if path.exists()]
        missing += max(0, file.size - max(found, default=0))
    return missing


def _part(blobs: Path, file: Remote) -> Path:
    """Return where a file is as long as it is not whole."""
    return blobs / f"{file.digest}.storyreel"


def _fetch(repository: Path, commit: str, file: Remote, url: str) -> None:
    """Have a file in huggingface_hub's cache, where it belongs: a blob, and a link with its name.

    The library keeps nothing of a transfer that broke off; here the next one goes on from there.
    """
    blob = repository / "blobs" / file.digest
    if not file.is_at(blob):
        blob.unlink(missing_ok=True)
        part = _part(blob.parent, file)
        try:
            _transfer(file, url, part)
        except Exception as error:
            if not _is_page(part):
                raise
            part.unlink()
            raise _stranger(url.partition("/resolve/")[0]) from error
        if not file.is_at(part):
            is_page = _is_page(part)
            part.unlink()
            if is_page:
                raise _stranger(url.partition("/resolve/")[0])
            message = f"{file.name} is not what the hub says: it was removed"
            raise DamagedError(message, "Run the same command again.")
        part.replace(blob)
    link = repository / "snapshots" / commit / file.name
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # one that leads nowhere
        link.symlink_to(os.path.relpath(blob, link.parent))


def _transfer(file: Remote, url: str, part: Path) -> None:
    with part.open("ab") as target:
        if target.tell() > file.size:
            target.truncate(0)
        http_get(
            url,
            target,
            resume_size=target.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.name,
        )


def _is_page(path: Path) -> bool:
    """Tell whether a file holds a page for a browser, which no file of a model is."""
    with path.open("rb") as file:
        return re.match(rb"\s*<(!doctype|html)", file.read(100), re.IGNORECASE) is not None


def _refused(hub: str, error: HfHubHTTPError) -> MissingError:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        remedy = f"Accept the licence at the hub's page of {hub}, then: hf auth login"
        return MissingError(f"the hub gives {hub} only to those who log in", remedy)
    if status in (407, 511) and error.response is not None:
        return _stranger(str(error.response.url).partition("/api/")[0])
    if status == 404:
        return MissingError(f"the hub has no {hub}, or not that commit", "Try: --update")
    return MissingError(f"the hub refuses: {_first_line(error)}", "Try again later; what is there is kept.")


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200].rpartition(' ')[0] or line[:200]} …"
