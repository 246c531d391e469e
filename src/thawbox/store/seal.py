"""Sealing and signing: who may read a snapshot that leaves this node, and whose snapshots are trusted.

Rule 1: keys live in files or variables that the operator names; they are never written to a store, a log or an error.
Rule 2: a signature covers the snapshot's id. The id is the digest of a manifest that names every byte and the parent,
so one signature covers a whole chain.
Rule 3: whatever is stored elsewhere is encrypted under its own name: swapping two objects does not go unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from thawbox.errors import InvalidRequest, UntrustedSnapshot

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_BYTES = 32
NONCE_BYTES = 12
_TAG_BYTES = 16
_SIGNED_CONTEXT = b"thawbox snapshot 1\0"
MAX_SIGNATURE_BYTES = 4096


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    algorithm: str
    key: str
    signature: str


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The secrets and policy of one node. `sealing` and `signing` are 32 secret bytes each, `trusted` public keys.

    With `require_signed`, a snapshot without a signature by a trusted key (or by our own) is refused.
    """

    sealing: bytes = b""
    signing: bytes = b""
    trusted: tuple[bytes, ...] = field(default=())
    require_signed: bool = False

    def __repr__(self) -> str:
        has = [name for name in ("sealing", "signing") if getattr(self, name)]
        return f"<Keys {' '.join(has) or 'none'}, {len(self.trusted)} trusted, require_signed={self.require_signed}>"

    @property
    def public(self) -> bytes:
        """The public half of our signing key, 32 bytes; what other nodes list as trusted."""
        return _signer(self.signing).public_key().public_bytes_raw()

    def all_trusted(self) -> tuple[bytes, ...]:
        return (*self.trusted, self.public) if self.signing else self.trusted


NO_KEYS = Keys()


def load_keys(
    *, sealing: str = "", signing: str = "", trusted: Sequence[str] = (), require_signed: bool = False
) -> Keys:
    """Keys from text: each is the path of a file, or the key itself, as 64 hex digits or 44 base64 characters.

    Raises InvalidRequest naming the key's purpose, never its content.
    """
    return Keys(
        sealing=_key(sealing, "sealing key") if sealing else b"",
        signing=_key(signing, "signing key") if signing else b"",
        trusted=tuple(_key(text, "trusted key") for text in trusted),
        require_signed=require_signed,
    )


def _key(text: str, what: str) -> bytes:
    if text.startswith(("/", "./", "~")):
        try:
            text = Path(text).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the {what} cannot be read from its file: {type(error).__name__}") from None
    text = text.strip()
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidRequest(
            f"the {what} is not 32 bytes in hex or base64", remediation="make one with `openssl rand -hex 32`"
        )
    return key


def _signer(secret: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(secret)


def sign(snapshot: str, keys: Keys) -> bytes:
    """The content of a signature file for this snapshot id: JSON with algorithm, public key and signature in hex."""
    signature = _signer(keys.signing).sign(_SIGNED_CONTEXT + bytes.fromhex(snapshot))
    return msgspec.json.encode(_Signature("ed25519", keys.public.hex(), signature.hex()))


def check_signature(snapshot: str, content: bytes | None, keys: Keys) -> None:
    """Raise UntrustedSnapshot unless policy is content with the signature file's content (None: there is none).

    Without `require_signed` everything passes: ids are digests, so corruption is found without signatures.
    """
    if not keys.require_signed:
        return
    who = f"snapshot {snapshot[:12]}"
    if content is None:
        raise UntrustedSnapshot(f"{who} is not signed, and this node requires signatures")
    fault = signature_fault(snapshot, content, keys.all_trusted())
    if fault:
        raise UntrustedSnapshot(f"{who}: {fault}")


def signature_fault(snapshot: str, content: bytes, trusted: Sequence[bytes]) -> str:
    """What is wrong with a signature, in words; empty if a trusted key made it for this very snapshot."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        parts = msgspec.json.decode(content, type=_Signature)
        key, signature = bytes.fromhex(parts.key), bytes.fromhex(parts.signature)
    except (msgspec.DecodeError, ValueError):
        return "its signature is malformed"
    if parts.algorithm != "ed25519":
        return f"its signature is of the unknown kind {parts.algorithm[:20]!r}"
    if not any(hmac.compare_digest(key, one) for one in trusted):
        return f"it is signed by {key.hex()[:16]}…, which this node does not trust"
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _SIGNED_CONTEXT + bytes.fromhex(snapshot))
    except (InvalidSignature, ValueError):
        return "its signature is not of this snapshot"
    return ""


@dataclass(frozen=True, slots=True, repr=False)
class Sealer:
    """Encrypts objects with AES-256-GCM. Both keys are derived from the sealing key."""

    _content_key: bytes
    _name_key: bytes

    def __repr__(self) -> str:
        return "<Sealer>"

    def name(self, digest: bytes) -> str:
        """What an object with this digest is called: a keyed digest, which tells a stranger nothing."""
        return hmac.new(self._name_key, digest, hashlib.sha256).hexdigest()

    def seal(self, content: bytes, *, name: str) -> bytes:
        """Nonce, ciphertext and tag. Nonces are random: fine for 2^32 objects under one key (NIST SP 800-38D)."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._content_key).encrypt(nonce, content, name.encode())

    def open(self, sealed: bytes, *, name: str) -> bytes:
        """The content; raises UntrustedSnapshot if the key is another or a bit was changed."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(self._content_key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError):
            raise UntrustedSnapshot(
                f"the object {name} was sealed with another key, or altered", remediation="check the sealing key"
            ) from None


SEALED_OVERHEAD = NONCE_BYTES + _TAG_BYTES


def sealer_of(keys: Keys) -> Sealer | None:
    """The sealer for a node's keys; None if it has no sealing key."""
    if not keys.sealing:
        return None
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    def derive(purpose: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(keys.sealing)

    return Sealer(derive(b"thawbox object content"), derive(b"thawbox object names"))
