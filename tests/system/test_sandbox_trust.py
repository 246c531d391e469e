"""Signatures decide before the engine sees a byte: set by the settings alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from roads import on_both_roads
from thawbox.config import load_settings
from thawbox.errors import InvalidRequest, UntrustedSnapshot
from thawbox.model import Spec
from thawbox.node import Node

OpenNode = Callable[..., Node]


@on_both_roads
def test_with_require_signed_only_a_trusted_signature_is_restored(open_node: OpenNode) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = key.private_bytes_raw().hex(), key.public_key().public_bytes_raw().hex()
    sandbox = open_node().run(Spec(("sleep", "1000")))
    unsigned = sandbox.checkpoint()
    signed = open_node(signing_key=private).sandbox(sandbox.id).checkpoint()
    strict = open_node(trusted_keys=public, require_signed=True)
    with pytest.raises(UntrustedSnapshot):
        strict.snapshot(unsigned.id).clone()
    with pytest.raises(UntrustedSnapshot):
        open_node(trusted_keys="00" * 32, require_signed=True).snapshot(signed.id).clone()
    assert len(strict.sandboxes()) == 1


@on_both_roads
def test_a_signed_snapshot_is_cloned_where_signatures_are_required(open_node: OpenNode) -> None:
    key = Ed25519PrivateKey.generate()
    strict = open_node(
        signing_key=key.private_bytes_raw().hex(),
        trusted_keys=key.public_key().public_bytes_raw().hex(),
        require_signed=True,
    )
    with strict.run(Spec(("sleep", "1000"))) as sandbox, sandbox.checkpoint().clone() as clone:
        assert clone.run("true").outcome is not None


def test_settings_of_keys_come_from_the_environment_and_never_show_in_errors() -> None:
    settings = load_settings({"THAWBOX_REQUIRE_SIGNED": "true", "THAWBOX_TRUSTED_KEYS": "ab,cd"})
    assert settings.require_signed
    assert settings.trusted_keys == "ab,cd"
    with pytest.raises(InvalidRequest, match="neither true nor false"):
        load_settings({"THAWBOX_REQUIRE_SIGNED": "perhaps"})
