"""Certificates for tests over TLS: an authority, and what it signs for `localhost`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = 86_400.0


class Authority:
    """Signs certificates; who trusts `certificate` (PEM) trusts them."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "thawbox test")])
        signed = self._sign(self._name, self._key.public_key(), -DAY, DAY, ca=True)
        self.certificate = signed.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, since: float = -DAY, until: float = DAY) -> tuple[str, str]:
        """A certificate and its key, PEM, valid from `since` to `until` seconds from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        signed = self._sign(name, key.public_key(), since, until, ca=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return signed.public_bytes(serialization.Encoding.PEM).decode(), private.decode()

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, since: float, until: float, *, ca: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(seconds=since)).not_valid_after(now + timedelta(seconds=until))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
