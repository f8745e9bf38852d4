"""Certificates that tests sign with, made anew each time; they are worth nothing anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

SIGNS = (ExtendedKeyUsageOID.EMAIL_PROTECTION,)


@dataclass(frozen=True)
class Owner:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Any

    def pem(self, *vouching: Owner) -> bytes:
        """Return the certificate, and those of whoever vouches for it."""
        return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in (self, *vouching))

    def key_pem(self, form: PrivateFormat = PrivateFormat.PKCS8, password: bytes = b"") -> bytes:
        locked: KeySerializationEncryption = NoEncryption()
        if password:
            locked = BestAvailableEncryption(password)
        return bytes(self.key.private_bytes(Encoding.PEM, form, locked))


def owner(
    name: str,
    by: Owner | None = None,
    *,
    authority: bool = False,
    days: tuple[float, float] = (-1, 1),
    usage: Sequence[ObjectIdentifier] = SIGNS,
    key: Any = None,
) -> Owner:
    """Make a certificate of somebody, by an authority or by itself, valid for some days around now."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer, now = by.key if by else key, datetime.now(UTC)
    who = _name(name)
    uses = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    uses |= {"key_cert_sign": authority, "crl_sign": authority, "digital_signature": not authority}
    builder = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(by.certificate.subject if by else who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days[0]))
        .not_valid_after(now + timedelta(days[1]))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(x509.KeyUsage(**uses), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), False)
    # An Ed25519 key brings its own hash.
    digest = None if type(issuer).__name__.startswith("Ed25519") else hashes.SHA256()
    return Owner(builder.sign(issuer, digest), key)


def _name(name: str) -> x509.Name:
    parts = {NameOID.COUNTRY_NAME: "XX", NameOID.ORGANIZATION_NAME: "Tests only", NameOID.COMMON_NAME: name}
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts.items()])


@dataclass(frozen=True)
class Files:
    """The files of a certificate, with those that vouch for it, and of its key."""

    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        return [f"--sign-cert={self.certificate}", f"--sign-key={self.key}"]


def written(folder: Path, one: Owner, *vouching: Owner) -> Files:
    files = Files(folder / "cert.pem", folder / "key.pem")
    folder.mkdir(parents=True, exist_ok=True)
    files.certificate.write_bytes(one.pem(*vouching))
    files.key.write_bytes(one.key_pem())
    return files
