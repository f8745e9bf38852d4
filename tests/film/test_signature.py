"""Signed films: what is signed, what is noticed afterwards, what is refused before anything is rendered."""

from __future__ import annotations

import json
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storyreel
from storyreel.cli.app import run
from storyreel.cli.results import result_schema
from storyreel.errors import MissingError, OutputError, StoryreelError, UsageError
from storyreel.film import signature
from storyreel.film.folder import FilmFolder
from storyreel.film.provenance import C2PA_BOX, GENERATED, XMP_BOX, add_xmp, boxes, xmp_packet
from storyreel.film.signature import Signature, Signer, open_signer, read_signature
from storyreel.film.verify import verify_folder
from storyreel.film.writer import Chapter, join
from storyreel.rendering import Rendered, render
from tests.conftest import ROOT as CLONE
from tests.conftest import FakeEngine, Silent, plan_of
from tests.film.test_provenance import statements, xmp_of
from tests.film.test_writer import FPS, write
from tests.test_rendering import SCENES, film, make, story

pytest.importorskip("c2pa", reason="storyreel[c2pa] is not installed")

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import Files, Owner, owner, written

TWO = story(SCENES[:2])
ROOT, STRANGER = owner("Root", authority=True), owner("Stranger", authority=True)
OFFICE = owner("Office", ROOT, authority=True)
MAKER = owner("Maker", OFFICE)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A film that is not signed."""
    folder = tmp_path_factory.mktemp("plain")
    write(folder / "0.mp4", 40)
    join([folder / "0.mp4"], folder / "film.mp4", FPS, [Chapter(0, 6, "a", "a")], {"title": "A"})
    add_xmp(folder / "film.mp4", xmp_packet("A", "mini", ["a"]))
    return (folder / "film.mp4").read_bytes()


@pytest.fixture(scope="session")
def signed(plain: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The film as `MAKER` signed it."""
    folder = tmp_path_factory.mktemp("signed")
    files = written(folder, MAKER, OFFICE, ROOT)
    (folder / "film.mp4").write_bytes(plain)
    signer = open_signer(files.certificate, files.key)
    assert signer is not None
    signer.sign(folder / "film.mp4", "A <film>", "mini")
    return (folder / "film.mp4").read_bytes()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """`MAKER`'s certificate and key."""
    return written(tmp_path / "maker", MAKER, OFFICE)


def trusting(tmp_path: Path, *anchors: Owner) -> Path:
    path = tmp_path / "anchors.pem"
    path.write_bytes(b"".join(one.pem() for one in anchors))
    return path


def shown(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


def test_a_signed_film_is_the_same_film(plain: bytes, signed: bytes, tmp_path: Path) -> None:
    """All that C2PA moved is found where it is now: pictures, subtitles, chapters, tags, XMP."""
    before, after = tmp_path / "before.mp4", tmp_path / "after.mp4"
    before.write_bytes(plain)
    after.write_bytes(signed)
    assert len(signed) > len(plain)
    assert shown(after) == shown(before)
    assert len(shown(after)) == 6
    found = places(signed, tmp_path)
    assert found["moov"] < found["mdat"]  # faststart
    assert xmp_of(after) == xmp_of(before)
    assert statements(xmp_of(after))["DigitalSourceType"] == GENERATED
    with av.open(str(before)) as a, av.open(str(after)) as b:
        assert [c["metadata"] for c in b.chapters()] == [c["metadata"] for c in a.chapters()]
        assert b.metadata == a.metadata
        words = [[bytes(packet) for packet in c.demux(subtitles=0)] for c in (a, b)]
    assert words[0] == words[1]


def test_it_says_who_signed_and_that_it_is_generated(signed: bytes, tmp_path: Path) -> None:
    from c2pa import Reader

    path = tmp_path / "film.mp4"
    path.write_bytes(signed)
    found = read_signature(path)
    assert found == Signature("valid", "Maker, Tests only", found.generator, GENERATED, ())
    assert re.fullmatch(r"storyreel \d+\.\d+\.\d+", found.generator)
    with path.open("rb") as file, Reader("video/mp4", file) as reader:
        report = json.loads(reader.json())
    (manifest,) = report["manifests"].values()
    assert manifest["title"] == "A <film>"
    (actions,) = [a["data"]["actions"] for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2"]
    (created,) = actions
    assert (created["action"], created["digitalSourceType"]) == ("c2pa.created", GENERATED)
    program = {"name": "storyreel", "version": found.generator.split()[1], "model": "mini"}
    assert created["softwareAgent"] == program
    assert "time" not in manifest["signature_info"]  # no authority was asked for one


def test_whom_to_trust_is_the_readers_choice(signed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(signed)
    states = {
        name: read_signature(path, trusting(tmp_path, *anchors)).state
        for name, anchors in {
            "the root": [ROOT],
            "several": [STRANGER, ROOT],
            "another": [STRANGER],
        }.items()
    }
    assert states == {"the root": "trusted", "several": "trusted", "another": "valid"}


@pytest.mark.parametrize(
    "kind", ["Ed25519", "RSA", "P-384", "P-521", "older form of key", "signed by itself"]
)
def test_every_key_that_c2pa_knows_signs(kind: str, plain: bytes, tmp_path: Path) -> None:
    keys: dict[str, Callable[[], object]] = {
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    }
    alone = kind == "signed by itself"
    one = owner("Someone", None if alone else ROOT, key=keys[kind]() if kind in keys else None)
    files = written(tmp_path, one)
    if kind == "older form of key":
        files.key.write_bytes(one.key_pem(PrivateFormat.TraditionalOpenSSL))
    (path := tmp_path / "film.mp4").write_bytes(plain)
    signer = open_signer(files.certificate, files.key)
    assert signer is not None
    signer.sign(path, "A", "mini")
    assert read_signature(path, trusting(tmp_path, one if alone else ROOT)).state == "trusted"


def places(data: bytes, tmp_path: Path) -> dict[str, tuple[int, int]]:
    """Where the boxes of a film begin and end."""
    (path := tmp_path / "walk.mp4").write_bytes(data)
    names = {C2PA_BOX.bytes: "c2pa", XMP_BOX.bytes: "xmp"}
    with path.open("rb") as file:
        return {names.get(name) or name.decode(): (at, at + size) for name, at, size in boxes(file)}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("box", ["moov", "mdat", "xmp"])
def test_a_flipped_bit_is_noticed(box: str, signed: bytes, tmp_path: Path) -> None:
    start, end = places(signed, tmp_path)[box]
    path = tmp_path / "film.mp4"
    for at in (start + 8, start + 25, (start + end) // 2, end - 1):
        path.write_bytes(flipped(signed, at))
        assert read_signature(path, trusting(tmp_path, ROOT)).state == "tampered"


def test_a_large_film_is_hashed_in_parts_and_no_less_well(
    plain: bytes, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signature, "LARGE", 1000)
    (path := tmp_path / "film.mp4").write_bytes(plain)
    before = shown(path)
    signer = open_signer(files.certificate, files.key)
    assert signer is not None
    signer.sign(path, "A", "mini")
    data = path.read_bytes()
    start, end = places(data, tmp_path)["c2pa"]
    assert b"merkle" in data[start:end]
    assert shown(path) == before
    assert read_signature(path, trusting(tmp_path, ROOT)).state == "trusted"
    for box in ("moov", "mdat", "xmp"):
        start, end = places(data, tmp_path)[box]
        for at in (start + 8, (start + end) // 2, end - 1):
            path.write_bytes(flipped(data, at))
            assert read_signature(path, trusting(tmp_path, ROOT)).state == "tampered"


@pytest.mark.parametrize("word", [b"trainedAlgorithmicMedia", b"c2pa.created", b"A <film>", b"Maker"])
def test_a_changed_word_of_the_manifest_is_noticed(word: bytes, signed: bytes, tmp_path: Path) -> None:
    start, end = places(signed, tmp_path)["c2pa"]
    path = tmp_path / "film.mp4"
    path.write_bytes(flipped(signed, signed.index(word, start, end)))
    assert read_signature(path, trusting(tmp_path, ROOT)).state == "tampered"


@pytest.mark.parametrize("change", ["cut", "longer", "another film's manifest", "no manifest"])
def test_a_changed_whole_is_noticed(change: str, plain: bytes, signed: bytes, tmp_path: Path) -> None:
    start, end = places(signed, tmp_path)["c2pa"]
    other = plain[: plain.index(b"mdat") + 50] + b"!" + plain[plain.index(b"mdat") + 51 :]
    (path := tmp_path / "film.mp4").write_bytes(
        {
            "cut": signed[:-9],
            "longer": signed + struct.pack(">I4s", 12, b"more") + b"more",
            "another film's manifest": other[:start] + signed[start:end] + other[start:],
            "no manifest": signed[:start] + signed[end:],
        }[change]
    )
    # Whoever takes the signature away leaves a film that is not signed: nothing can show that it was.
    assert read_signature(path).state == ("none" if change == "no manifest" else "tampered")


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_any_bytes_in_a_manifests_place_are_no_signature(
    plain: bytes, tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.mp4"
    path.write_bytes(plain + struct.pack(">I4s", 24 + len(junk), b"uuid") + C2PA_BOX.bytes + junk)
    assert read_signature(path).state == "tampered"


def test_an_expired_certificate_is_told_from_a_changed_film() -> None:
    """As C2PA's library reports a film whose certificate was valid for three seconds, four seconds later."""

    def found(*codes: str) -> Signature:
        return signature._found(
            {"validation_state": "Invalid", "validation_status": [{"code": c} for c in codes]}
        )

    untrusted, expired = "signingCredential.untrusted", "signingCredential.expired"
    assert found(untrusted, expired) == Signature("invalid", problems=(expired,))
    assert found(untrusted, expired, "assertion.bmffHash.mismatch").state == "tampered"
    assert found("claimSignature.mismatch").state == "tampered"
    assert found().state == "tampered"


def test_a_manifest_elsewhere_is_not_fetched(plain: bytes, tmp_path: Path) -> None:
    """Reading a stranger's film tells nobody that it is read."""
    from c2pa import Builder, C2paSignerInfo
    from c2pa import Signer as Signing

    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        (path := tmp_path / "plain.mp4").write_bytes(plain)
        info = C2paSignerInfo("es256", MAKER.pem(OFFICE), MAKER.key_pem(), None)
        with Signing.from_info(info) as signing, Builder(signature._manifest("A", "mini")) as builder:
            builder.set_no_embed()
            builder.set_remote_url(f"http://127.0.0.1:{server.getsockname()[1]}/manifest")
            with path.open("rb") as source, (tmp_path / "film.mp4").open("w+b") as target:
                builder.sign(signing, "video/mp4", source, target)
        # An empty manifest is in the film too, so that its reader looks for the other.
        empty = bytes(4) + b"manifest\0" + bytes(8)
        with (tmp_path / "film.mp4").open("ab") as file:
            file.write(struct.pack(">I4s", 24 + len(empty), b"uuid") + C2PA_BOX.bytes + empty)
        assert "remote" in str(read_signature(tmp_path / "film.mp4").problems).lower()
        assert not asked


# What is refused, and before anything is rendered.


def wrong_files(kind: str, folder: Path) -> tuple[list[str], str]:
    """Return options that cannot sign, and what is to be said of them."""
    files = written(folder, MAKER, OFFICE)
    match kind:
        case "another's key":
            files.key.write_bytes(owner("Other").key_pem())
            return files.options, "is not the key of"
        case "expired":
            files = written(folder, owner("Late", ROOT, days=(-9, -2)))
            return files.options, "has expired, on 20"
        case "not yet":
            return written(folder, owner("Early", ROOT, days=(2, 9))).options, "begins on 20"
        case "encrypted":
            files.key.write_bytes(MAKER.key_pem(password=b"secret"))
            return files.options, "is encrypted"
        case "no key":
            files.key.write_bytes(MAKER.pem())
            return files.options, "no private key in PEM"
        case "no certificate":
            files.certificate.write_bytes(b"\x30\x82")
            return files.options, "no certificate in PEM"
        case "no file":
            files.key.unlink()
            return files.options, "is not a file"
        case "a folder":
            return [f"--sign-cert={folder}", f"--sign-key={files.key}"], "is not a file"
        case "for servers":
            one = owner("Server", ROOT, usage=(ExtendedKeyUsageOID.SERVER_AUTH,))
            return written(folder, one).options, "cannot sign with"
        case "an authority's":
            return written(folder, ROOT).options, "cannot sign with"
        case "a curve of bitcoin":
            one = owner("Coin", ROOT, key=ec.generate_private_key(ec.SECP256K1()))
            return written(folder, one).options, "C2PA signs with no key such as"
        case "a certificate alone":
            return files.options[:1], "a signature takes a certificate and its key"
        case _:
            return files.options[1:], "a signature takes a certificate and its key"


WRONG = [
    "another's key",
    "expired",
    "not yet",
    "encrypted",
    "no key",
    "no certificate",
    "no file",
    "a folder",
]
WRONG += ["for servers", "an authority's", "a curve of bitcoin", "a certificate alone", "a key alone"]


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_sign_is_refused_before_anything_is_rendered(
    kind: str, tmp_path: Path, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "s.yaml").write_text(TWO)
    options, words = wrong_files(kind, tmp_path / "files")
    for command in ("render", "submit"):
        assert run([command, str(path), f"--out={tmp_path / 'out'}", *options]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert len(told.strip().splitlines()) == 2  # what is wrong, and what to do
        assert "PRIVATE KEY-----\n" not in told
    assert not fake_engine.asked
    assert not (tmp_path / "out").exists()


def test_without_the_packages_it_is_said_how_to_get_them(
    tmp_path: Path,
    files: Files,
    signed: bytes,
    fake_engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    (tmp_path / "s.yaml").write_text(TWO)
    assert run(["render", str(tmp_path / "s.yaml"), f"--out={tmp_path / 'out'}", *files.options]) == 69
    assert "[c2pa]" in capsys.readouterr().err
    assert not fake_engine.asked
    (path := tmp_path / "film.mp4").write_bytes(signed)
    assert read_signature(path).state == "unread"
    with pytest.raises(MissingError, match="not installed"):
        read_signature(path, files.certificate)
    assert run(["inspect", str(path)]) == 0
    assert "[c2pa]" in capsys.readouterr().out.splitlines()[-1]


def test_what_signed_once_and_cannot_any_more_leaves_the_film(
    plain: bytes, files: Files, tmp_path: Path
) -> None:
    signer = open_signer(files.certificate, files.key)
    assert signer is not None
    (path := tmp_path / "film.mp4").write_bytes(plain)
    files.key.write_bytes(owner("Other").key_pem())
    with pytest.raises(UsageError, match="is not the key of"):
        signer.sign(path, "A", "mini")
    files.key.write_bytes(MAKER.key_pem())
    path.write_bytes(b"no film")
    with pytest.raises(StoryreelError, match="cannot sign with"):
        signer.sign(path, "A", "mini")
    assert path.read_bytes() == b"no film"
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_said_to_be_full(plain: bytes, files: Files, tmp_path: Path) -> None:
    """C2PA's library says only that it could not write. Here no file may grow as large as the film."""
    signer = open_signer(files.certificate, files.key)
    assert signer is not None
    (path := tmp_path / "film.mp4").write_bytes(plain)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(plain) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            signer.sign(path, "A", "mini")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == plain
    assert not list(tmp_path.glob(".*"))


# The life of a signed film.


@dataclass(frozen=True)
class FakeSigner(Signer):
    """Signs anything, each time with other bytes, as a true one does."""

    name: str = "maker"
    signatures: list[str] = field(default_factory=list)
    fails: BaseException | None = None

    @property
    def fingerprint(self) -> str:
        return self.name

    def sign(self, path: Path, title: str, model: str) -> None:
        if self.fails:
            raise self.fails
        self.signatures.append(f"{title}, {model}")
        with path.open("ab") as file:  # blanks, which JSON does not mind
            file.write(b" " * len(self.signatures))


def signer_named(name: str) -> FakeSigner:
    return FakeSigner(Path("cert.pem"), Path("key.pem"), (), name)


def signed_by(
    out: Path, signer: Signer | None, text: str | None = None
) -> tuple[Rendered, Silent, FakeEngine]:
    engine, progress = FakeEngine(), Silent()
    return render(plan_of(text or story()), "foxes", out, engine, progress, False, signer), progress, engine


def recorded(out: Path) -> dict[str, Any]:
    film: dict[str, Any] = json.loads((out / "foxes" / "manifest.json").read_text())["film"]
    film.pop("seal")
    return film


@pytest.mark.usefixtures("fake_model")
def test_a_finished_film_is_signed_without_rendering_and_once(tmp_path: Path) -> None:
    make(tmp_path)
    unsigned, signer = recorded(tmp_path), signer_named("maker")
    result, progress, engine = signed_by(tmp_path, signer)
    assert (result.rendered, engine.asked, progress.heard) == (0, 0, [])
    assert signer.signatures == ["Foxes, fake"]
    found = recorded(tmp_path)
    assert found == {
        **{key: unsigned[key] for key in ("file", "key", "storyreel")},
        "sha256": found["sha256"],
        "unsigned_sha256": unsigned["sha256"],
        "certificate_sha256": "maker",
    }
    assert found["sha256"] != unsigned["sha256"]
    before = film(tmp_path)
    for again in (signer, None):  # the second keeps what is signed
        result, progress, engine = signed_by(tmp_path, again)
        assert (result.rendered, engine.asked, progress.heard) == (0, 0, [])
        assert film(tmp_path) == before
    assert len(signer.signatures) == 1
    assert not any(verify_folder(tmp_path / "foxes").values())


@pytest.mark.usefixtures("fake_model")
def test_another_certificate_signs_the_film_as_it_was_before(tmp_path: Path) -> None:
    signed_by(tmp_path, signer_named("maker"))
    before, other = recorded(tmp_path), signer_named("other")
    result, _, engine = signed_by(tmp_path, other)
    assert (result.rendered, engine.asked) == (0, 0)
    after = recorded(tmp_path)
    assert after == before | {"certificate_sha256": "other"}
    with FilmFolder(tmp_path / "foxes", "foxes") as folder:
        assert folder.film_is_complete(before["key"])


@pytest.mark.usefixtures("fake_model")
def test_a_damaged_signed_film_is_made_and_signed_again(tmp_path: Path) -> None:
    signed_by(tmp_path, signer_named("maker"))
    path = tmp_path / "foxes" / "foxes.mp4"
    path.write_bytes(flipped(path.read_bytes(), 5))
    assert [p for p, fault in verify_folder(tmp_path / "foxes").items() if fault] == [str(path)]
    signer = signer_named("maker")
    result, _, _ = signed_by(tmp_path, signer)
    assert (result.rendered, len(signer.signatures)) == (0, 1)
    assert not any(verify_folder(tmp_path / "foxes").values())


@pytest.mark.usefixtures("fake_model")
def test_that_a_signature_is_gone_is_said(tmp_path: Path) -> None:
    signed_by(tmp_path, signer_named("maker"))
    _, progress, _ = signed_by(tmp_path, None, story(title="Vixens"))
    assert progress.heard[-1] == "the film that was there was signed; this one is not"
    assert "certificate_sha256" not in recorded(tmp_path)


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("fails", [KeyboardInterrupt(), StoryreelError("no"), OSError(28, "full", None)])
def test_a_signature_that_fails_costs_nothing(tmp_path: Path, fails: BaseException) -> None:
    make(tmp_path)
    before = film(tmp_path)
    with pytest.raises((KeyboardInterrupt, StoryreelError)) as caught:
        signed_by(tmp_path, replace(signer_named("maker"), fails=fails))
    assert isinstance(caught.value, OutputError) == isinstance(fails, OSError)
    assert film(tmp_path) == before
    assert not list((tmp_path / "foxes").glob(".*.part*"))
    assert signed_by(tmp_path, signer_named("maker"))[0].rendered == 0


@pytest.mark.slow  # two scenes are encoded, joined and read back several times
@pytest.mark.usefixtures("ffmpeg")
def test_a_film_is_rendered_signed_and_inspected(
    tmp_path: Path,
    files: Files,
    fake_engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foxes.yaml").write_text(TWO)
    assert run(["render", "foxes.yaml", "--out=plain"]) == 0
    command = ["render", "foxes.yaml", *files.options]
    assert run(command) == 0
    signed = Path("out/foxes/foxes.mp4").read_bytes()
    assert run(command) == run(["render", "foxes.yaml"]) == run(["render", "foxes.yaml", "--verify"]) == 0
    assert Path("out/foxes/foxes.mp4").read_bytes() == signed
    assert recorded(Path("out"))["unsigned_sha256"] == recorded(Path("plain"))["sha256"]
    assert shown(Path("out/foxes/foxes.mp4")) == shown(Path("plain/foxes/foxes.mp4"))
    secret = MAKER.key_pem().splitlines()[1]
    assert not any(secret in path.read_bytes() for path in Path("out").rglob("*") if path.is_file())
    capsys.readouterr()
    anchors = trusting(tmp_path, ROOT)
    states = []
    for path in ("plain/foxes", "out/foxes"):
        for trust in ([], [f"--trust={anchors}"]):
            assert run(["inspect", path, *trust, "--json"]) == 0
            states.append(json.loads(capsys.readouterr().out)["signature"]["state"])
    assert states == ["none", "none", "valid", "trusted"]


@pytest.mark.parametrize("state", ["none", "valid", "trusted", "tampered"])
def test_inspect_says_what_a_signature_is_worth(
    state: str, plain: bytes, signed: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import jsonschema

    bytes_of = {"none": plain, "tampered": flipped(signed, signed.rindex(b"uuid") + 60)}
    (path := tmp_path / "film.mp4").write_bytes(bytes_of.get(state, signed))
    trust = [f"--trust={trusting(tmp_path, ROOT)}"] if state == "trusted" else []
    assert run(["inspect", str(path), *trust]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("signature: ")]
    assert state in line.lower()
    assert ("Maker, Tests only" in line) == (state != "none")
    assert run(["inspect", str(path), *trust, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.validate(told, result_schema("inspect"))
    assert (told["title"], told["signature"]["state"]) == ("A", state)


def test_who_is_to_be_trusted_is_read_first(
    plain: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "film.mp4").write_bytes(plain)
    for anchors, words in (("nobody.pem", "is not a file"), ("film.mp4", "no certificate in PEM")):
        assert run(["inspect", str(path), f"--trust={tmp_path / anchors}"]) == 2
        assert words in capsys.readouterr().err


def test_a_job_is_told_where_the_key_is_and_not_what_it_is(
    tmp_path: Path, files: Files, fake_engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "s.yaml").write_text(TWO)
    assert run(["submit", str(path), "--dry-run", f"--out={tmp_path / 'out'}", *files.options]) == 0
    script = capsys.readouterr().out
    assert f"--sign-cert={files.certificate}" in script
    assert f"--sign-key={files.key}" in script
    assert MAKER.key_pem().splitlines()[1].decode() not in script


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
def test_the_readmes_command_makes_a_certificate_that_signs(tmp_path: Path, plain: bytes) -> None:
    readme = (CLONE / "storyreel" / "film" / "README.md").read_text()
    (script,) = [
        block for block in re.findall(r"^```text\n(.*?)^```$", readme, re.M | re.S) if "openssl" in block
    ]
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "key.pem").stat().st_mode & 0o77 == 0
    signer = open_signer(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert signer is not None
    (path := tmp_path / "film.mp4").write_bytes(plain)
    signer.sign(path, "A", "mini")
    assert read_signature(path, tmp_path / "cert.pem").state == "trusted"


@pytest.mark.usefixtures("fake_model")
def test_python_and_the_file_of_defaults_sign_as_the_options_do(
    tmp_path: Path,
    files: Files,
    fake_engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Signer, "sign", lambda self, path, title, model: None)  # films of the fake are no MP4
    Path("foxes.yaml").write_text(TWO)
    storyreel.render("foxes.yaml", engine=fake_engine, sign_cert=files.certificate, sign_key=str(files.key))
    by_python = recorded(Path("out"))["certificate_sha256"]
    with pytest.raises(UsageError, match="a certificate and its key"):
        storyreel.render("foxes.yaml", engine=fake_engine, sign_cert=files.certificate)
    Path("storyreel.toml").write_text(
        'out = "else"\nsign_cert = "maker/cert.pem"\nsign_key = "maker/key.pem"\n'
    )
    assert run(["render", "foxes.yaml"]) == 0
    assert recorded(Path("else"))["certificate_sha256"] == by_python
    files.key.unlink()
    capsys.readouterr()
    assert run(["info", "--json"]) == 0
    assert "maker/key.pem is not a file" in json.loads(capsys.readouterr().out)["defaults"]["found"]
