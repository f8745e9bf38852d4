"""`storyreel pull` against a stand-in for the hub, on loopback."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from huggingface_hub.file_download import http_get

from storyreel.errors import (
    DamagedError,
    LicenceError,
    MissingError,
    OutputError,
    StoppedError,
    StoryreelError,
)
from storyreel.files import content_hash
from storyreel.models import hub
from storyreel.models.inventory import needed
from storyreel.models.specs import MODELS, Addition, ModelSpec, find_model, pulled_folder
from storyreel.stopping import stopping

REPOSITORY, ADDED = "someone/tiny-model", "someone/few-steps"
FIRST, SECOND = "1" * 40, "2" * 40


class StandIn(ThreadingHTTPServer):
    """Serves one repository: ``files`` by name, large ones with their hash, as a hub does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.newer: dict[str, bytes] = {}  # what the second commit changes
        self.added: dict[str, bytes] = {}  # the files of `ADDED`
        self.commit = FIRST
        self.refusal = 0
        self.answers: dict[str, bytes] = {}  # by the end of a path: what somebody else answers instead
        self.served: list[str] = []
        self.ranges: list[str] = []
        self.torn: set[str] = set()  # names whose transfer breaks half way, once
        self.tokens: set[str | None] = set()  # what callers said they were
        self.claimed: dict[str, str] = {}  # SHA-256 that are not the files'

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def at(self, commit: str) -> dict[str, bytes]:
        return self.files | (self.newer if commit == SECOND else {})

    def sha256(self, name: str) -> str:
        data = (self.files | self.added)[name]
        return self.claimed.get(name, hashlib.sha256(data).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub = self.server
        hub.tokens.add(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        for end, answer in hub.answers.items():
            if path.endswith(end):
                self.send_response(200)  # whatever range was asked for
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer if body else b"")
                return
        if hub.refusal:
            self.send_response(hub.refusal)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        repository = ADDED if ADDED in path else REPOSITORY
        if path.startswith(f"/api/models/{repository}"):
            _, _, revision = path.partition("/revision/")
            if revision and revision not in (FIRST, SECOND, "main"):
                self.send_error(404)
                return
            facts = self._facts(revision, repository)
            self._send(json.dumps(facts).encode(), body, {"Content-Type": "application/json"})
            return
        prefix = f"/{repository}/resolve/"
        commit, _, name = path.removeprefix(prefix).partition("/")
        there = hub.added if repository == ADDED else hub.at(commit)
        if not path.startswith(prefix) or name not in there:
            self.send_error(404)
            return
        data = there[name]
        tag = hub.sha256(name) if name.endswith(".safetensors") else hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if body:
            hub.served.append(name)
        self._send(data, body, headers, name)

    def _facts(self, revision: str, repository: str) -> dict[str, object]:
        hub = self.server
        siblings: list[dict[str, object]] = []
        commit = revision if revision in (FIRST, SECOND) else hub.commit
        for name, data in (hub.added if repository == ADDED else hub.at(commit)).items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": hub.sha256(name), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": repository, "sha": commit, "siblings": siblings}

    def _send(self, data: bytes, body: bool, headers: dict[str, str], name: str = "") -> None:
        wanted = self.headers.get("Range") if body else None
        start = 0
        if wanted and wanted.startswith("bytes=") and wanted[6:].split("-")[0]:
            start = int(wanted[6:].split("-")[0])
            self.server.ranges.append(wanted)
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body and name in self.server.torn:
            self.server.torn.discard(name)
            self.wfile.write(data[start : start + len(data) // 2])
            self.close_connection = True
            return
        if body:
            self.wfile.write(data[start:])


@pytest.fixture(autouse=True)
def no_other_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a process, the library asks its own hub by what name to call the program that runs it."""
    if find_spec("huggingface_hub.utils._detect_agent") is not None:
        name = "huggingface_hub.utils._detect_agent._fetch_registry"
        monkeypatch.setattr(name, lambda: None, raising=False)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    server = StandIn()
    server.files = {
        "README.md": b"# not needed",
        "model_index.json": b"{}",
        "model.safetensors": b"all in one file, not needed",
        "transformer/config.json": b'{"of": "a transformer"}',
        "transformer/diffusion_pytorch_model.safetensors": b"full" * 500,
        "transformer/diffusion_pytorch_model.bf16.safetensors": b"half" * 250,
        "vae/diffusion_pytorch_model.safetensors": b"codec" * 100_000,
        "vae/pytorch_model.bin": b"a pickle",
        "text_encoder/model.safetensors": b"text" * 100,
        "tokenizer/spiece.model": b"pieces",
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    spec = replace(MODELS["mini"], name="remote", hub=REPOSITORY, variant="bf16")
    monkeypatch.setitem(MODELS, "remote", spec)
    return spec


def pull(spec: ModelSpec, server: StandIn, update: bool = False) -> Path:
    return hub.pull(spec, lambda line: None, update, server.url)


def test_what_loading_reads_is_fetched_and_nothing_else(stand_in: StandIn, spec: ModelSpec) -> None:
    assert not find_model("remote").weights.exists()
    folder = pull(spec, stand_in)
    assert find_model("remote").weights == folder
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.bf16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
    }
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == stand_in.files[path.relative_to(folder).as_posix()]
    served = len(stand_in.served)
    assert pull(spec, stand_in) == folder
    assert len(stand_in.served) == served  # all was there


def test_the_commit_of_the_first_pull_is_held_to(stand_in: StandIn, spec: ModelSpec) -> None:
    first = pull(spec, stand_in)
    assert first.name == FIRST
    stand_in.commit = SECOND
    stand_in.newer["model_index.json"] = b'{"newer": true}'
    assert pull(spec, stand_in) == first
    assert pulled_folder(REPOSITORY) == first
    second = pull(spec, stand_in, update=True)
    assert second.name == SECOND
    assert pulled_folder(REPOSITORY) == second
    assert (second / "model_index.json").read_bytes() == b'{"newer": true}'


def test_the_first_pull_takes_the_tables_commit(stand_in: StandIn, spec: ModelSpec) -> None:
    stand_in.commit = SECOND
    stand_in.newer["model_index.json"] = b'{"newer": true}'
    pinned = replace(spec, revision=FIRST)
    assert pull(pinned, stand_in).name == FIRST
    assert pull(pinned, stand_in, update=True).name == SECOND
    assert pull(pinned, stand_in).name == SECOND  # what was chosen last is held to
    assert pulled_folder(REPOSITORY).name == SECOND


@pytest.fixture
def variant(stand_in: StandIn, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The same model with two files more, from another repository, which has others too."""
    files = {f"few/{expert}.safetensors": expert for expert in ("high", "low")}
    stand_in.added = {name: name.encode() * 300 for name in (*files, "others.safetensors")}
    added = tuple(Addition(ADDED, name, FIRST, experts=expert) for name, expert in files.items())  # type: ignore[arg-type]
    variant = replace(spec, name="remote:few", added=added)
    monkeypatch.setitem(MODELS, "remote:few", variant)
    return variant


def test_of_a_variant_the_models_files_and_those_that_are_added_are_fetched(
    stand_in: StandIn, variant: ModelSpec
) -> None:
    assert not find_model("remote:few").is_there
    stand_in.commit = SECOND
    told: list[str] = []
    folder = hub.pull(variant, told.append, False, stand_in.url)
    found = find_model("remote:few")
    assert found.is_there
    assert found.weights == folder
    assert [(lora.path.read_bytes(), lora.experts) for lora in found.loras] == [
        (stand_in.added["few/high.safetensors"], "high"),
        (stand_in.added["few/low.safetensors"], "low"),
    ]
    assert pulled_folder(ADDED).name == FIRST  # the table's commit, and held to
    assert "others.safetensors" not in stand_in.served
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    size += sum(lora.path.stat().st_size for lora in found.loras)
    assert told[1] == f"remote:few: {size / 1e9:.1f} GB, {size / 1e9:.1f} GB of them to be fetched"
    served = len(stand_in.served)
    pull(variant, stand_in)
    pull(MODELS["remote"], stand_in)  # whose files are the same
    assert len(stand_in.served) == served
    blob = found.loras[0].path.resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    pull(variant, stand_in)
    assert stand_in.served[served:] == ["few/high.safetensors"]
    assert find_model("remote:few").loras[0].path.read_bytes() == stand_in.added["few/high.safetensors"]


def test_an_added_file_that_is_wrong_or_not_there_is_said(stand_in: StandIn, variant: ModelSpec) -> None:
    stand_in.claimed["few/low.safetensors"] = "0" * 64
    with pytest.raises(DamagedError, match=r"few/low\.safetensors is not what the hub says"):
        pull(variant, stand_in)
    assert not find_model("remote:few").is_there
    del stand_in.added["few/high.safetensors"]
    served = len(stand_in.served)
    with pytest.raises(MissingError, match=r"no few/high\.safetensors at that commit"):
        pull(variant, stand_in)
    assert len(stand_in.served) == served


STRICT = "Some Community License"


@pytest.mark.parametrize("territory", ["", "Atlantis"])
def test_the_hub_is_not_contacted_before_a_licence_with_conditions_is_accepted(
    stand_in: StandIn, spec: ModelSpec, territory: str
) -> None:
    strict, told = replace(spec, licence=STRICT, territory=territory), list[str]()
    terms = STRICT + (f"; it gives no rights in {territory}" if territory else "")
    for _ in range(2):
        with pytest.raises(LicenceError, match=f"the licence of remote is not accepted: {terms}") as caught:
            hub.pull(strict, told.append, False, stand_in.url)
    assert caught.value.exit_code == 77
    page = f"{stand_in.url}/{REPOSITORY}"
    assert caught.value.remedy == (
        f"Read it at {page}; if you accept it: storyreel pull remote --accept-licence"
    )
    assert told == [f"remote: licence {terms} ({page})"] * 2
    assert stand_in.tokens == set()  # nobody has called
    assert not pulled_folder(REPOSITORY).parent.parent.exists()


def test_a_licence_is_accepted_once_for_a_repository(stand_in: StandIn, spec: ModelSpec) -> None:
    strict, asked = replace(spec, licence=STRICT), list[str]()

    def yes(terms: str) -> bool:
        asked.append(terms)
        return True

    folder = hub.pull(strict, lambda line: None, False, stand_in.url, yes)
    assert hub.pull(strict, lambda line: None, False, stand_in.url, yes) == folder
    assert asked == [STRICT]
    assert pull(strict, stand_in) == folder  # nobody has to say it again
    with pytest.raises(LicenceError):  # but of another licence
        pull(replace(strict, licence="Another"), stand_in)
    # Other tools read this cache too.
    assert not huggingface_hub.scan_cache_dir(folder.parents[2]).warnings


@pytest.mark.parametrize(("status", "words"), [(401, "page of someone/tiny-model"), (403, "hf auth login")])
def test_a_gated_model_has_its_licence_step_first_and_then_the_hubs(
    stand_in: StandIn, spec: ModelSpec, status: int, words: str
) -> None:
    strict, stand_in.refusal = replace(spec, licence=STRICT), status
    with pytest.raises(LicenceError):
        pull(strict, stand_in)
    told: list[str] = []
    with pytest.raises(MissingError) as caught:
        hub.pull(strict, told.append, False, stand_in.url, lambda terms: True)
    assert words in caught.value.remedy
    assert told == [f"remote: licence {STRICT} ({stand_in.url}/{REPOSITORY})"]
    # What is recorded before the hub has answered is no damage to other tools.
    assert not huggingface_hub.scan_cache_dir(pulled_folder(REPOSITORY).parents[2]).warnings


@pytest.mark.parametrize(("licence", "territory"), [("MIT", ""), ("Apache-2.0", ""), ("MIT", "Atlantis")])
def test_a_licence_without_conditions_is_said_and_asked_of_nobody(
    stand_in: StandIn, spec: ModelSpec, licence: str, territory: str
) -> None:
    free = replace(spec, licence=licence, territory=territory)
    if territory:
        with pytest.raises(LicenceError):
            pull(free, stand_in)
    else:
        assert pull(free, stand_in).is_dir()


def test_every_model_of_a_hub_names_its_commit() -> None:
    for spec in MODELS.values():
        assert (spec.hub is None) == (spec.revision is None)
        assert spec.revision is None or re.fullmatch("[0-9a-f]{40}", spec.revision)


def test_a_broken_transfer_is_resumed(
    stand_in: StandIn, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    name = "vae/diffusion_pytorch_model.safetensors"
    stand_in.torn.add(name)
    try:
        folder = pull(spec, stand_in)
    except MissingError:  # whether the library tries again by itself or leaves it to the user
        folder = pull(spec, stand_in)
    assert (folder / name).read_bytes() == stand_in.files[name]
    assert stand_in.served.count(name) == 2
    assert any(not wanted.startswith("bytes=0-") for wanted in stand_in.ranges)


def test_a_stop_keeps_what_was_fetched(
    stand_in: StandIn, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"

    def stopped(url: str, target: BinaryIO, displayed_filename: str, **options: Any) -> None:
        if displayed_filename == name:
            target.write(stand_in.files[name][:300_000])
            os.kill(os.getpid(), signal.SIGTERM)
        http_get(url, target, displayed_filename=displayed_filename, **options)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "http_get", stopped)
        with pytest.raises(StoppedError), stopping():
            pull(spec, stand_in)
    folder = pull(spec, stand_in)
    assert (folder / name).read_bytes() == stand_in.files[name]
    assert stand_in.ranges == ["bytes=300000-"]


def test_what_was_fetched_before_a_break_is_kept(stand_in: StandIn, spec: ModelSpec) -> None:
    """Across processes too: the part lies in the cache under its file's hash."""
    name = "vae/diffusion_pytorch_model.safetensors"
    blobs = pulled_folder(REPOSITORY).parent.parent / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{stand_in.sha256(name)}.storyreel").write_bytes(stand_in.files[name][:300_000])
    folder = pull(spec, stand_in)
    assert (folder / name).read_bytes() == stand_in.files[name]
    assert stand_in.ranges == ["bytes=300000-"]


def test_a_part_that_is_wrong_is_not_kept(stand_in: StandIn, spec: ModelSpec) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    blobs = pulled_folder(REPOSITORY).parent.parent / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{stand_in.sha256(name)}.storyreel").write_bytes(b"something else" * 20_000)
    with pytest.raises(DamagedError, match="vae"):
        pull(spec, stand_in)
    assert (pull(spec, stand_in) / name).read_bytes() == stand_in.files[name]


def test_a_file_that_is_not_what_the_hub_says_is_removed(stand_in: StandIn, spec: ModelSpec) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    stand_in.claimed[name] = "0" * 64
    with pytest.raises(DamagedError, match="vae") as caught:
        pull(spec, stand_in)
    assert "again" in caught.value.remedy
    assert not find_model("remote").weights.exists()
    del stand_in.claimed[name]
    folder = pull(spec, stand_in)
    assert (folder / name).read_bytes() == stand_in.files[name]


def test_a_flipped_bit_in_the_cache_is_found_and_mended(stand_in: StandIn, spec: ModelSpec) -> None:
    folder = pull(spec, stand_in)
    path = folder / "text_encoder" / "model.safetensors"
    blob = path.resolve()
    data = bytearray(blob.read_bytes())
    data[7] ^= 1
    blob.write_bytes(bytes(data))
    assert (pull(spec, stand_in) / "text_encoder" / "model.safetensors").read_bytes() == b"text" * 100


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "hf auth login"), (403, "hf auth login"), (404, "--update"), (500, "later")]
)
def test_a_refusal_says_what_to_do(stand_in: StandIn, spec: ModelSpec, status: int, remedy: str) -> None:
    stand_in.refusal = status
    with pytest.raises(MissingError) as caught:
        pull(spec, stand_in)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("trouble", ["", "401", "403", "404", "500", "nobody", "torn", "wrong"])
def test_a_token_goes_to_the_hub_and_nowhere_else(
    stand_in: StandIn,
    spec: ModelSpec,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither into a message, its causes, a log, nor a file of the cache."""
    secret = "hf_doNotTellAnyone"
    monkeypatch.setenv("HF_TOKEN", secret)
    name = "vae/diffusion_pytorch_model.safetensors"
    stand_in.refusal = int(trouble) if trouble.isdigit() else 0
    stand_in.torn |= {name} if trouble == "torn" else set()
    stand_in.claimed |= {name: "0" * 64} if trouble == "wrong" else {}
    told: list[str] = []
    url = "http://127.0.0.1:9" if trouble == "nobody" else stand_in.url
    with caplog.at_level("DEBUG"):
        try:
            hub.pull(spec, told.append, endpoint=url)
        except StoryreelError as error:
            told += [str(error), *map(str, (error.__cause__, error.__context__))]
    assert told
    assert trouble == "nobody" or stand_in.tokens == {f"Bearer {secret}"}
    out, err = capfd.readouterr()
    assert secret not in "\n".join([*told, out, err, caplog.text])
    cached = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in cached)


PAGE = b"<!DOCTYPE html><title>Please log in</title>"
COMMIT = "1" * 40
ANSWERS: list[bytes] = [
    *[PAGE, b"", b"{}", b"[]", b"null", b"7", b'{"id": 1}', b"[" * 100_000, b"\xff\xfe", b"NaN"],
    json.dumps({"id": "x", "sha": COMMIT, "siblings": 7}).encode(),
    json.dumps({"id": "x", "sha": COMMIT, "siblings": [{}]}).encode(),
    json.dumps({"id": "x", "sha": COMMIT, "siblings": [{"rfilename": 7}]}).encode(),
    json.dumps({"id": "x", "sha": 7, "siblings": []}).encode(),
    json.dumps({"id": "x", "sha": "../..", "siblings": []}).encode(),
    json.dumps(
        {
            "id": "x",
            "sha": COMMIT,
            "siblings": [{"rfilename": "vae/x.safetensors", "size": 1, "blobId": "../x"}],
        }
    ).encode(),
    json.dumps(
        {
            "id": "x",
            "sha": COMMIT,
            "siblings": [{"rfilename": "vae/x.safetensors", "size": "x", "blobId": COMMIT}],
        }
    ).encode(),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: ascii(answer)[:60])
def test_what_answers_instead_of_the_hub_is_one_clear_error(
    stand_in: StandIn, spec: ModelSpec, answer: bytes
) -> None:
    """As the login page of a network does."""
    stand_in.answers = {FIRST: answer, REPOSITORY: answer}
    with pytest.raises(MissingError) as caught:
        pull(spec, stand_in)
    assert caught.value.exit_code == 69
    if answer == PAGE:
        assert caught.value.message == f"something else than the hub answers at {stand_in.url}"
        assert f"open {stand_in.url} in a browser" in caught.value.remedy
    assert stand_in.served == []
    stand_in.answers = {}
    pull(spec, stand_in)


def half_fetched(stand_in: StandIn, name: str) -> Path:
    """Leave half of a file where a transfer that broke off leaves it."""
    part = pulled_folder(REPOSITORY).parent.parent / "blobs" / f"{stand_in.sha256(name)}.storyreel"
    part.parent.mkdir(parents=True)
    part.write_bytes(stand_in.files[name][: len(stand_in.files[name]) // 2])
    return part


@pytest.mark.parametrize("resumed", [False, True])
def test_a_page_instead_of_a_file_is_one_clear_error_and_not_kept(
    stand_in: StandIn, spec: ModelSpec, resumed: bool
) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    if resumed:
        half_fetched(stand_in, name)
    stand_in.answers = {name: PAGE}
    with pytest.raises(MissingError, match="something else than the hub"):
        pull(spec, stand_in)
    stand_in.answers = {}
    assert (pull(spec, stand_in) / name).read_bytes() == stand_in.files[name]


@pytest.mark.parametrize("status", [407, 511])
def test_a_proxy_that_wants_a_login_is_said(stand_in: StandIn, spec: ModelSpec, status: int) -> None:
    stand_in.refusal = status
    with pytest.raises(
        MissingError, match=f"something else than the hub answers at {stand_in.url}"
    ) as caught:
        pull(spec, stand_in)
    assert "log in" in caught.value.remedy


def test_what_is_half_fetched_needs_half_of_the_room(
    stand_in: StandIn, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    part = half_fetched(stand_in, name)
    blobs = part.parent
    _, files = hub.listing(REPOSITORY, None, lambda names: needed(names, None), stand_in.url)
    missing = sum(file.size for file in files)
    room = SimpleNamespace(free=missing - part.stat().st_size)
    monkeypatch.setattr(hub, "SPARE", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    hub._check_room(blobs.parent, files)
    room.free -= 1
    with pytest.raises(OutputError, match="are free"):
        hub._check_room(blobs.parent, files)


def test_a_ref_of_nonsense_is_none(stand_in: StandIn, spec: ModelSpec) -> None:
    folder = pull(spec, stand_in)
    ref = folder.parent.parent / "refs" / "storyreel"
    for data in (b"\xff\xfe", b"../../x", b"", b"main"):
        ref.write_bytes(data)
        assert pulled_folder(REPOSITORY).name == "not pulled"
    ref.unlink()
    ref.mkdir()
    assert pulled_folder(REPOSITORY).name == "not pulled"


def test_no_hub_at_all(stand_in: StandIn, spec: ModelSpec) -> None:
    with pytest.raises(MissingError, match="cannot be reached"):
        hub.pull(spec, lambda line: None, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("name", hub.FORBIDDING)
def test_a_variable_that_forbids_any_contact_is_named(
    stand_in: StandIn, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in hub.FORBIDDING:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # which is read at the start
    with pytest.raises(MissingError, match=f"^error: {name} forbids any contact with the hub\n") as caught:
        pull(spec, stand_in)
    assert "network" not in str(caught.value)
    assert stand_in.tokens == set()


def test_a_long_message_ends_with_a_word() -> None:
    words = hub._first_line(ValueError("many words " * 30 + "\nmore"))
    assert words.endswith(("many …", "words …"))
    assert len(words) <= 202
    assert hub._first_line(ValueError("x" * 300)) == "x" * 200 + " …"


def test_a_full_disk_is_said_before_anything_is_fetched(
    stand_in: StandIn, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SPARE", 1 << 60)
    with pytest.raises(OutputError, match="are free"):
        pull(spec, stand_in)
    assert stand_in.served == []


def test_a_disk_that_fills_up_meanwhile_is_no_network(
    stand_in: StandIn, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "http_get", full)
    with pytest.raises(OutputError, match="No space left"):
        pull(spec, stand_in)


def test_a_pulled_file_is_known_by_its_first_links_name(tmp_path: Path) -> None:
    """Also where that is a link itself, as huggingface_hub's own downloads leave it."""
    store, blob, link = tmp_path / ("a" * 64), tmp_path / ("b" * 64), tmp_path / "model.safetensors"
    store.write_bytes(b"weights")
    blob.symlink_to(store)
    link.symlink_to(blob)
    assert content_hash(link) == "b" * 64
    assert content_hash(store) == hashlib.sha256(b"weights").hexdigest()


def test_an_embedded_model_needs_no_hub() -> None:
    assert hub.pull(MODELS["mini"], lambda line: None) == MODELS["mini"].weights


def test_names_that_would_leave_the_folder_are_no_files_of_ours() -> None:
    names = ["../evil.json", "vae/../../evil.json", "vae/a/b.json", "vae/..", "model_index.json", "vae/x.py"]
    assert needed(names, None) == ["model_index.json"]


def test_of_several_precisions_one_is_taken() -> None:
    names = [f"transformer/m{v}.safetensors" for v in ("", ".bf16", ".fp16")]
    shards = [f"vae/m{v}-00001-of-00002.safetensors" for v in ("", ".fp16")]
    assert needed(names + shards, None) == [names[0], shards[0]]
    assert needed(names + shards, "bf16") == [names[1], shards[0]]


def test_a_model_of_transformers_lies_at_the_top(stand_in: StandIn) -> None:
    stand_in.files |= {"config.json": b"{}", "model.fp16.safetensors": b"half", "flax_model.msgpack": b"no"}
    folder = hub.fetch("one", REPOSITORY, hub.at_the_top, lambda line: None, endpoint=stand_in.url)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "model_index.json"}


def test_a_repository_without_safetensors_is_said(stand_in: StandIn) -> None:
    stand_in.files = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
    with pytest.raises(MissingError, match="no safetensors") as caught:
        hub.fetch("one", REPOSITORY, hub.at_the_top, lambda line: None, endpoint=stand_in.url)
    assert "--weights-dir" in caught.value.remedy
    assert stand_in.served == []
