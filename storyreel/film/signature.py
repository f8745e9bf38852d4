"""C2PA manifests: signs films with their maker's certificate, and says what is known of a film's signature.

Nothing is fetched: no time stamp, no list of revoked certificates, no manifest that lies elsewhere.
The packages for it are an extra, and load only where something is signed or a signature is read.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from storyreel import __version__
from storyreel.errors import MissingError, StoryreelError, UsageError
from storyreel.film.ffmpeg import RUN_AGAIN
from storyreel.film.provenance import GENERATED, holds_c2pa
from storyreel.origin import with_extra
from storyreel.stopping import deferred

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

KIND = "video/mp4"
# The smallest film that can be signed, to try a certificate with.
NOTHING = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom") + struct.pack(">I4sI", 12, b"mdat", 0)
# Bytes. A larger film is hashed in parts: what is hashed in one is in memory as a whole. Smaller ones have
# the form that every reader knows.
LARGE = 64 << 20
ELLIPTIC = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# Codes of C2PA that are about a certificate and not about what was signed.
OF_CERTIFICATES = ("signingCredential.", "timeStamp.", "algorithm.", "claimSignature.outsideValidity")
UNKNOWN_SIGNER = "signingCredential.untrusted"

SUITABLE = (
    "C2PA takes an X.509 v3 certificate that is no authority's own, with key usage digitalSignature and "
    "extended key usage emailProtection; storyreel/film/README.md has the command that makes one."
)

State = Literal["none", "unread", "valid", "trusted", "invalid", "tampered"]


@dataclass(frozen=True)
class Signature:
    """What is known of a film's signature.

    ``state``: none; unread, there is one but the packages that read it are missing; valid, the film is as it
    was signed, by somebody whom nothing vouches for; trusted, by somebody whom a certificate that the reader
    trusts vouches for; invalid, the film is as it was signed but the certificate does not count, as when it
    has expired; tampered, film or signature were changed afterwards. ``signer`` is who the certificate says
    it is, ``generator`` the program that signed, ``source`` IPTC's term for how the film was made; "" where
    nothing is said. ``problems`` are what is wrong, mostly in C2PA's codes.
    """

    state: State
    signer: str = ""
    generator: str = ""
    source: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signer:
    """A certificate to sign films with. Of its key, only the place is known: it is read to sign alone.

    ``chain`` are the certificate and those that vouch for it, but the root.
    """

    certificate: Path
    key: Path
    chain: tuple[Certificate, ...]

    @property
    def fingerprint(self) -> str:
        """The certificate's SHA-256, in hexadecimal digits."""
        from cryptography.hazmat.primitives.hashes import SHA256

        return self.chain[0].fingerprint(SHA256()).hex()

    def sign(self, path: Path, title: str, model: str) -> None:
        """Put a signed manifest into an MP4. Raises StoryreelError or OSError; the file is then as it was."""
        signed = path.with_name(f".signed-{secrets.token_hex(8)}.part{path.suffix}")
        try:
            # On a full disk the file's own error, at its end, replaces that of C2PA's library.
            with path.open("rb") as film, signed.open("w+b") as target, deferred():
                self._sign(film, target, title, model)
            signed.replace(path)
        finally:
            signed.unlink(missing_ok=True)

    def try_out(self) -> None:
        """Sign something that is thrown away. Raises StoryreelError if a film could not be signed."""
        with BytesIO() as target:
            self._sign(BytesIO(NOTHING), target, "a trial", "none")

    def _sign(self, film: BinaryIO, target: BinaryIO, title: str, model: str) -> None:
        from c2pa import Builder, C2paError, C2paSignerInfo
        from c2pa import Signer as Signing
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = _read_key(self.key)
        if key.public_key() != self.chain[0].public_key():
            raise _no_pair(self.certificate, self.key)
        chain = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            info = C2paSignerInfo(_algorithm(key, self.key), chain, secret, None)
            with (
                Signing.from_info(info) as signing,
                _context(in_parts=film.seek(0, os.SEEK_END) > LARGE) as context,
                Builder(_manifest(title, model), context=context) as builder,
            ):
                builder.sign(signing, KIND, film, target)
        except C2paError as error:
            raise StoryreelError(f"cannot sign with {self.certificate}: {error}", RUN_AGAIN) from None


def open_signer(certificate: Path | None, key: Path | None) -> Signer | None:
    """Return what signs films with a certificate and its key, both in PEM; None without either.

    What would fail behind an hour of rendering fails here. Raises UsageError for what cannot sign,
    MissingError without the packages that do.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        remedy = "Give both --sign-cert and --sign-key."
        raise UsageError("a signature takes a certificate and its key", remedy)
    _need_packages()
    public = _read_key(key).public_key()
    given = _certificates(certificate)
    own = next((one for one in given if one.public_key() == public), None)
    if own is None:
        raise _no_pair(certificate, key)
    now = datetime.now(UTC)
    if now > own.not_valid_after_utc:
        words = f"the certificate {certificate} has expired, on {own.not_valid_after_utc:%Y-%m-%d}"
        raise UsageError(words, "Sign with one that is valid.")
    if now < own.not_valid_before_utc:
        words = f"the certificate {certificate} begins on {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise UsageError(words, "Sign with one that is valid, and see whether this machine's clock is right.")
    signer = Signer(certificate, key, tuple(_chain(own, given)))
    try:
        signer.try_out()
    except UsageError:
        raise
    except StoryreelError as error:
        raise UsageError(error.message, SUITABLE) from None
    return signer


def read_signature(path: Path, trust: Path | None = None) -> Signature:
    """Return what is known of the signature of a film in an MP4 or MOV, by reading all of it.

    ``trust`` is a PEM file of certificates: who is one of them, or has one of theirs, is trusted. Raises
    UsageError if it is none, MissingError if it is given and cannot be used; OSError.
    """
    anchors = ""
    if trust is not None:
        from cryptography.hazmat.primitives.serialization import Encoding

        _need_packages()
        anchors = "".join(one.public_bytes(Encoding.PEM).decode() for one in _certificates(trust))
    if not holds_c2pa(path):
        return Signature("none")
    try:
        _need_packages()
    except MissingError:
        return Signature("unread")
    from c2pa import C2paError, Reader

    try:
        with (
            path.open("rb") as film,
            _context(anchors) as context,
            Reader(KIND, film, context=context) as reader,
        ):
            return _found(json.loads(reader.json()))
    except C2paError as error:
        return Signature("tampered", problems=(str(error),))


def _found(report: dict[str, Any]) -> Signature:
    """Return what a report of C2PA's library says."""
    manifest = report.get("manifests", {}).get(report.get("active_manifest"), {})
    signed = manifest.get("signature_info") or {}
    names = dict.fromkeys(filter(None, (signed.get("common_name"), signed.get("issuer"))))
    generators = manifest.get("claim_generator_info") or [{}]
    actions = [
        action
        for assertion in manifest.get("assertions", [])
        if str(assertion.get("label")).startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    codes = tuple(dict.fromkeys(str(status["code"]) for status in report.get("validation_status", [])))
    states: dict[str, State] = {"Trusted": "trusted", "Valid": "valid"}
    state = states.get(report.get("validation_state", ""))
    if state is None:
        state = "invalid" if codes and all(code.startswith(OF_CERTIFICATES) for code in codes) else "tampered"
    return Signature(
        state,
        ", ".join(names),
        " ".join(filter(None, (generators[0].get("name"), generators[0].get("version")))),
        next((action["digitalSourceType"] for action in actions if "digitalSourceType" in action), ""),
        tuple(code for code in codes if code != UNKNOWN_SIGNER),
    )


def _manifest(title: str, model: str) -> dict[str, Any]:
    """Return what is signed beside the film: that a model has generated it, and which."""
    program = {"name": "storyreel", "version": __version__, "model": model}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": GENERATED,
        "softwareAgent": program,
        "description": f"Generated by the text-to-video model {model}",
    }
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return {"claim_generator_info": [program], "format": KIND, "title": title, "assertions": [actions]}


def _context(anchors: str = "", in_parts: bool = False) -> Any:
    """Return the settings of C2PA's library. Of what it could fetch by itself, nothing is fetched.

    A film is hashed ``in_parts`` of 1 MB or in one.
    """
    from c2pa import Context

    settings: dict[str, Any] = {
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
        "core": {"allowed_network_hosts": [], "backing_store_memory_threshold_in_mb": 32},
        "builder": {"thumbnail": {"enabled": False}},
    }
    if anchors:
        settings["trust"] = {"user_anchors": anchors}
    if in_parts:
        settings["core"]["merkle_tree_chunk_size_in_kb"] = 1024
    return Context.from_dict(settings)


def _need_packages() -> None:
    """Raise MissingError without the packages of the extra."""
    try:
        for name in ("cryptography", "c2pa"):
            import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # also a library that is not for this machine
        words = f"what signs films and reads signatures is not installed: {error}"
        raise MissingError(words, f"Install it: {with_extra('c2pa')}") from None


def _chain(own: Certificate, given: list[Certificate]) -> list[Certificate]:
    """Return a certificate and, of those given, each that vouches for the one before, but no root."""
    chain = [own]
    while chain[-1].issuer != chain[-1].subject:
        issuers = (one for one in given if one.subject == chain[-1].issuer and one not in chain)
        issuer = next(issuers, None)
        if issuer is None or issuer.subject == issuer.issuer:
            break
        chain.append(issuer)
    return chain


def _no_pair(certificate: Path, key: Path) -> UsageError:
    return UsageError(f"{key} is not the key of {certificate}", "Name the two that belong together.")


def _certificates(path: Path) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(_read(path))
    except ValueError:
        raise UsageError(
            f"{path} has no certificate in PEM",
            "Name a file with -----BEGIN CERTIFICATE-----; openssl x509 -inform DER turns DER into that.",
        ) from None


def _read_key(path: Path) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(_read(path), None)
    except TypeError:
        raise UsageError(
            f"the key {path} is encrypted, and storyreel asks for no passphrase",
            "Decrypt it into a file that only you can read: (umask 077; openssl pkey -in KEY -out FILE)",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        remedy = "Name a file with -----BEGIN PRIVATE KEY-----; openssl pkey turns other forms into that."
        raise UsageError(f"{path} has no private key in PEM", remedy) from None


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    """Return C2PA's name of how a key signs."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    match key:
        case Ed25519PrivateKey():
            return "ed25519"
        case RSAPrivateKey():
            return "ps256"
        case EllipticCurvePrivateKey() if key.curve.name in ELLIPTIC:
            return ELLIPTIC[key.curve.name]
    remedy = "Use Ed25519, RSA, or one of the curves P-256, P-384 and P-521."
    raise UsageError(f"C2PA signs with no key such as {path}", remedy)


def _read(path: Path) -> bytes:
    """Return what is in a file, which is read more than once. Raises UsageError."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file", "Name a file in PEM.")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Make it readable for you.") from None
